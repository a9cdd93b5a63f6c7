"""What the engines have in common that give labels: one run, no KV buffer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptdeploy.backends.session import Session
from ptdeploy.bundle import Bundle, Manifest, PromptInfo
from ptdeploy.bundle.signature import (
    BATCH,
    CLASSES,
    KEPT,
    PREFIX,
    PREFIXES,
    PROMPTS,
    SEQUENCE,
    VIRTUAL,
)
from ptdeploy.bundle.task import TensorSpec
from ptdeploy.runtime.batching import Ids, grouped, pack
from ptdeploy.runtime.engine import Engine, Metric
from ptdeploy.runtime.layout import ACTIVATIONS, MOST, Specs, unlike
from ptdeploy.runtime.probes import Fed, ProbeRequest, probe_rows, rows_in_words
from ptdeploy.runtime.prompt_choice import DEFAULT, Chosen, PromptChoice, first_of
from ptdeploy.runtime.prompt_inputs import MOST_IN_A_RUN, PromptStack, RowPrompt
from ptdeploy.runtime.prompts import Prompt
from ptdeploy.runtime.row_encoder import Inputs
from ptdeploy.runtime.tokenizer import Encoding, Tokenizer

# Rows of one run, unless told.
BATCH_SIZE = 16
TypeIds = ArrayLike | Sequence[Sequence[int]] | None


class Labelling(Engine):
    """An engine whose logits are of a prompt's labels."""

    def __init__(
        self,
        bundle: Bundle,
        session: Session,
        tokenizer: Tokenizer | None,
        max_prompts: int | None = None,
    ) -> None:
        super().__init__(bundle, session, tokenizer, max_prompts)
        self._names = {spec.role: spec.name for spec in self.manifest.graph.inputs}
        self._logits = self.manifest.graph.outputs[0].name

    @abstractmethod
    def records(
        self,
        inputs: Inputs,
        truncate: bool,
        token_type_ids: TypeIds,
        prompt: PromptChoice = DEFAULT,
    ) -> list[Any]:
        """The answer to each input as plain data, ready for JSON."""

    @abstractmethod
    def lines(self, record: Any) -> list[str]:
        """One of `records` as a person reads it."""

    @property
    def metric(self) -> Metric:
        return "accuracy"

    def step_requests(
        self, batch: int, tokens: int | None, prompt: PromptChoice = DEFAULT
    ) -> Iterator[ProbeRequest]:
        with self._held(prompt) as chosen:
            limits = self.limits_beside(max(chosen.lengths(batch)))
        rows = probe_rows(limits, batch, tokens, limits.max_sequence).tolist()
        name = f"request of {rows_in_words(batch)} of {len(rows[0])} tokens"
        yield ProbeRequest(name, batch, len(rows[0]), lambda: self.logits(rows, prompt=prompt))

    def whole_requests(
        self, rows: list[list[int]], new_tokens: int, prompt: PromptChoice = DEFAULT
    ) -> Iterator[ProbeRequest]:
        tokens, first = len(rows[0]), first_of(prompt)
        name = f"1 row of {tokens} tokens"
        yield ProbeRequest(name, 1, tokens, lambda: self.logits(rows[:1], prompt=first))
        name = f"{len(rows)} rows of {tokens} tokens"
        yield ProbeRequest(name, len(rows), tokens, lambda: self.logits(rows, prompt=prompt))

    def feed(
        self,
        rows: Sequence[Ids],
        segments: Sequence[Ids],
        row: int,
        prompt: PromptChoice = DEFAULT,
    ) -> Fed:
        with self._held(prompt) as chosen:
            prompts = _with_prompts(chosen.of(len(rows)))
            rows = self._as_read(rows, prompts)
            given = self._inputs(rows, segments, self._of_prompts.stack(prompts), prompts)
        own = prompts[row]
        runs_prefix, width = own.prefix_kv is None, given[self._names["ids"]].shape[1]
        return Fed(
            {n: a if isinstance(a, np.ndarray) else a.read() for n, a in given.items()},
            row,
            len(rows),
            width - own.length if runs_prefix else width,
            rows[row].size,
            own.length,
            runs_prefix,
            self._skipped(given),
        )

    def as_read(self, ids: Ids, prompt: Prompt) -> Ids:
        padding = prompt.info.padding_id
        if padding is None or not self.one_answer:
            return ids
        # Of nothing but padding transformers takes the first token.
        last = int(np.flatnonzero(ids != padding).max(initial=0))
        return ids[: last + 1]

    def _as_read(self, rows: Sequence[Ids], prompts: Sequence[Prompt]) -> list[Ids]:
        return [self.as_read(ids, one) for ids, one in zip(rows, prompts, strict=True)]

    def _skipped(self, given: dict[str, NDArray[Any]]) -> int:
        """How many of a batch's first positions have no logits."""
        name = self._names.get("positions")
        return 0 if name is None else int(given[name][0])

    def _inputs(
        self,
        rows: Sequence[Ids],
        segments: Sequence[Ids] | None,
        stack: PromptStack,
        prompts: Sequence[Prompt],
    ) -> dict[str, Any]:
        """What one run is given for rows, by input name; segments are all 0 unless given.

        Virtual tokens that are looked up stand before each row's text, in segment 0.
        """
        names, before = self._names, [stack.before(one) for one in prompts]
        batch = pack([np.concatenate(pair) for pair in zip(before, rows, strict=True)])
        given = {names["ids"]: batch.input_ids, names["mask"]: batch.attention_mask}
        if self.takes_segments:
            types = np.zeros_like(batch.input_ids)
            if segments is not None:
                none = np.zeros(max(one.size for one in before), np.int64)
                parts = [
                    np.concatenate([none[: first.size], own[: ids.size]])
                    for first, own, ids in zip(before, segments, rows, strict=True)
                ]
                types = pack(parts).input_ids
            given[names["segments"]] = types
        if "positions" in names:
            # Logits are read from the end of the shortest prompt on, where the first text begins.
            first = min(one.size for one in before)
            given[names["positions"]] = np.arange(first, batch.input_ids.shape[1])
        return {**given, **stack.of_rows(prompts)}

    def _run(
        self,
        rows: Sequence[Ids],
        prompts: Sequence[Prompt],
        segments: Sequence[Ids] | None,
    ) -> list[NDArray[np.float32]]:
        """Run rows as one right-padded batch; gives each row's logits, cut to its own text and to
        the labels of its own prompt: (labels,) or (tokens, labels)."""
        stack = self._of_prompts.stack(prompts)
        rows = self._as_read(rows, prompts)
        given = self._inputs(rows, segments, stack, prompts)
        logits = self._session.run(given)[self._logits]
        skipped = self._skipped(given)
        found = []
        for ids, prompt, row in zip(rows, prompts, logits, strict=True):
            if not self.one_answer:
                first = stack.before(prompt).size - skipped
                row = row[first : first + ids.size]
            found.append(row[..., : len(prompt.info.labels)])
        return found

    def _row_logits(
        self,
        rows: Sequence[Ids],
        prompts: Sequence[RowPrompt],
        segments: Sequence[Ids] | None = None,
    ) -> list[NDArray[np.float32]]:
        """Run rows as one batch, or as many at a time as one run of the engine takes."""
        most = self.manifest.limits.max_batch or len(rows)
        own = _with_prompts(prompts)
        found: list[NDArray[np.float32]] = []
        for part in _parts(own, most):
            types = None if segments is None else segments[part]
            found += self._run(rows[part], own[part], types)
        return found

    def _answers(
        self,
        inputs: Inputs,
        chosen: Chosen,
        truncate: bool,
        token_type_ids: TypeIds,
        batch_size: int = BATCH_SIZE,
    ) -> Iterator[tuple[Encoding, Prompt, NDArray[np.float32]]]:
        """Each input's encoding, its prompt and its logits, run in batches of `batch_size`, or of
        as many as the engine takes, of about one length each."""
        encodings = self.encoded(inputs, chosen, truncate, token_type_ids)
        prompts = _with_prompts(chosen.of(len(encodings)))
        rows = [np.asarray(one.ids, np.int64) for one in encodings]
        types = [np.asarray(one.type_ids, np.int64) for one in encodings]
        whole = [prompt.length + row.size for prompt, row in zip(prompts, rows, strict=True)]
        logits: dict[int, NDArray[np.float32]] = {}
        for group in grouped(whole, min(batch_size, self.manifest.limits.max_batch or batch_size)):
            part = self._row_logits(
                [rows[index] for index in group],
                [prompts[index] for index in group],
                [types[index] for index in group],
            )
            logits.update(zip(group, part, strict=True))
        for index, (encoding, prompt) in enumerate(zip(encodings, prompts, strict=True)):
            yield encoding, prompt, logits[index]


