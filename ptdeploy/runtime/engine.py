"""What every engine does, whatever its task."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptdeploy import arguments
from ptdeploy.arguments import checked, flag, listed, maybe
from ptdeploy.backends.session import Session
from ptdeploy.bundle import Bundle, Manifest, PromptInfo, RequestLimits
from ptdeploy.bundle.task import Head
from ptdeploy.errors import BundleError, InputError, NoSuchMethod
from ptdeploy.runtime.batching import Ids, Rooms, rows_of, segments_of
from ptdeploy.runtime.generation import Generated
from ptdeploy.runtime.layout import check_manifest, problems_of_any
from ptdeploy.runtime.probes import Fed, ProbeRequest
from ptdeploy.runtime.prompt_choice import DEFAULT, Chosen, PromptChoice, in_words, prompt_choice
from ptdeploy.runtime.prompt_inputs import PromptInputs, RowPrompt
from ptdeploy.runtime.prompt_places import prompt_place
from ptdeploy.runtime.prompt_store import PromptStore
from ptdeploy.runtime.prompts import Prompt
from ptdeploy.runtime.row_encoder import Inputs, RowEncoder
from ptdeploy.runtime.tokenizer import Encoding, Tokenizer

Metric = Literal["accuracy", "mean squared error", "perplexity"]


@dataclass(frozen=True)
class OpenOptions:
    """What an engine was opened with."""

    device: str | None = None
    threads: int | None = None
    map_weights: bool = False
    max_prompts: int | None = None


class Engine(ABC):
    """A loaded bundle. Takes text (where the bundle has a tokenizer) or token ids.

    `prompt` of its methods is the prompt of a request's rows: a name in `prompts`, None for the
    base model without one, or a sequence of those, one for each row; `default_prompt` unless told.
    A row is answered as if it were alone, whatever prompts the others have; where rows are
    prefilled together, its logits may differ in their last bits.
    Pickled, it is the bundle's path and how it was opened: it is opened again where it is
    unpickled, if it is still the same bundle, with that bundle's prompts. Copies of it are the
    engine itself.
    """

    # Facts of the task, which its class has without a bundle.
    # Whether a row has one answer, so that its logits are (columns,), not one for each token.
    one_answer: ClassVar[bool] = False
    # Whether it continues texts: the logits at a token are scores of the token after it.
    writes: ClassVar[bool] = False
    # Whether two texts can be one request.
    takes_pairs: ClassVar[bool] = True
    # Whether a row can do without a prompt: a trained head belongs to one.
    takes_base: ClassVar[bool] = False
    # What its logits may mean.
    heads: ClassVar[tuple[Head, ...]] = ("softmax",)

    # What users ask of it, that other tasks' engines need not have.
    asked_by: ClassVar[tuple[str, ...]] = ()

    options_given = OpenOptions()

    def __init__(
        self,
        bundle: Bundle,
        session: Session,
        tokenizer: Tokenizer | None,
        max_prompts: int | None = None,
    ) -> None:
        self.bundle = bundle
        self.tokenizer = tokenizer
        self._session = session
        self._store = PromptStore(bundle, self.takes_base, max_prompts, self.manifest_problems)
        self._of_prompts = PromptInputs(session, self.manifest)
        self._store.forget.append(self._of_prompts.forget)
        if self.default_prompt is not None:
            # A bundle whose prompt the engine cannot hold is refused here, not at a request.
            self._of_prompts.stack([self.prompt])

    def __repr__(self) -> str:
        manifest = self.manifest
        device = self.options_given.device or manifest.device
        default = "" if self.default_prompt is None else f", by default {self.default_prompt!r}"
        return (
            f"<{type(self).__name__} of {str(self.bundle.path)!r}: {manifest.target} on {device}, "
            f"{manifest.precision}; prompts: {in_words(self.prompts)}{default}>"
        )

    if not TYPE_CHECKING:  # a type checker knows each engine's own methods

        def __getattr__(self, name: str) -> Any:
            """Say whose a method is that this engine has not, and what it has instead."""
            from ptdeploy.runtime import ENGINES

            own = type(self).__name__
            owners = [one.__name__ for one in ENGINES.values() if name in one.asked_by]
            if not owners:
                raise AttributeError(f"{own!r} object has no attribute {name!r}")
            raise NoSuchMethod(
                f"{self.bundle.path}: is opened as a {own}, by its task, and has no {name}(), "
                f"which a {owners[0]} has.",
                f"Use {' or '.join(f'{one}()' for one in self.asked_by)}.",
            )

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    @property
    def prompts(self) -> Mapping[str, PromptInfo]:
        """What can be asked for just now, by name: the bundle's, and those loaded since."""
        return self._store.infos

    @checked(name=arguments.text)
    def prompt_info(self, name: str) -> PromptInfo:
        """What a prompt is. Raises InputError, listing those there are, if there is none so."""
        return self._store.info(name)

    @property
    def default_prompt(self) -> str | None:
        """The name of the prompt of a request that names none; None for the base model alone."""
        return self.manifest.default_prompt

    @property
    def prompt(self) -> Prompt:
        """The default prompt. Raises InputError if there is none."""
        return self._store.prompt(self.default_prompt)

    @checked(name=maybe(arguments.text))
    def by_default(self, name: str | None) -> Engine:
        """This engine as one whose requests have that prompt if they name none.

        It runs in the same session, with the same prompts in memory: a prompt that one of them
        takes out is gone for both. Raises InputError if the bundle has no prompt of that name,
        BundleError if it is none for the engine.
        """
        if name is not None and name not in self.manifest.prompts:
            raise InputError(
                f"{self.bundle.path} has no prompt {name!r} of its own; it has "
                f"{in_words(self.manifest.prompts)}.",
                "Put it into the bundle with ptdeploy prompt add, or name it in each request.",
            )
        bundle = self.bundle.by_default(name)
        check_manifest(bundle, self.manifest_problems(bundle.manifest))
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.bundle = bundle
        return other

    def _held(self, prompt: PromptChoice) -> AbstractContextManager[Chosen]:
        """The prompts that a request names, kept until it is over. Raises InputError, BundleError
        as the store does."""
        return self._store.held(prompt, self.default_prompt)

    @property
    def limits(self) -> RequestLimits:
        """What a request with the default prompt may ask for."""
        name = self.default_prompt
        return self.limits_beside(0 if name is None else self.prompt_info(name).num_virtual_tokens)

    def limits_beside(self, virtual_tokens: int) -> RequestLimits:
        """What a request may ask for whose prompt has so many virtual tokens."""
        return self.manifest.limits.beside(virtual_tokens)

    @checked(path=arguments.path, name=maybe(arguments.text))
    def load_prompt(self, path: str | Path, name: str | None = None) -> None:
        """Take in a prompt, to be asked for by `name`: a pack, or one of another bundle's prompts.

        Both must have been proven over the engine of this bundle. Requests go on meanwhile. Unless
        told it has the name that it has there. A pack's prompt takes any name; of a bundle it is
        the one of that name, unless told the only one or else the default one.
        Raises InputError if the name is taken or is none, or the bundle has no such prompt,
        BundleError if the file is damaged, the engine is another one, or the prompt does not fit
        this one's limits.
        """
        place = prompt_place(self.bundle, path, name, self.manifest_problems)
        self._store.load(place, name or place.name)

    @checked(name=arguments.text)
    def unload_prompt(self, name: str) -> None:
        """Take a prompt out: from now on nobody can ask for it.

        Waits until the requests that use it are over, streams that were not closed among them; a
        session keeps its own and goes on. Left by an exception meanwhile, as Ctrl-C is one, the
        prompt is there as before. Raises InputError if there is no such prompt, or it is the
        default one.
        """
        self._store.unload(name, self.default_prompt)

    @classmethod
    def manifest_problems(cls, manifest: Manifest) -> Iterator[str]:
        """What in a manifest no engine of this task has, in words, the first cause first."""
        yield from problems_of_any(manifest, cls.heads)
        yield from cls._own_problems(manifest)

    @classmethod
    @abstractmethod
    def _own_problems(cls, manifest: Manifest) -> Iterator[str]:
        """The problems that only this task has, once those of any task are none."""

    @classmethod
    def logit_shape(cls, manifest: Manifest, tokens: int) -> tuple[int, ...]:
        """The shape of the logits of a row of so many tokens: (columns,) or (tokens, columns)."""
        columns = manifest.graph.outputs[0].shape[-1]
        columns = columns if isinstance(columns, int) else len(manifest.prompt.labels)
        return (columns,) if cls.one_answer else (tokens, columns)

    @classmethod
    def positions(cls, tokens: int) -> int:
        """How many rows of logits a row of so many tokens has."""
        return 1 if cls.one_answer else tokens

    @property
    @abstractmethod
    def metric(self) -> Metric:
        """What labelled data, or text, says of how well it does its task."""

    @abstractmethod
    def label_problem(self, given: Any, tokens: int) -> str:
        """Why a label cannot be that of a row of so many tokens, in words; "" where it can."""

    @abstractmethod
    def step_requests(
        self, batch: int, tokens: int | None, prompt: PromptChoice = DEFAULT
    ) -> Iterator[ProbeRequest]:
        """The runs that its work is made of, to be timed layer by layer, each made when asked for.

        Of `batch` rows of `tokens` random tokens, 32 or as many as fit unless told. Raises
        InputError if they do not fit.
        """

    @abstractmethod
    def whole_requests(
        self, rows: list[list[int]], new_tokens: int, prompt: PromptChoice = DEFAULT
    ) -> Iterator[ProbeRequest]:
        """What users ask of it, to be timed: of one of these rows, and of more of its work."""

    @abstractmethod
    def feed(
        self,
        rows: Sequence[Ids],
        segments: Sequence[Ids],
        row: int,
        prompt: PromptChoice = DEFAULT,
    ) -> Fed:
        """What the engine is given for rows, so that another can be run on it.

        `segments` are those of each row, `row` is the one that is looked at. A decoder's earlier
        tokens are run: only the last of each row is fed where there are several.
        """

    def as_read(self, ids: Ids, prompt: Prompt) -> Ids:
        """A row of token ids with that prompt, without those behind what its logits hang on."""
        return ids

    def continued(
        self, rows: Sequence[Sequence[int]], tokens: int, prompt: PromptChoice = DEFAULT
    ) -> list[Generated]:
        """The likeliest `tokens` tokens behind each row, EOS or not, and their log probabilities.

        Raises InputError if it continues no texts.
        """
        raise InputError(f"{self.bundle.path}: its task continues no texts.")

    def greedy(
        self, rows: Sequence[Sequence[int]], tokens: int, prompt: PromptChoice = DEFAULT
    ) -> list[list[int]]:
        """The tokens of `continued` alone. Raises as that does."""
        raise InputError(f"{self.bundle.path}: its task continues no texts.")

    def __reduce__(self) -> tuple[Any, ...]:
        path = str(self.bundle.path.absolute())
        default = self.default_prompt
        return _opened_again, (path, self.options_given, _digest(self.bundle), default)

    def __copy__(self) -> Engine:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Engine:
        return self

    @checked(prompt=prompt_choice)
    def logits(
        self,
        input_ids: ArrayLike | Sequence[Sequence[int]],
        attention_mask: ArrayLike | None = None,
        token_type_ids: ArrayLike | Sequence[Sequence[int]] | None = None,
        prompt: PromptChoice = DEFAULT,
    ) -> list[NDArray[np.float32]]:
        """Scores before softmax, one array for each row, each as if the row ran alone.

        `input_ids` is rows of unequal length, or with `attention_mask` one array of shape (batch,
        sequence) padded on either side; `token_type_ids` is of the same shape, 0 unless given.
        Gives shape (classes,) for SEQ_CLS, (tokens, classes) for TOKEN_CLS and (tokens, vocabulary)
        for CAUSAL_LM, padding left out; classes are those of the row's own prompt.
        Raises InputError if a row is empty, too long beside its prompt, or holds an id outside the
        vocabulary, if the mask has gaps, if the model has no such segments, or if there is no such
        prompt.
        """
        with self._held(prompt) as chosen:
            limits, rooms = self.manifest.limits, self._rooms(chosen)
            rows = rows_of(input_ids, attention_mask, limits, rooms)
            prompts = chosen.of(len(rows))
            if token_type_ids is None:
                return self._row_logits(rows, prompts)
            segments = segments_of(token_type_ids, input_ids, attention_mask, limits, rooms)
            return self._row_logits(rows, prompts, segments)

    @checked(truncate=flag, prompt=prompt_choice)
    def encode(
        self,
        inputs: Inputs,
        truncate: bool = False,
        token_type_ids: ArrayLike | Sequence[Sequence[int]] | None = None,
        prompt: PromptChoice = DEFAULT,
    ) -> list[Encoding]:
        """Tokenise text, or wrap token ids, one Encoding for each row.

        A tuple of two strings in a list is a pair of texts: `encode([("text", "pair")])`.
        `token_type_ids` are the segments of rows of token ids. Raises InputError if a row does not
        fit beside its prompt, unless it is cut by `truncate`.
        """
        with self._held(prompt) as chosen:
            return self.encoded(inputs, chosen, truncate, token_type_ids)

    def encoded(
        self,
        inputs: Inputs,
        chosen: Chosen,
        truncate: bool = False,
        token_type_ids: ArrayLike | Sequence[Sequence[int]] | None = None,
    ) -> list[Encoding]:
        """`encode` for prompts that are held."""
        encoder = RowEncoder(self.bundle, self.tokenizer, self.takes_pairs, self.takes_segments)
        return encoder.encoded(inputs, self._rooms(chosen), truncate, token_type_ids)

    def _rooms(self, chosen: Chosen) -> Rooms:
        """How many tokens of text fit into each of so many rows, beside its own prompt."""
        context = self.manifest.limits.max_context
        return lambda rows: [context - length for length in chosen.lengths(rows)]

    @property
    def takes_segments(self) -> bool:
        """Whether the program has an input for token_type_ids."""
        return any(spec.role == "segments" for spec in self.manifest.graph.inputs)

    @abstractmethod
    def _row_logits(
        self,
        rows: Sequence[Ids],
        prompts: Sequence[RowPrompt],
        segments: Sequence[Ids] | None = None,
    ) -> list[NDArray[np.float32]]:
        """Logits of checked rows, each with its own prompt; padding left out."""


def _opened_again(path: str, given: OpenOptions, digest: str, default: str | None) -> Engine:
    """An engine in the process that it was handed to. Raises as load does, BundleError if another
    bundle is at its path by now."""
    from ptdeploy.runtime import load

    engine = load(path, given.device, given.threads, given.map_weights, given.max_prompts)
    if _digest(engine.bundle) != digest:
        raise BundleError(
            f"{path}: is another bundle than the engine was opened from that was handed to this "
            "process.",
            "Open the bundle in this process: ptdeploy.load.",
        )
    return engine if engine.default_prompt == default else engine.by_default(default)


def _digest(bundle: Bundle) -> str:
    # The manifest lists the hash of every file. An engine's default prompt may be another.
    return hashlib.sha256(msgspec.json.encode(bundle.by_default(None).manifest)).hexdigest()


def one_row(inputs: str | Sequence[int]) -> Inputs:
    """One text, or one row's token ids, as `encode` takes them."""
    return inputs if isinstance(inputs, str) else [listed("inputs", inputs)]
