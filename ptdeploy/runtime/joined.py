"""Which rows' tokens run as one sequence, where an engine can keep their rows apart."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

# Tokens of one such run: with more, products gain little, and attention looks at ever more tokens
# of other rows.
MOST = 128


def joined(
    sizes: Sequence[int],
    pasts: Sequence[Hashable],
    starts: Sequence[int],
    context: int,
    engine: int = MOST,
) -> list[list[int]]:
    """The rows in groups that run as one sequence each, by their numbers.

    Of each row how many tokens come, what lies before them, and how many slots that fills: rows of
    one group have the same before them, something at least, and with it at most `context` tokens;
    an `engine` runs that many new ones at most. A row that no other joins is a group of its own.
    The C++ library makes the same groups (joined.cc).
    """
    groups: list[list[int]] = []
    open_group: dict[Hashable, tuple[list[int], int]] = {}
    for row, (size, past, start) in enumerate(zip(sizes, pasts, starts, strict=True)):
        most = min(MOST, engine, context - start)
        if not start or not 0 < size <= most:
            groups.append([row])
            continue
        group, room = open_group.get(past, ([], 0))
        if size > room:
            group, room = [], most
            groups.append(group)
        group.append(row)
        open_group[past] = group, room - size
    return groups


def offsets_of(sizes: Sequence[int]) -> NDArray[np.int64]:
    """Each token's place in its row, int64 (tokens,), of rows that come as one sequence."""
    offsets: NDArray[np.int64] = np.concatenate([np.arange(size) for size in sizes])
    return offsets
