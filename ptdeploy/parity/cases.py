"""Which rows are compared, and the batches they are put into."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Padding = Literal["right", "left"]

_LENGTHS = (1, 2, 3, 5, 8, 13, 21, 34)
# Past this the longest row is not run: its reference alone would take minutes.
_LONGEST_EDGE = 512


@dataclass(frozen=True)
class BatchCase:
    """Rows by their index, run together with padding on one side."""

    rows: tuple[int, ...]
    padding: Padding

    @property
    def name(self) -> str:
        return "alone" if len(self.rows) == 1 else f"batch {len(self.rows)} {self.padding}-padded"


def make_rows(vocab_size: int, max_sequence: int) -> list[NDArray[np.int64]]:
    """Eight rows of unequal length and, where it is short enough, one as long as the limit.

    Ids are drawn from the whole vocabulary, the same ones for the same arguments.
    """
    lengths = [min(length, max_sequence) for length in _LENGTHS]
    if max_sequence <= _LONGEST_EDGE:
        lengths.append(max_sequence)
    random = np.random.default_rng(20_26)
    return [random.integers(0, vocab_size, length, np.int64) for length in lengths]


def batches(count: int) -> Iterator[BatchCase]:
    """Each row alone, then batches of 3 and 8 unequal rows and the longest beside the shortest."""
    for row in range(count):
        yield BatchCase((row,), "right")
    for group in ((0, 4, 6), tuple(range(8)), (0, 8)):
        if max(group) >= count:
            continue
        for padding in ("right", "left"):
            yield BatchCase(group, padding)


def pad(
    rows: Sequence[NDArray[np.int64]], padding: Padding
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A padded batch as a caller would send it: (input_ids, attention_mask), int64."""
    width = max(row.size for row in rows)
    ids = np.zeros((len(rows), width), np.int64)
    mask = np.zeros_like(ids)
    for index, row in enumerate(rows):
        place = slice(0, row.size) if padding == "right" else slice(width - row.size, width)
        ids[index, place] = row
        mask[index, place] = 1
    return ids, mask
