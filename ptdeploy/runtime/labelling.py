"""What the engines have in common that give labels: one run, no KV buffer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptdeploy.backends.session import Session
from ptdeploy.bundle import Bundle, Manifest
from ptdeploy.bundle.signature import (
    BATCH,
    CLASSES,
    PREFIX,
    PREFIXES,
    PROMPTS,
    SEQUENCE,
    VIRTUAL,
)
from ptdeploy.bundle.task import TensorSpec
from ptdeploy.runtime.batching import Ids, pack
from ptdeploy.runtime.engine import Engine, Inputs, Metric
from ptdeploy.runtime.layout import ACTIVATIONS, MOST, Specs, unlike
from ptdeploy.runtime.probes import Fed, ProbeRequest, probe_rows, rows_in_words
from ptdeploy.runtime.prompts import PromptInputs
from ptdeploy.runtime.tokenizer import Encoding, Tokenizer

TypeIds = ArrayLike | Sequence[Sequence[int]] | None


class Labelling(Engine):
    """An engine whose logits are of a prompt's labels."""

    def __init__(self, bundle: Bundle, session: Session, tokenizer: Tokenizer | None) -> None:
        super().__init__(bundle, session, tokenizer)
        manifest = self.manifest
        self._of_prompts = PromptInputs(session, manifest, self.prompt)
        self._names = {spec.role: spec.name for spec in manifest.graph.inputs}
        self._logits = manifest.graph.outputs[0].name
        # Fed before each row's text, where the graph looks virtual tokens up.
        self._virtual = self.prompt.virtual_ids(manifest.limits.vocab_size)

    @abstractmethod
    def records(self, inputs: Inputs, truncate: bool, token_type_ids: TypeIds) -> list[Any]:
        """The answer to each input as plain data, ready for JSON."""

    @abstractmethod
    def lines(self, record: Any) -> list[str]:
        """One of `records` as a person reads it."""

    @property
    def metric(self) -> Metric:
        return "accuracy"

    def step_requests(self, batch: int, tokens: int | None) -> Iterator[ProbeRequest]:
        limits = self.limits
        rows = probe_rows(limits, batch, tokens, limits.max_sequence).tolist()
        name = f"request of {rows_in_words(batch)} of {len(rows[0])} tokens"
        yield ProbeRequest(name, batch, len(rows[0]), lambda: self.logits(rows))

    def whole_requests(self, rows: list[list[int]], new_tokens: int) -> Iterator[ProbeRequest]:
        tokens = len(rows[0])
        yield ProbeRequest(f"1 row of {tokens} tokens", 1, tokens, lambda: self.logits(rows[:1]))
        name = f"{len(rows)} rows of {tokens} tokens"
        yield ProbeRequest(name, len(rows), tokens, lambda: self.logits(rows))

    def feed(self, rows: Sequence[Ids], segments: Sequence[Ids], row: int) -> Fed:
        given = self._inputs(rows, segments)
        return Fed(
            {n: a if isinstance(a, np.ndarray) else a.read() for n, a in given.items()},
            row,
            len(rows),
            max(one.size for one in rows),
            rows[row].size,
            self.prompt.info.num_virtual_tokens,
            runs_prefix=self.prompt.prefix_kv is None,
        )

    def _inputs(self, rows: Sequence[Ids], segments: Sequence[Ids] | None) -> dict[str, Any]:
        """What one run is given for rows, by input name; segments are all 0 unless given.

        Virtual tokens that are looked up stand before each row's text, in segment 0.
        """
        names, virtual = self._names, self._virtual
        batch = pack([np.concatenate([virtual, row]) for row in rows])
        given = {names["ids"]: batch.input_ids, names["mask"]: batch.attention_mask}
        if self.takes_segments:
            none = np.zeros_like(virtual)
            types = np.zeros_like(batch.input_ids)
            if segments is not None:
                types = pack([np.concatenate([none, one]) for one in segments]).input_ids
            given[names["segments"]] = types
        return {**given, **self._of_prompts.of_rows(len(rows))}

    def _run(self, rows: Sequence[Ids], segments: Sequence[Ids] | None) -> NDArray[np.float32]:
        """Run rows as one right-padded batch: (rows, classes) or (rows, width, classes)."""
        logits = self._session.run(self._inputs(rows, segments))[self._logits]
        return logits if self.one_answer else logits[:, self._virtual.size :]

    def _parts(
        self, rows: Sequence[Ids], segments: Sequence[Ids] | None
    ) -> Iterator[tuple[Sequence[Ids], NDArray[np.float32]]]:
        """The rows in batches that one run of the engine takes, and what it gives for each."""
        size = self.manifest.limits.max_batch or len(rows)
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            types = None if segments is None else segments[part]
            yield rows[part], self._run(rows[part], types)

    def _batches(
        self, encodings: list[Encoding], size: int
    ) -> list[tuple[list[Encoding], NDArray[np.float32]]]:
        """Encodings in batches of `size`, or of as many as the engine takes, and their logits."""
        size = min(size, self.manifest.limits.max_batch or size)
        parts = [encodings[i : i + size] for i in range(0, len(encodings), size)]
        return [
            (
                part,
                self._run(
                    [np.asarray(e.ids, np.int64) for e in part],
                    [np.asarray(e.type_ids, np.int64) for e in part],
                ),
            )
            for part in parts
        ]


