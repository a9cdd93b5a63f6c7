"""The KV buffer: allocated once, its first slots the frozen prefix, updated where it lies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptdeploy.bundle import Manifest
from ptdeploy.errors import InputError
from ptdeploy.targets import Session

# A prefill longer than this runs in pieces: an engine's scratch space grows with its square.
PREFILL = 512


class KVBuffer:
    """Keys and values of a few rows in `slots` slots each, and the engine bound to them.

    Row i's first `lengths[i]` slots are filled: the virtual tokens, then its text. One array for
    each layer's keys and one for its values, (rows, kv heads, slots, head dim), in the engine's
    cache dtype. The engine reads and writes them in place; nothing is copied from step to step.
    """

    def __init__(
        self,
        session: Session,
        manifest: Manifest,
        prefix_kv: NDArray[np.float32] | None,
        rows: int,
        slots: int,
    ) -> None:
        self._session = session
        self.slots = slots
        past = [spec for spec in manifest.inputs if spec.name.startswith("past_key_values.")]
        present = [spec.name for spec in manifest.outputs if spec.name.startswith("present.")]
        self._in_place = manifest.graph.route == "fused"
        vocabulary = int(manifest.outputs[0].shape[-1])
        try:
            self._arrays = {
                spec.name: np.zeros(
                    (rows, int(spec.shape[1]), slots, int(spec.shape[3])), spec.dtype
                )
                for spec in past
            }
        except MemoryError:
            raise InputError(
                f"The KV buffer for {rows} rows of {slots} tokens does not fit in memory.",
                "Send fewer rows at once, or ask for fewer tokens.",
            ) from None
        self._present = dict(zip(self._arrays, present, strict=True))
        self.lengths = np.zeros(rows, np.int64)
        self.prefix = 0
        if prefix_kv is not None:
            self.prefix = prefix_kv.shape[3]
            flat = prefix_kv.reshape(-1, *prefix_kv.shape[2:])
            for array, tensor in zip(self._arrays.values(), flat, strict=True):
                array[:, :, : self.prefix] = tensor
            self.lengths[:] = self.prefix
        self._ids = np.zeros((rows, 1), np.int64)
        self._logits = np.zeros((rows, 1, vocabulary), np.float32)
        self._decode = self._bind(slice(None), self._ids, np.zeros(1, np.int64), self._logits)

    @property
    def rows(self) -> int:
        return len(self.lengths)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self._arrays.values())

    def reset(self) -> None:
        """Forget all but the virtual tokens, which stay where they are."""
        self.lengths[:] = self.prefix

    def prefill(
        self, row: int, ids: NDArray[np.int64], every_position: bool = False
    ) -> NDArray[np.float32]:
        """Append tokens to a row; gives logits (kept, vocabulary) of the last one or of each.

        One row at a time: a row's tokens never wait for a longer row's padding.
        """
        kept: list[NDArray[np.float32]] = []
        for start in range(0, ids.size, PREFILL):
            piece = ids[start : start + PREFILL]
            first = 0 if every_position else piece.size - 1
            positions = np.arange(first, piece.size)
            logits = np.empty((1, positions.size, self._logits.shape[2]), np.float32)
            self._bind(slice(row, row + 1), np.ascontiguousarray(piece[None]), positions, logits)()
            self.lengths[row] += piece.size
            kept.append(logits[0])
        if not every_position:
            return kept[-1]
        none = np.zeros((0, self._logits.shape[2]), np.float32)
        every: NDArray[np.float32] = np.concatenate([none, *kept])
        return every

    def decode(self, tokens: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """Append one token to every row; gives logits (rows, vocabulary), overwritten next time."""
        self._ids[:, 0] = tokens
        self._decode()
        self.lengths += 1
        logits: NDArray[np.float32] = self._logits[:, 0]
        return logits

    def feed(self, ids: NDArray[np.int64], every_position: bool) -> dict[str, NDArray[Any]]:
        """What the engine would be given for tokens (rows, new), as arrays by input name."""
        first = 0 if every_position else ids.shape[1] - 1
        return {
            "input_ids": np.ascontiguousarray(ids),
            "past_lengths": self.lengths.copy(),
            "logits_positions": np.arange(first, ids.shape[1]),
            **self._arrays,
        }

    def copy_row(self, row: int, source: KVBuffer, source_row: int, first_slot: int = 0) -> None:
        """Make `row` what another buffer's row is, from `first_slot` on."""
        length = int(source.lengths[source_row])
        for name, array in self._arrays.items():
            array[row, :, first_slot:length] = source._arrays[name][
                source_row, :, first_slot:length
            ]
        self.lengths[row] = length

    def _bind(
        self,
        rows: slice,
        ids: NDArray[np.int64],
        positions: NDArray[np.int64],
        logits: NDArray[np.float32],
    ) -> _Step:
        lengths = self.lengths[rows]
        past = {name: array[rows] for name, array in self._arrays.items()}
        inputs: dict[str, NDArray[Any]] = {
            "input_ids": ids,
            "past_lengths": lengths,
            "logits_positions": positions,
            **past,
        }
        new = past
        if not self._in_place:
            new = {
                name: np.empty((a.shape[0], a.shape[1], ids.shape[1], a.shape[3]), a.dtype)
                for name, a in past.items()
            }
        present = {self._present[name]: array for name, array in new.items()}
        run = self._session.bind(inputs, {"logits": logits, **present})
        return _Step(
            run,
            [] if self._in_place else list(zip(past.values(), new.values(), strict=True)),
            lengths,
        )


class _Step:
    """One run over bound arrays; where the engine gives new KV apart, it is put into the buffer."""

    def __init__(
        self, run: Any, moves: list[tuple[NDArray[Any], NDArray[Any]]], lengths: NDArray[np.int64]
    ) -> None:
        self._run, self._moves, self._lengths = run, moves, lengths

    def __call__(self) -> None:
        self._run()
        for buffer, new in self._moves:
            for row, length in enumerate(self._lengths):
                buffer[row, :, length : length + new.shape[2]] = new[row]
