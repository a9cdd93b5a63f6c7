"""A KV buffer in blocks: a prefix's full blocks lie once, and rows of any length run together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptdeploy.backends.session import DeviceArray, PagedCache, Session
from ptdeploy.errors import OutOfMemory
from ptdeploy.runtime.kv import Prefix, prefix_length
from ptdeploy.runtime.kv_layout import KVLayout
from ptdeploy.runtime.memory import require_memory

# A layer's arrays, in the order that the paged program takes them.
_KINDS = ("key", "value")
# The paged program takes their numbers in 32 bits.
_MOST_BLOCKS = 2**31 - 1


class PagedKV:
    """Keys and values of a few rows with room for `slots` tokens each, in blocks.

    One array for each layer's keys and one for its values, as `cache` makes them. Row i's tokens
    lie in the blocks `tables[i]`, one after another: first those that its prefix fills, which all
    rows of that prefix share, then its own. `prefixes` and `beside` as for the dense one.
    """

    def __init__(
        self,
        session: Session,
        layout: KVLayout,
        prefixes: Sequence[Prefix],
        slots: int,
        beside: Mapping[str, DeviceArray],
        cache: PagedCache,
    ) -> None:
        self._session, self._layout, self._beside = session, layout, beside
        self._cache, self._block, self.slots = cache, cache.block, slots
        self._prefixes = list(prefixes)
        self.starts, self.lengths = (np.zeros(len(prefixes), np.int64) for _ in range(2))
        count = self._blocks_for(prefixes)
        what = f"The KV buffer for {len(prefixes)} rows of {slots} tokens"
        layers, sizes = range(len(layout.past) // 2), (count, layout.heads, layout.width)
        logits = len(prefixes) * layout.vocabulary * 4
        require_memory(len(layers) * cache.bytes(*sizes) + logits, what)
        try:
            if count > _MOST_BLOCKS:
                raise MemoryError
            self.tables = self._arranged(prefixes)
            self._caches = {
                f"{kind}_cache.{layer}": cache.empty(kind == "key", *sizes)
                for layer in layers
                for kind in _KINDS
            }
        except MemoryError as error:
            raise OutOfMemory(
                f"{what} does not fit in memory.",
                "Send fewer rows at once, or ask for fewer tokens.",
            ) from error
        self._fill()
        self.is_sound = True

    def _blocks_for(self, prefixes: Sequence[Prefix]) -> int:
        """How many blocks rows of these prefixes take in all."""
        needed = -(-self.slots // self._block)
        full = {id(prefix): prefix_length(prefix) // self._block for prefix in prefixes}
        return sum(full.values()) + sum(needed - full[id(prefix)] for prefix in prefixes)

    def _arranged(self, prefixes: Sequence[Prefix]) -> NDArray[np.int32]:
        """Each row's blocks."""
        needed, count = -(-self.slots // self._block), 0
        shared: dict[int, NDArray[np.int32]] = {}
        tables = []
        for prefix in prefixes:
            full = prefix_length(prefix) // self._block
            if id(prefix) not in shared:
                shared[id(prefix)] = np.arange(count, count + full, dtype=np.int32)
                count += full
            own = np.arange(count, count + needed - full, dtype=np.int32)
            count += own.size
            tables.append(np.concatenate([shared[id(prefix)], own]))
        return np.stack(tables)

    def _all(self) -> Iterator[tuple[bool, NDArray[Any]]]:
        """Each layer's keys and values, and whether it is keys."""
        for number, cache in enumerate(self._caches.values()):
            yield _KINDS[number % 2] == "key", cache

    def _fill(self) -> None:
        """Put each prefix into the blocks that its rows share, the rest in each row's first."""
        filled = set[int]()
        for row, prefix in enumerate(self._prefixes):
            self.starts[row] = prefix_length(prefix)
            full = prefix_length(prefix) // self._block
            self._write(row, prefix, full if id(prefix) in filled else 0)
            filled.add(id(prefix))
        self.lengths[:] = self.starts

    def _write(self, row: int, prefix: Prefix, first: int) -> None:
        """Put a row's prefix into its blocks, from the block `first` of it on."""
        if prefix is None:
            return
        parts = prefix.reshape(-1, *prefix.shape[2:])
        for index in range(first, -(-prefix.shape[3] // self._block)):
            where, at = self.tables[row, index], slice(index * self._block, None)
            for (is_key, cache), part in zip(self._all(), parts, strict=True):
                self._cache.write(cache, is_key, where, part[:, at][:, : self._block])

    @property
    def rows(self) -> int:
        return len(self.lengths)

    def reset(self) -> None:
        """Forget all but each row's prefix."""
        self.lengths[:] = self.starts
        if self._cache.changes_when_appended_to:
            for row, prefix in enumerate(self._prefixes):
                self._write(row, prefix, prefix_length(prefix) // self._block)

    def begin(self, prefixes: Sequence[Prefix], beside: Mapping[str, DeviceArray]) -> bool:
        """Forget all, and let each row begin with its own prefix, where there are blocks enough."""
        self._beside = beside
        if all(one is other for one, other in zip(prefixes, self._prefixes, strict=True)):
            self.reset()
            return True
        if self._blocks_for(prefixes) > next(iter(self._caches.values())).shape[0]:
            return False
        self.tables, self._prefixes = self._arranged(prefixes), list(prefixes)
        self._fill()
        return True

    def prefill(
        self, row: int, ids: NDArray[np.int64], into: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Append tokens to a row; gives logits (kept, vocabulary) of the last one, or of each
        where they are to be written `into` an array."""
        assert ids.size or into is not None, "an engine's row has a token"
        size = self._layout.prefill if into is None else self._layout.kept
        logits = np.empty(0, np.float32) if into is None else into
        for start in range(0, ids.size, size):
            found = self._append({row: ids[start : start + size]}, into is not None)
            if into is None:
                logits = found
            else:
                into[start : start + size] = found
        return logits

    def prefill_all(
        self, ids: Sequence[NDArray[np.int64]], into: Sequence[NDArray[np.float32]] | None = None
    ) -> list[NDArray[np.float32]]:
        """Append to every row its tokens; gives the logits of each row's last one or of each.

        All together, but where those of each are asked for, which are many.
        """
        if into is not None:
            rows = enumerate(zip(ids, into, strict=True))
            return [self.prefill(row, tokens, array) for row, (tokens, array) in rows]
        logits: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(ids)
        left = dict(enumerate(ids))
        while left:
            now: dict[int, NDArray[np.int64]] = {}
            room = self._layout.prefill
            for row, tokens in left.items():
                if room:
                    now[row] = tokens[:room]
                    room -= now[row].size
            for row, found in zip(now, self._append(now, False), strict=True):
                logits[row] = found[None]
            left = {row: t[now[row].size if row in now else 0 :] for row, t in left.items()}
            left = {row: tokens for row, tokens in left.items() if tokens.size}
        return logits

    def decode(self, tokens: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """Append one token to every row; gives logits (rows, vocabulary)."""
        ids = np.asarray(tokens, np.int64)
        return self._append({row: ids[row : row + 1] for row in range(self.rows)}, False)

    def copy_row(self, row: int, source: PagedKV, source_row: int, first_slot: int = 0) -> None:
        """Make `row` what another buffer's row is; both begin with the same prefix."""
        length = int(source.lengths[source_row])
        blocks = slice(int(self.starts[row]) // self._block, -(-length // self._block))
        for name, cache in self._caches.items():
            cache[self.tables[row, blocks]] = source._caches[name][
                source.tables[source_row, blocks]
            ]
        self.lengths[row] = length

    def feed(self, ids: NDArray[np.int64], every_position: bool) -> dict[str, NDArray[Any]]:
        """What a dense engine would be given for tokens (rows, new), as arrays by input name."""
        positions = np.arange(0 if every_position else ids.shape[1] - 1, ids.shape[1])
        names = self._layout
        past = {
            name: np.ascontiguousarray(
                np.moveaxis(self._cache.read(cache[self.tables], is_key), 2, 1).reshape(
                    self.rows, names.heads, -1, names.width
                )
            )
            for name, (is_key, cache) in zip(names.past, self._all(), strict=True)
        }
        beside = {name: one.read() for name, one in self._beside.items()}
        return {
            names.ids: np.ascontiguousarray(ids),
            names.lengths: self.lengths.copy(),
            names.positions: positions,
            **beside,
            **past,
        }

    def _append(
        self, tokens: Mapping[int, NDArray[np.int64]], every_position: bool
    ) -> NDArray[np.float32]:
        """Run some rows' new tokens in one pass; gives logits of each row's last, or of each."""
        rows = list(tokens)
        sizes = np.array([tokens[row].size for row in rows])
        ends = np.cumsum(sizes)
        sampled = np.arange(ends[-1]) if every_position else ends - 1
        step = step_inputs(
            self._layout,
            [tokens[row] for row in rows],
            self.lengths[rows],
            [self.tables[row] for row in rows],
            self._block,
            sampled,
        )
        given = self._session.run({**step, **self._beside, **self._caches})
        self.lengths[rows] += sizes
        logits: NDArray[np.float32] = given[self._layout.logits][:, 0]
        self.is_sound &= bool(np.isfinite(logits).all())
        return logits


def step_inputs(
    layout: KVLayout,
    tokens: Sequence[NDArray[np.int64]],
    past: NDArray[np.int64],
    tables: Sequence[NDArray[np.int32]],
    block: int,
    sampled: NDArray[np.int64],
) -> dict[str, NDArray[Any]]:
    """One pass over some rows' new tokens, all but the caches, by the paged program's names.

    Of each row its tokens, how many are `past`, and its blocks; `sampled` are the tokens, counted
    through all rows, that logits are wanted of.
    """
    sizes = np.array([one.size for one in tokens])
    filled = past + sizes
    blocks = -(-filled // block)
    positions = [at + np.arange(n) for at, n in zip(past, sizes, strict=True)]
    used = [table[:count] for table, count in zip(tables, blocks, strict=True)]
    return {
        layout.ids: np.concatenate(tokens)[:, None],
        layout.lengths: np.concatenate(positions).astype(np.int64),
        "past_lens": past.astype(np.int32),
        "subsequence_begins": np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32),
        "block_indices": np.concatenate(used).astype(np.int32),
        "block_indices_begins": np.concatenate([[0], np.cumsum(blocks)]).astype(np.int32),
        "max_context_len": np.array(filled.max(), np.int32),
        "sampled": sampled.astype(np.int64),
    }