def _with_prompts(prompts: Sequence[RowPrompt]) -> list[Prompt]:
    """The prompts of rows that all have one, as `takes_base` says of these engines."""
    return [one for one in prompts if one is not None]


def _parts(prompts: Sequence[Prompt], size: int) -> Iterator[slice]:
    """Rows that run together: at most `size`, of no more prompts than one run takes."""
    start, seen = 0, set[Prompt]()
    for place, prompt in enumerate(prompts):
        if place - start == size or len(seen | {prompt}) > MOST_IN_A_RUN:
            yield slice(start, place)
            start, seen = place, set()
        seen.add(prompt)
    yield slice(start, len(prompts))


def classifier_problems(manifest: Manifest, per_token: bool) -> Iterator[str]:
    """What in a manifest no classifier has, of tokens or of whole texts."""
    given, prompt = manifest.graph.inputs, manifest.prompt
    if manifest.default_prompt is None:
        yield "default_prompt is null, and a head belongs to a prompt"
    where = f"prompts[{manifest.default_prompt!r}]."
    if not prompt.labels:
        yield f"{where}labels are missing"
    text = (BATCH, SEQUENCE)
    inputs: Specs = [("ids", "int64", text), ("mask", "int64", text)]
    prefix = next((spec for spec in given if spec.role == "prefix"), None)
    table = next((spec for spec in given if spec.role == "table"), None)
    # What may differ from model to model is taken from where it is, and all else held against it.
    none = (1, 2, 1, prompt.num_virtual_tokens, 1)
    shape = none if prompt.prefix_kv is None else prompt.prefix_kv
    if len(shape) != 5 or shape[1] != 2 or shape[3] != prompt.num_virtual_tokens:
        yield f"{where}prefix_kv is not the shape of a prefix KV"
    # A graph that takes both has each of its prompts by one of them.
    if (prefix is None) != (prompt.prefix_kv is None) and (prefix is None or table is None):
        yield f"{where}prefix_kv is not what the graph takes"
    first = prefix or table
    dtype = first.dtype if first is not None and first.dtype in ACTIVATIONS else ACTIVATIONS[0]
    if manifest.limits.type_vocab_size:
        inputs.append(("segments", "int64", text))
    # Virtual tokens that are looked up have positions whose logits are nobody's.
    looked_up = table is not None or prefix is None
    if per_token and looked_up:
        inputs.append(("positions", "int64", (KEPT,)))
    if looked_up:
        inputs.append(("table", dtype, (VIRTUAL, _width(table, prompt))))
    if prefix is not None:
        inputs.append(("prefix", dtype, _prefix_shape(prefix, table is not None, prompt, shape)))
        inputs.append(("lengths", "int64", (BATCH,)))
    heads = [spec for spec in given if spec.role == "head"]
    if heads or prefix is not None:
        inputs.append(("prompt", "int64", (BATCH,)))
    inputs += [("head", dtype, _head_shape(spec)) for spec in heads]
    yield from unlike("inputs", given, inputs)
    classes = CLASSES if heads else len(prompt.labels)
    axes = (BATCH, KEPT if looked_up else SEQUENCE) if per_token else (BATCH,)
    yield from unlike("outputs", manifest.graph.outputs, [("logits", "float32", (*axes, classes))])
    if heads and all(CLASSES not in spec.shape for spec in heads):
        yield f"no head has the axis {CLASSES!r} of the logits"