def classifier_problems(manifest: Manifest, axes: tuple[str, ...]) -> Iterator[str]:
    """What in a manifest no classifier has whose logits have those axes, and one of classes."""
    given, prompt = manifest.graph.inputs, manifest.prompt
    where = f"prompts[{manifest.default_prompt!r}]."
    if not prompt.labels:
        yield f"{where}labels are missing"
    text = (BATCH, SEQUENCE)
    inputs: Specs = [("ids", "int64", text), ("mask", "int64", text)]
    prefix = next((spec for spec in given if spec.role == "prefix"), None)
    # What may differ from model to model is taken from where it is, and all else held against it.
    none = (1, 2, 1, prompt.num_virtual_tokens, 1)
    shape = none if prompt.prefix_kv is None else prompt.prefix_kv
    if len(shape) != 5 or shape[1] != 2 or shape[3] != prompt.num_virtual_tokens:
        yield f"{where}prefix_kv is not the shape of a prefix KV"
    if (prefix is None) != (prompt.prefix_kv is None):
        yield f"{where}prefix_kv is not what the graph takes"
    first = prefix or next((spec for spec in given if spec.role == "table"), None)
    dtype = first.dtype if first is not None and first.dtype in ACTIVATIONS else ACTIVATIONS[0]
    if manifest.limits.type_vocab_size:
        inputs.append(("segments", "int64", text))
    if prefix is None:
        inputs.append(("table", dtype, (VIRTUAL, prompt.token_dim or 0)))
    else:
        inputs.append(("prefix", dtype, (PREFIXES, shape[2], PREFIX, shape[4])))
        inputs.append(("lengths", "int64", (BATCH,)))
    heads = [spec for spec in given if spec.role == "head"]
    if heads or prefix is not None:
        inputs.append(("prompt", "int64", (BATCH,)))
    inputs += [("head", dtype, _head_shape(spec)) for spec in heads]
    yield from unlike("inputs", given, inputs)
    classes = CLASSES if heads else len(prompt.labels)
    yield from unlike("outputs", manifest.graph.outputs, [("logits", "float32", (*axes, classes))])
    if heads and all(CLASSES not in spec.shape for spec in heads):
        yield f"no head has the axis {CLASSES!r} of the logits"


def _head_shape(spec: TensorSpec) -> tuple[int | str, ...]:
    """The shape of a head's parameters, which only the model knows, if it can be one."""
    first, *rest = spec.shape or ("",)
    sizes = all(axis == CLASSES or (isinstance(axis, int) and 1 <= axis <= MOST) for axis in rest)
    if first == PROMPTS and 1 <= len(rest) <= 2 and sizes and rest.count(CLASSES) <= 1:
        return spec.shape
    return (PROMPTS, CLASSES)
