"""A dense KV buffer: allocated once, its first slots the frozen prefix, updated where it lies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptdeploy.backends.session import DeviceArray, Session
from ptdeploy.errors import OutOfMemory
from ptdeploy.runtime.bfloat16 import stored, to_stored
from ptdeploy.runtime.kv_layout import KVLayout
from ptdeploy.runtime.memory import require_memory


class DenseKV:
    """Keys and values of a few rows in `slots` slots each, and the engine bound to them.

    Row i's first `lengths[i]` slots are filled: the virtual tokens, then its text. One array for
    each layer's keys and one for its values, (rows, kv heads, slots, head dim), in the engine's
    cache dtype. The engine reads and writes them in place; nothing is copied from step to step.
    `beside` are inputs that are the same in every step, by name.
    """

    def __init__(
        self,
        session: Session,
        layout: KVLayout,
        prefix_kv: NDArray[np.float32] | None,
        rows: int,
        slots: int,
        beside: Mapping[str, DeviceArray],
    ) -> None:
        self._session, self._beside = session, beside
        self._layout = layout
        self.slots = slots = layout.fixed_slots or slots
        self.prefix = 0 if prefix_kv is None else prefix_kv.shape[3]
        prefixes: Sequence[NDArray[np.float32] | None] = [None] * len(layout.past)
        if prefix_kv is not None:
            prefixes = list(prefix_kv.reshape(-1, *prefix_kv.shape[2:]))
        if getattr(session, "in_host_memory", False):
            what = f"The KV buffer for {rows} rows of {slots} tokens"
            require_memory(layout.bytes(rows, slots), what)
        try:
            self._placed = {
                name: session.place(_filled(layout, rows, slots, prefix))
                for name, prefix in zip(layout.past, prefixes, strict=True)
            }
        except (MemoryError, OutOfMemory) as error:
            raise OutOfMemory(
                f"The KV buffer for {rows} rows of {slots} tokens does not fit in memory.",
                "Send fewer rows at once, or ask for fewer tokens.",
            ) from error
        self._present = dict(zip(layout.past, layout.present, strict=True))
        self._prefilled_well = True
        self.lengths = np.full(rows, self.prefix, np.int64)
        self._ids = np.zeros((rows, 1), np.int64)
        self._logits = np.zeros((rows, 1, layout.vocabulary), np.float32)
        self._decode = self._bind(slice(None), self._ids, np.zeros(1, np.int64), self._logits)

    @property
    def rows(self) -> int:
        return len(self.lengths)

    @property
    def is_sound(self) -> bool:
        """Whether nothing it was filled with overflowed.

        An engine that reads all slots under a mask would carry a NaN into the next request.
        """
        return self._prefilled_well and bool(np.isfinite(self._logits).all())

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
        size = self._layout.kept if every_position else self._layout.prefill
        for start in range(0, ids.size, size):
            piece = ids[start : start + size]
            first = 0 if every_position else piece.size - 1
            positions = np.arange(first, piece.size)
            logits = np.empty((1, positions.size, self._logits.shape[2]), np.float32)
            self._bind(slice(row, row + 1), np.ascontiguousarray(piece[None]), positions, logits)()
            self.lengths[row] += piece.size
            self._prefilled_well &= bool(np.isfinite(logits[0, -1]).all())
            kept.append(logits[0])
        if not every_position:
            return kept[-1]
        none = np.zeros((0, self._logits.shape[2]), np.float32)
        every: NDArray[np.float32] = np.concatenate([none, *kept])
        return every

    def prefill_all(self, ids: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float32]]:
        """Append to every row its tokens, row by row; gives the logits of each row's last one."""
        return [self.prefill(row, tokens)[0] for row, tokens in enumerate(ids)]

    def decode(self, tokens: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """Append one token to every row; gives logits (rows, vocabulary), overwritten next time."""
        self._ids[:, 0] = tokens
        self._decode()
        self.lengths += 1
        logits: NDArray[np.float32] = self._logits[:, 0]
        return logits

    def feed(self, ids: NDArray[np.int64], every_position: bool) -> dict[str, NDArray[Any]]:
        """What the engine would be given for tokens (rows, new), as arrays by input name."""
        positions = np.arange(0 if every_position else ids.shape[1] - 1, ids.shape[1])
        kept = {name: one.read() for name, one in {**self._beside, **self._placed}.items()}
        return self._inputs(np.ascontiguousarray(ids), self.lengths.copy(), positions, kept)

    def copy_row(self, row: int, source: DenseKV, source_row: int, first_slot: int = 0) -> None:
        """Make `row` what another buffer's row is, from `first_slot` on."""
        length = int(source.lengths[source_row])
        for name, placed in self._placed.items():
            array, other = placed.read(), source._placed[name].read()
            array[row, :, first_slot:length] = other[source_row, :, first_slot:length]
            placed.write(array)
        self.lengths[row] = length

    def _bind(
        self,
        rows: slice,
        ids: NDArray[np.int64],
        positions: NDArray[np.int64],
        logits: NDArray[np.float32],
    ) -> Callable[[], None]:
        lengths = self.lengths[rows]
        past = {name: placed.rows(rows) for name, placed in self._placed.items()}
        inputs = self._inputs(ids, lengths, positions, {**self._beside, **past})
        if self._layout.in_place:
            new: dict[str, Any] = past
        else:
            new = {
                name: self._session.place(_filled(self._layout, lengths.size, ids.shape[1], None))
                for name in self._layout.past
            }
        present = {self._present[name]: array for name, array in new.items()}
        run = self._session.bind(inputs, {self._layout.logits: logits, **present})
        if self._layout.in_place:
            return run

        def step() -> None:
            run()
            for name, tokens in new.items():
                past[name].write_slots(lengths, tokens)

        return step

    def _inputs(
        self,
        ids: NDArray[np.int64],
        lengths: NDArray[np.int64],
        positions: NDArray[np.int64],
        kept: Mapping[str, Any],
    ) -> dict[str, Any]:
        """A step's inputs by the names of the graph's."""
        names = self._layout
        return {names.ids: ids, names.lengths: lengths, names.positions: positions, **kept}


def _filled(
    layout: KVLayout, rows: int, slots: int, prefix: NDArray[np.float32] | None
) -> NDArray[Any]:
    """Zeros, and in each row's first slots the prefix (kv heads, virtual tokens, head dim)."""
    array = np.zeros((rows, layout.heads, slots, layout.width), stored(layout.dtype))
    if prefix is not None:
        array[:, :, : prefix.shape[1]] = to_stored(prefix, layout.dtype)
    return array
