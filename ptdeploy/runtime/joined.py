"""Which rows' tokens run as one sequence, where an engine can keep their rows apart."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Tokens of one such run: with more, products gain little, and attention looks at ever more tokens
# of other rows.
MOST = 128
# Slots before them, where they are several prompts': they are copied for the run.
PAST = 2048
# Pairs of a token and a slot of another row's prompt that a row may add: attention computes them
# for nothing. On Qwen2.5-0.5B's shape 32,000 take as long as reading the weights once more.
HIDDEN = 24576


class Coming(NamedTuple):
    """A row whose tokens come: how many, what lies before them, and how many slots that fills."""

    size: int
    past: Hashable
    start: int


class _Group:
    """Rows that run as one sequence: how many tokens, and the slots of what lies before them."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self._tokens = self._slots = 0
        self._pasts = set[Hashable]()

    def takes(self, row: Coming, context: int, most: int, mixes: bool) -> bool:
        tokens, slots, hidden = self._tokens + row.size, self._slots, 0
        if row.past in self._pasts:
            hidden = row.size * (slots - row.start)
        elif self.rows:
            hidden = row.size * slots + self._tokens * row.start
            slots += row.start
            if not mixes or slots > PAST:
                return False
        else:
            slots = row.start
        return tokens <= most and max(slots, 1) + tokens <= context and hidden <= HIDDEN

    def add(self, number: int, row: Coming) -> None:
        self.rows.append(number)
        self._tokens += row.size
        if row.past not in self._pasts:
            self._pasts.add(row.past)
            self._slots += row.start


def joined(
    rows: Sequence[Coming], context: int, engine: int = MOST, mixes: bool = True
) -> list[list[int]]:
    """The rows in groups that run as one sequence each, by their numbers.

    The tokens of a group and all that lies before them, each prompt once and one slot at least,
    fit `context`; an `engine` runs that many new ones at most. Unless it `mixes`, rows of one group
    have the same before them, something at least. A row that no other joins is a group of its own.
    The C++ library makes the same groups (joined.cc).
    """
    groups: list[_Group] = []
    last = _Group()
    first: dict[Hashable, int] = {}
    for number, row in enumerate(rows):
        first.setdefault(row.past, number)
    # Rows of one prompt are neighbours, so that it lies in as few groups as can be.
    for number in sorted(range(len(rows)), key=lambda number: first[rows[number].past]):
        row, told = rows[number], (context, min(MOST, engine), mixes)
        if not row.size or not (mixes or row.start) or not _Group().takes(row, *told):
            alone = _Group()
            alone.add(number, row)
            groups.append(alone)
            continue
        if not last.rows or not last.takes(row, *told):
            last = _Group()
            groups.append(last)
        last.add(number, row)
    return [group.rows for group in groups]


def offsets_of(
    sizes: Sequence[int], before: ArrayLike = 0, behind: ArrayLike = 0
) -> NDArray[np.int64]:
    """What keeps apart rows that come as one sequence, int64 (3, tokens).

    Of each token its place in its row, and how many of the first and of the last slots of the past
    are not its row's: `before` and `behind` of each row, or of all.
    """
    places = np.concatenate([np.arange(size) for size in sizes])
    hidden = [np.repeat(np.broadcast_to(one, len(sizes)), sizes) for one in (before, behind)]
    offsets: NDArray[np.int64] = np.stack([places, *hidden]).astype(np.int64)
    return offsets
