"""A dense KV buffer: allocated once, a row's first slots its prefix, updated where it lies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptdeploy.backends.session import DeviceArray, Session
from ptdeploy.bfloat16 import stored, to_stored
from ptdeploy.errors import OutOfMemory
from ptdeploy.runtime.joined import Coming, joined, offsets_of
from ptdeploy.runtime.kv import Prefix, prefix_length
from ptdeploy.runtime.kv_layout import KVLayout
from ptdeploy.runtime.memory import require_memory


class DenseKV:
    """Keys and values of a few rows in `slots` slots each, and the engine bound to them.

    Row i's first `lengths[i]` slots are filled: its prefix, then its text. One array for each
    layer's keys and one for its values, (rows, kv heads, slots, head dim), in the engine's cache
    dtype. The engine reads and writes them in place; nothing is copied from step to step.
    `prefixes` are the rows' own, `beside` inputs that are the same in every step, by name.
    """

    def __init__(
        self,
        session: Session,
        layout: KVLayout,
        prefixes: Sequence[Prefix],
        slots: int,
        beside: Mapping[str, DeviceArray],
    ) -> None:
        self._session, self._beside = session, beside
        self._layout, self._prefixes = layout, list(prefixes)
        self.slots = slots = layout.fixed_slots or slots
        rows = len(prefixes)
        if session.in_host_memory:
            what = f"The KV buffer for {rows} rows of {slots} tokens"
            require_memory(layout.bytes(rows, slots), what)
        try:
            self._placed = {
                name: session.place(_filled(layout, index, prefixes, slots))
                for index, name in enumerate(layout.past)
            }
        except (MemoryError, OutOfMemory) as error:
            raise OutOfMemory(
                f"The KV buffer for {rows} rows of {slots} tokens does not fit in memory.",
                "Send fewer rows at once, or ask for fewer tokens.",
            ) from error
        self._present = dict(zip(layout.past, layout.present, strict=True))
        self._prefilled_well = True
        self.starts = np.array(list(map(prefix_length, prefixes)), np.int64)
        self.lengths = self.starts.copy()
        self._ids = np.zeros((rows, 1), np.int64)
        self._logits = np.zeros((rows, 1, layout.vocabulary), np.float32)
        # A buffer that rows only share for their prefill never decodes.
        self._decode: Callable[[], None] | None = None

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
        """Forget all but each row's prefix, which stays where it is."""
        # The engine is bound to this very array.
        self.lengths[:] = self.starts

    def begin(self, prefixes: Sequence[Prefix], beside: Mapping[str, DeviceArray]) -> bool:
        """Forget all, and let each row begin with its own prefix: those that differ are copied."""
        for row, prefix in enumerate(prefixes):
            if prefix is not self._prefixes[row]:
                self._write_prefix(row, prefix)
                self._prefixes[row], self.starts[row] = prefix, prefix_length(prefix)
        if any(placed is not self._beside[name] for name, placed in beside.items()):
            self._beside, self._decode = beside, None
        self.reset()
        return True

    def prefill(
        self, row: int, ids: NDArray[np.int64], into: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Append tokens to a row; gives logits (kept, vocabulary) of the last one, or of each
        where they are to be written `into` an array.

        One row at a time: a row's tokens never wait for a longer row's padding.
        """
        assert ids.size or into is not None, "an engine's row has a token"
        size = self._layout.prefill if into is None else self._layout.kept
        logits = np.empty((1, self._layout.vocabulary), np.float32) if into is None else into
        for start in range(0, ids.size, size):
            piece = ids[start : start + size]
            positions = np.arange(piece.size - 1 if into is None else 0, piece.size)
            part = logits if into is None else into[start : start + size]
            new = np.ascontiguousarray(piece[None])
            self._bind(slice(row, row + 1), new, positions, part[None])()
            self.lengths[row] += piece.size
            self._prefilled_well &= bool(np.isfinite(part[-1]).all())
        return logits

    def prefill_all(
        self, ids: Sequence[NDArray[np.int64]], into: Sequence[NDArray[np.float32]] | None = None
    ) -> list[NDArray[np.float32]]:
        """Append to every row its tokens; gives the logits of each row's last one or of each.

        Row by row, but short rows together, where the engine keeps them apart.
        """
        groups = [[row] for row in range(len(ids))]
        if self._layout.offsets is not None:
            starts = self.starts.tolist()
            rows = [
                Coming(one.size, id(prefix), start)
                for one, prefix, start in zip(ids, self._prefixes, starts, strict=True)
            ]
            most = self._layout.prefill if into is None else self._layout.kept
            groups = joined(rows, self._layout.context, most, self._layout.mixes)
        logits: dict[int, NDArray[np.float32]] = {}
        for group in groups:
            of = {row: ids[row] for row in group}
            own = {row: None if into is None else into[row] for row in group}
            whole = self._prefill_joined(of, own) if len(group) > 1 else None
            # No mask hides a number that is none: the rows beside such a one are run without it.
            logits |= whole or {row: self.prefill(row, ids[row], own[row]) for row in group}
        return [logits[row] for row in range(len(ids))]

    def _prefill_joined(
        self,
        ids: Mapping[int, NDArray[np.int64]],
        into: Mapping[int, NDArray[np.float32] | None],
    ) -> dict[int, NDArray[np.float32]] | None:
        """Run rows as one sequence behind their prefixes, in a buffer of its own, and take its
        slots.

        None, and nothing is taken, where its logits are not finite.
        """
        sizes = [one.size for one in ids.values()]
        ends = np.cumsum(sizes)
        whole, firsts = self._behind_prefixes(list(ids), int(ends[-1]))
        past, starts = int(whole.lengths[0]), self.starts[list(ids)]
        every = into[next(iter(ids))] is not None
        positions = np.arange(ends[-1]) if every else ends - 1
        logits = np.empty((1, positions.size, self._logits.shape[2]), np.float32)
        tokens = np.concatenate(list(ids.values()))[None]
        offsets = offsets_of(sizes, firsts, past - firsts - starts)
        whole._bind(slice(None), tokens, positions, logits, offsets)()
        if not np.isfinite(logits).all():
            return None
        for row, size, end in zip(ids, sizes, ends, strict=True):
            self._copy_slots(row, int(self.starts[row]), whole, 0, past + end - size, size)
            self.lengths[row] += size
        kept = dict(zip(ids, np.split(logits[0], ends[:-1] if every else len(sizes)), strict=True))
        for row, array in into.items():
            if array is not None:
                array[...] = kept[row]
                kept[row] = array
        return kept

    def _behind_prefixes(
        self, rows: Sequence[int], tokens: int
    ) -> tuple[DenseKV, NDArray[np.int64]]:
        """A buffer of one row that begins with each of these rows' prefixes once, with room for so
        many tokens behind them, and at which slot each row's is."""
        holders = {id(self._prefixes[row]): row for row in rows}
        sizes = self.starts[list(holders.values())]
        firsts = dict(zip(holders, np.cumsum(sizes) - sizes, strict=True))
        # Without a past attention takes only the first token's position: there is a slot which no
        # row sees.
        past = max(int(sizes.sum()), 1)
        whole = DenseKV(self._session, self._layout, [None], past + tokens, self._beside)
        for prefix, row in holders.items():
            if size := int(self.starts[row]):
                whole._copy_slots(0, int(firsts[prefix]), self, row, 0, size)
        whole.lengths[:] = past
        return whole, np.array([firsts[id(self._prefixes[row])] for row in rows], np.int64)

    def decode(self, tokens: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """Append one token to every row; gives logits (rows, vocabulary), overwritten next time."""
        self._ids[:, 0] = tokens
        if self._decode is None:
            self._decode = self._bound()
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
        if length > first_slot:
            self._copy_slots(row, first_slot, source, source_row, first_slot, length - first_slot)
        self.lengths[row] = length

    def _copy_slots(
        self, row: int, slot: int, source: DenseKV, source_row: int, source_slot: int, count: int
    ) -> None:
        """Make `count` slots of `row`, from `slot` on, what another buffer's row has."""
        part = slice(source_slot, source_slot + count)
        for name in self._placed:
            self._write_slots(name, row, slot, source._placed[name].read()[source_row, :, part])

    def _write_prefix(self, row: int, prefix: Prefix) -> None:
        """Put a prefix into a row's first slots, and zeros where the one before it was longer.

        An engine may read slots under a mask, and a mask hides no infinity.
        """
        slots = max(prefix_length(prefix), int(self.starts[row]))
        for index, name in enumerate(self._placed):
            self._write_slots(name, row, 0, _filled(self._layout, index, [prefix], slots)[0])

    def _write_slots(self, name: str, row: int, slot: int, states: NDArray[Any]) -> None:
        """Put states (heads, new, width) into a row of one array, from `slot` on."""
        placed = self._placed[name]
        if self._session.in_host_memory:
            # Eight rows of a small model are hundreds of copies: each is one, of the slots alone.
            placed.read()[row, :, slot : slot + states.shape[1]] = states
        else:
            new = self._session.place(np.ascontiguousarray(states[None]))
            placed.rows(slice(row, row + 1)).write_slots(np.array([slot], np.int64), new)

    def _bound(self) -> Callable[[], None]:
        """A decode step of all rows."""
        return self._bind(slice(None), self._ids, np.zeros(1, np.int64), self._logits)

    def _bind(
        self,
        rows: slice,
        ids: NDArray[np.int64],
        positions: NDArray[np.int64],
        logits: NDArray[np.float32],
        offsets: NDArray[np.int64] | None = None,
    ) -> Callable[[], None]:
        lengths = self.lengths[rows]
        past = {name: placed.rows(rows) for name, placed in self._placed.items()}
        inputs = self._inputs(ids, lengths, positions, {**self._beside, **past}, offsets)
        if self._layout.in_place:
            new: dict[str, Any] = past
        else:
            new = {
                name: self._session.place(
                    _filled(self._layout, 0, [None] * lengths.size, ids.shape[1])
                )
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
        offsets: NDArray[np.int64] | None = None,
    ) -> dict[str, Any]:
        """A step's inputs by the names of the graph's; `offsets` of rows that come as one."""
        names = self._layout
        step = {names.ids: ids, names.lengths: lengths, names.positions: positions}
        if names.offsets is not None:
            offsets = offsets_of([ids.shape[1]]) if offsets is None else offsets
            step[names.offsets] = offsets if names.mixes else offsets[0]
        return {**step, **kept}


def _filled(layout: KVLayout, index: int, prefixes: Sequence[Prefix], slots: int) -> NDArray[Any]:
    """One of the layout's arrays for rows of so many slots: each row's own prefix, then zeros."""
    array = np.zeros((len(prefixes), layout.heads, slots, layout.width), stored(layout.dtype))
    for row, prefix in enumerate(prefixes):
        if prefix is not None:
            part = prefix.reshape(-1, *prefix.shape[2:])[index]
            array[row, :, : part.shape[1]] = to_stored(part, layout.dtype)
    return array
