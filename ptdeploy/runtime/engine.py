"""What every engine does, whatever its task."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptdeploy.arguments import checked, flag, listed
from ptdeploy.backends.session import Session
from ptdeploy.bundle import Bundle, Manifest, RequestLimits
from ptdeploy.bundle.task import Head
from ptdeploy.errors import BundleError, EngineFault, InputError
from ptdeploy.runtime.batching import (
    Ids,
    check_segments,
    embedded,
    rows_of,
    segments_of,
    split,
)
from ptdeploy.runtime.layout import problems_of_any
from ptdeploy.runtime.probes import Fed, ProbeRequest
from ptdeploy.runtime.prompts import read_prompt
from ptdeploy.runtime.tokenizer import Encoding, Tokenizer

Metric = Literal["accuracy", "mean squared error", "perplexity"]
Pair = tuple[str, str]
Inputs = str | Sequence[str | Pair] | Sequence[int] | Sequence[Sequence[int]]


@dataclass(frozen=True)
class OpenOptions:
    """What an engine was opened with."""

    device: str | None = None
    threads: int | None = None
    map_weights: bool = False


class Engine(ABC):
    """A loaded bundle. Takes text (where the bundle has a tokenizer) or token ids.

    Pickled, it is the bundle's path and how it was opened: it is opened again where it is
    unpickled, if it is still the same bundle. Copies of it are the engine itself.
    """

    # Facts of the task, which its class has without a bundle.
    # Whether a row has one answer, so that its logits are (columns,), not one for each token.
    one_answer: ClassVar[bool] = False
    # Whether it continues texts: the logits at a token are scores of the token after it.
    writes: ClassVar[bool] = False
    # Whether two texts can be one request.
    takes_pairs: ClassVar[bool] = True
    # What its logits may mean.
    heads: ClassVar[tuple[Head, ...]] = ("softmax",)

    options_given = OpenOptions()

    def __init__(self, bundle: Bundle, session: Session, tokenizer: Tokenizer | None) -> None:
        self.bundle = bundle
        self.tokenizer = tokenizer
        self._session = session
        self.prompt = read_prompt(bundle)

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    @property
    def limits(self) -> RequestLimits:
        """What a request may ask for."""
        return self.manifest.request_limits

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
        labels, columns = len(manifest.prompt.labels), manifest.graph.outputs[0].shape[-1]
        columns = columns if isinstance(columns, int) else labels
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
    def step_requests(self, batch: int, tokens: int | None) -> Iterator[ProbeRequest]:
        """The runs that its work is made of, to be timed layer by layer, each made when asked for.

        Of `batch` rows of `tokens` random tokens, 32 or as many as fit unless told. Raises
        InputError if they do not fit.
        """

    @abstractmethod
    def whole_requests(self, rows: list[list[int]], new_tokens: int) -> Iterator[ProbeRequest]:
        """What users ask of it, to be timed: of one of these rows, and of more of its work."""

    @abstractmethod
    def feed(self, rows: Sequence[Ids], segments: Sequence[Ids], row: int) -> Fed:
        """What the engine is given for rows, so that another can be run on it.

        `segments` are those of each row, `row` is the one that is looked at. A decoder's earlier
        tokens are run: only the last of each row is fed where there are several.
        """

    def greedy(self, rows: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
        """The likeliest `tokens` tokens behind each row, EOS or not.

        Raises InputError if it continues no texts.
        """
        raise InputError(f"{self.bundle.path}: its task continues no texts.")

    def __reduce__(self) -> tuple[Any, ...]:
        path = str(self.bundle.path.absolute())
        return _opened_again, (path, self.options_given, _digest(self.bundle))

    def __copy__(self) -> Engine:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Engine:
        return self

    def logits(
        self,
        input_ids: ArrayLike | Sequence[Sequence[int]],
        attention_mask: ArrayLike | None = None,
        token_type_ids: ArrayLike | Sequence[Sequence[int]] | None = None,
    ) -> list[NDArray[np.float32]]:
        """Scores before softmax, one array for each row, each as if the row ran alone.

        `input_ids` is rows of unequal length, or with `attention_mask` one array of shape (batch,
        sequence) padded on either side; `token_type_ids` is of the same shape, 0 unless given.
        Gives shape (classes,) for SEQ_CLS, (tokens, classes) for TOKEN_CLS and (tokens, vocabulary)
        for CAUSAL_LM, padding left out.
        Raises InputError if a row is empty, too long, or holds an id outside the vocabulary, if the
        mask has gaps, or if the model has no such segments.
        """
        limits = self.limits
        rows = rows_of(input_ids, attention_mask, limits)
        if token_type_ids is None:
            return self._row_logits(rows)
        segments = segments_of(token_type_ids, input_ids, attention_mask, limits)
        return self._row_logits(rows, segments)

    @checked(truncate=flag)
    def encode(
        self,
        inputs: Inputs,
        truncate: bool = False,
        token_type_ids: ArrayLike | Sequence[Sequence[int]] | None = None,
    ) -> list[Encoding]:
        """Tokenise text, or wrap token ids, one Encoding for each row.

        A tuple of two strings in a list is a pair of texts: `encode([("text", "pair")])`.
        `token_type_ids` are the segments of rows of token ids.
        """
        given: list[Any] = [inputs] if isinstance(inputs, str) else split(inputs)
        if any(isinstance(item, bytes | bytearray) for item in given):
            raise InputError("The text is bytes, not a string.", "Decode it: text.decode('utf-8').")
        texts = [isinstance(item, str) or is_pair(item) for item in given]
        if not any(texts):
            return self._wrap_ids(inputs, truncate, token_type_ids)
        if not all(texts):
            raise InputError("A request has either texts or rows of token ids, not both.")
        if token_type_ids is not None:
            raise InputError(
                "token_type_ids are for rows of token ids: a text gets them from its tokenizer.",
                "Give two texts as a pair, in a tuple.",
            )
        pairs = [(item, None) if isinstance(item, str) else tuple(item) for item in given]
        return [self._encode_text(text, pair, truncate) for text, pair in pairs]

    def _wrap_ids(self, inputs: Any, truncate: bool, token_type_ids: Any) -> list[Encoding]:
        limits = self.limits
        rows = rows_of(inputs, None, limits, truncate)
        segments = [np.zeros_like(row) for row in rows]
        if token_type_ids is not None:
            segments = segments_of(token_type_ids, inputs, None, limits)
        return [
            Encoding(row.tolist(), types.tolist(), [], [(0, 0)] * row.size, [False] * row.size)
            for row, types in zip(rows, segments, strict=True)
        ]

    def _encode_text(self, text: str, pair: str | None, truncate: bool) -> Encoding:
        if self.tokenizer is None:
            raise InputError(
                f"{self.bundle.path}: was compiled without a tokenizer, so it takes token ids only."
            )
        if pair is not None and not self.takes_pairs:
            raise InputError("A pair of texts is for classifiers; a causal model continues one.")
        limit = self.limits.max_sequence
        encoding = self.tokenizer.encode(text, pair=pair)
        if not encoding.ids:
            raise InputError(
                "The text is empty: an engine needs at least one token.", "Give it some text."
            )
        if len(encoding.ids) > limit:
            if not truncate:
                raise InputError(
                    f"The text has {len(encoding.ids)} tokens, but at most {limit} fit beside the "
                    f"virtual tokens: {text[:40]!r}...",
                    "Shorten it, or cut it with truncate=True (--truncate).",
                )
            encoding = self.tokenizer.encode_truncated(text, limit, pair)
        if self.takes_segments:
            check_segments(encoding.type_ids, self.limits, "The text's encoding")
        return embedded(encoding, self.limits)

    @property
    def takes_segments(self) -> bool:
        """Whether the program has an input for token_type_ids."""
        return any(spec.role == "segments" for spec in self.manifest.graph.inputs)

    @abstractmethod
    def _row_logits(
        self, rows: Sequence[Ids], segments: Sequence[Ids] | None = None
    ) -> list[NDArray[np.float32]]:
        """Logits of checked rows, padding left out."""


def _opened_again(path: str, given: OpenOptions, digest: str) -> Engine:
    """An engine in the process that it was handed to. Raises as load does, BundleError if another
    bundle is at its path by now."""
    from ptdeploy.runtime import load

    engine = load(path, given.device, given.threads, given.map_weights)
    if _digest(engine.bundle) != digest:
        raise BundleError(
            f"{path}: is another bundle than the engine was opened from that was handed to this "
            "process.",
            "Open the bundle in this process: ptdeploy.load.",
        )
    return engine


def _digest(bundle: Bundle) -> str:
    # The manifest lists the hash of every file.
    return hashlib.sha256(msgspec.json.encode(bundle.manifest)).hexdigest()


def one_row(inputs: str | Sequence[int]) -> Inputs:
    """One text, or one row's token ids, as `encode` takes them."""
    return inputs if isinstance(inputs, str) else [listed("inputs", inputs)]


def finite(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """The logits themselves. Raises EngineFault unless all are finite: no class is likeliest."""
    if not np.isfinite(logits).all():
        raise EngineFault(
            "The engine gave logits that are not finite.",
            "Hold the bundle against its reference: ptdeploy verify BUNDLE",
        )
    return logits


def is_pair(item: Any) -> bool:
    """Whether one item of a request is two texts."""
    return (
        isinstance(item, (tuple, list)) and len(item) == 2 and all(isinstance(s, str) for s in item)
    )


def sigmoid(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """The probability of each class by itself, in float64."""
    # Whichever way, the exponential is of a number below 0.
    small = np.exp(-np.abs(logits.astype(np.float64)))
    probabilities: NDArray[np.float64] = np.where(logits < 0, small, 1) / (1 + small)
    return probabilities


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities over the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    weights = np.exp(shifted)
    probabilities: NDArray[np.float64] = weights / weights.sum(axis=-1, keepdims=True)
    return probabilities
