"""What the engines have in common that give labels: one run, no KV buffer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptdeploy.bundle import Manifest
from ptdeploy.bundle.signature import BATCH, SEQUENCE
from ptdeploy.runtime.batching import Batch, Ids, pack
from ptdeploy.runtime.engine import Engine, Inputs, Metric
from ptdeploy.runtime.layout import Specs, unlike
from ptdeploy.runtime.probes import Fed, ProbeRequest, probe_rows, rows_in_words
from ptdeploy.runtime.tokenizer import Encoding

TypeIds = ArrayLike | Sequence[Sequence[int]] | None


class Labelling(Engine):
    """An engine whose logits are of the manifest's labels."""

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
        limits = self.manifest.limits
        rows = probe_rows(limits, batch, tokens, limits.max_sequence).tolist()
        name = f"request of {rows_in_words(batch)} of {len(rows[0])} tokens"
        yield ProbeRequest(name, batch, len(rows[0]), lambda: self.logits(rows))

    def whole_requests(self, rows: list[list[int]], new_tokens: int) -> Iterator[ProbeRequest]:
        tokens = len(rows[0])
        yield ProbeRequest(f"1 row of {tokens} tokens", 1, tokens, lambda: self.logits(rows[:1]))
        name = f"{len(rows)} rows of {tokens} tokens"
        yield ProbeRequest(name, len(rows), tokens, lambda: self.logits(rows))

    def feed(self, rows: Sequence[Ids], segments: Sequence[Ids], row: int) -> Fed:
        batch, prompt = pack(rows), self.manifest.prompt
        return Fed(
            self._inputs(batch, segments),
            row,
            len(rows),
            batch.input_ids.shape[1],
            rows[row].size,
            prompt.num_virtual_tokens,
            runs_prefix=prompt.prefix_kv is None,
        )

    def _inputs(self, batch: Batch, segments: Sequence[Ids] | None) -> dict[str, NDArray[Any]]:
        """The arrays of one run, by input name; segments are all 0 unless given."""
        feed: dict[str, NDArray[Any]] = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
        }
        if self.takes_segments:
            feed["token_type_ids"] = (
                np.zeros_like(batch.input_ids) if segments is None else pack(segments).input_ids
            )
        return feed

    def _run(self, rows: Sequence[Ids], segments: Sequence[Ids] | None) -> NDArray[np.float32]:
        """Run rows as one right-padded batch: (rows, classes) or (rows, width, classes)."""
        return self._session.run(self._inputs(pack(rows), segments))["logits"]

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


def classifier_problems(manifest: Manifest, logits: tuple[int | str, ...]) -> Iterator[str]:
    """What in a manifest no classifier has whose logits have that shape."""
    inputs: Specs = [
        (name, "int64", (BATCH, SEQUENCE))
        for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    if len(manifest.inputs) < 3:
        inputs.pop()
    yield from unlike("inputs", manifest.inputs, inputs)
    yield from unlike("outputs", manifest.outputs, [("logits", "float32", logits)])
    if not manifest.labels:
        yield "labels are missing"
    shape = manifest.prompt.prefix_kv
    if shape is not None and (
        len(shape) != 5 or shape[1] != 2 or shape[3] != manifest.prompt.num_virtual_tokens
    ):
        yield "prompt.prefix_kv is not the shape of a prefix KV"