def _width(table: TensorSpec | None, prompt: PromptInfo) -> int | str:
    """The width of virtual tokens: the prompt's, or where that has none any that the graph has."""
    if prompt.token_dim is not None or table is None or len(table.shape) != 2:
        return prompt.token_dim or 0
    return table.shape[1] if _is_size(table.shape[1]) else 0


def _prefix_shape(
    prefix: TensorSpec, beside_table: bool, prompt: PromptInfo, shape: tuple[int, ...]
) -> tuple[int | str, ...]:
    """The shape of the prefixes of a graph: of one that takes virtual tokens too it says how many
    layers there are, whatever the prompt has."""
    if not beside_table:
        return (PREFIXES, shape[2], PREFIX, shape[4])
    if prompt.prefix_kv is not None:
        return (PREFIXES, 2 * shape[0], shape[2], PREFIX, shape[4])
    sizes = [axis for axis in prefix.shape if _is_size(axis)]
    return (PREFIXES, *sizes[:2], PREFIX, *sizes[2:]) if len(sizes) == 3 else (PREFIXES, PREFIX)


def _is_size(axis: int | str) -> bool:
    return isinstance(axis, int) and 1 <= axis <= MOST


def _head_shape(spec: TensorSpec) -> tuple[int | str, ...]:
    """The shape of a head's parameters, which only the model knows, if it can be one."""
    first, *rest = spec.shape or ("",)
    sizes = all(axis == CLASSES or (isinstance(axis, int) and 1 <= axis <= MOST) for axis in rest)
    if first == PROMPTS and 1 <= len(rest) <= 2 and sizes and rest.count(CLASSES) <= 1:
        return spec.shape
    return (PROMPTS, CLASSES)
