"""Which rows are compared, and the batches they are put into."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ptdeploy.bundle import Manifest, RequestLimits
from ptdeploy.bundle.precision import Thresholds
from ptdeploy.errors import InputError
from ptdeploy.parity.thresholds import thresholds_for
from ptdeploy.runtime.layout import PREFILL

Padding = Literal["right", "left", "both"]
# Where a row's ids are from: drawn at random, ptdeploy's own texts, or the caller's file.
Source = Literal["random", "text", "data"]

_LENGTHS = (1, 2, 3, 5, 8, 13, 21, 34)
# The row that has the vocabulary's ends, and how many of them at most.
_ENDS_IN, _MOST_ENDS = 7, 16
_BATCH = 8
# A longer row would take minutes; this one is long enough for a second piece of its prefill to run.
_LONGEST = PREFILL + 16
# So would a wider batch at the profile's edge.
WIDEST = 64
_TEXT_TOKENS = 64
# Where a text may end in padding, how many of a row's last tokens are that, by the row's place:
# some, and all.
_PADDED = {3: 2, 1: 2}
TEXT_ROWS = 8
# The random rows that are run without a prompt too, by their place.
BASE_ROWS = (0, 4, 6)
_MOST_ROWS = 1000


@dataclass(frozen=True)
class AskedRow:
    """Token ids to compare on, where they are from, and their segments, all 0 where None."""

    ids: NDArray[np.int64]
    source: Source = "random"
    type_ids: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class BatchCase:
    """Rows by their index, run together with padding; a row may stand in it more than once."""

    rows: tuple[int, ...]
    padding: Padding
    source: Source = "random"

    @property
    def name(self) -> str:
        batch = f"batch {len(self.rows)} {self.padding}-padded"
        name = "alone" if len(self.rows) == 1 else batch
        return name if self.source == "random" else f"{self.source} {name}"


@dataclass(frozen=True)
class Comparison:
    """What an engine is compared on: rows, the cases they are put into, and what it may cost."""

    rows: tuple[AskedRow, ...]
    cases: tuple[BatchCase, ...]
    thresholds: Thresholds


def comparison(rows: Sequence[AskedRow], manifest: Manifest, held_as: str) -> Comparison:
    """Decide all of it, once, for a reference that is about to be computed.

    Raises InputError if there are no thresholds for the precision `held_as`.
    """
    return Comparison(
        tuple(rows),
        batches([row.source for row in rows], manifest.limits.max_batch),
        thresholds_for(held_as, manifest.quantization, manifest.prompt.head),
    )


def make_rows(vocab_size: int, max_sequence: int) -> list[NDArray[np.int64]]:
    """Eight rows of unequal length, and one as long as the limit or as is run without being asked.

    Ids are drawn from the whole vocabulary, the same ones for the same arguments; the last of the
    eight begins with the vocabulary's ends.
    """
    lengths = [min(length, max_sequence) for length in (*_LENGTHS, _LONGEST)]
    random = np.random.default_rng(20_26)
    rows = [random.integers(0, vocab_size, length, np.int64) for length in lengths]
    ends = _ends(vocab_size)[: rows[_ENDS_IN].size]
    rows[_ENDS_IN][: len(ends)] = ends
    return rows


def _ends(vocab_size: int) -> list[int]:
    """The first id, and the last ones, ever farther apart: tokens are added behind the others, and
    a large vocabulary's random ids would miss them.
    """
    steps = [2**n for n in range(_MOST_ENDS - 1) if 2**n <= vocab_size]
    return [0, *(vocab_size - step for step in steps)]


def longest_row(max_sequence: int) -> int:
    """The tokens of the longest row that is compared, of a model that takes so many."""
    return min(max_sequence, _LONGEST)


def reference_rows(
    limits: RequestLimits,
    texts: Sequence[AskedRow],
    count: int | None = None,
    padding_id: int | None = None,
) -> list[AskedRow]:
    """`count` rows: random ones of unequal lengths first, then text, then more random ones.

    `texts` are cut to 64 tokens. Without a count it is the random rows and up to eight texts. Where
    the model has segments, every second random row has all of them. With `padding_id`, the
    prompt's, one row ends in it, and one is nothing else.
    """
    random_ids = make_rows(limits.vocab_size, limits.max_sequence)
    if padding_id is not None:
        for index, tokens in _PADDED.items():
            random_ids[index][-tokens:] = padding_id
    rows = [
        AskedRow(ids, type_ids=some_segments(ids.size, limits) if index % 2 else None)
        for index, ids in enumerate(random_ids)
    ]
    longest = min(_TEXT_TOKENS, limits.max_sequence)
    wanted = TEXT_ROWS if count is None else max(0, count - len(rows))
    rows += [cut(row, longest) for row in texts if row.ids.size][:wanted]
    random = np.random.default_rng(11_24)
    while count is not None and len(rows) < count:
        length = int(random.integers(1, longest + 1))
        rows.append(AskedRow(random.integers(0, limits.vocab_size, length, np.int64)))
    return rows[:count]


def some_segments(tokens: int, limits: RequestLimits) -> NDArray[np.int64] | None:
    """Each of the model's segments for as many tokens, in order; None where it has none."""
    if not limits.type_vocab_size:
        return None
    return np.arange(tokens) * limits.type_vocab_size // tokens


def cut(row: AskedRow, tokens: int) -> AskedRow:
    """A row's first tokens, with their segments."""
    types = None if row.type_ids is None else row.type_ids[:tokens]
    return replace(row, ids=row.ids[:tokens], type_ids=types)


def check_golden(count: int | None) -> None:
    """Raises InputError if that many rows cannot be stored: verify needs one at least."""
    if count is not None and not 1 <= count <= _MOST_ROWS:
        raise InputError(
            f"--golden {count}: must be from 1 to {_MOST_ROWS}.",
            "Without any stored row, verify could not tell whether the engine still fits.",
        )


def compared_rows(
    limits: RequestLimits,
    texts: Sequence[AskedRow],
    count: int | None,
    padding_id: int | None = None,
) -> list[AskedRow]:
    """What compile compares on: never less than the usual rows, however few are stored."""
    rows = reference_rows(limits, texts, count, padding_id)
    usual = reference_rows(limits, texts, padding_id=padding_id)
    return rows if len(rows) > len(usual) else usual


def edge_notes(longest: int, limits: RequestLimits) -> list[str]:
    """What of the profile is not reached by rows of up to `longest` tokens, in words."""
    if longest >= limits.max_sequence:
        return []
    return [
        f"no row of over {longest} tokens was run, but the bundle takes up to "
        f"{limits.max_sequence}; give such rows with --data."
    ]


def batches(sources: Sequence[Source], max_batch: int | None = None) -> tuple[BatchCase, ...]:
    """Each row alone; then batches of unequal rows, none of over `max_batch` rows.

    Random rows: batches of 3 and 8, the longest beside the shortest, and one as wide as the
    profile. Text and data: every row in a batch of up to 8, or as wide as the profile, padded on
    either side.
    """
    alone = (BatchCase((index,), "right", source) for index, source in enumerate(sources))
    return *alone, *_random_batches(sources, max_batch), *_full_batches(sources, max_batch)


def _random_batches(sources: Sequence[Source], max_batch: int | None) -> Iterator[BatchCase]:
    random = [index for index, source in enumerate(sources) if source == "random"]
    most = max_batch or len(random)
    widths = set[int]()
    for group in ((0, 4, 6), tuple(range(_BATCH)), (0, 8)):
        if max(group) >= len(random) or len(group) > most:
            continue
        widths.add(len(group))
        rows = tuple(random[index] for index in group)
        for padding in ("right", "left"):
            yield BatchCase(rows, padding)
    if len(random) > 2 and most > 2:
        yield BatchCase((random[2], random[0], random[1]), "both")
    edge = min(max_batch or 0, WIDEST)
    if random and edge > 1 and edge not in widths:
        yield BatchCase(tuple(random[i % min(len(random), _BATCH)] for i in range(edge)), "left")


def _full_batches(sources: Sequence[Source], max_batch: int | None) -> Iterator[BatchCase]:
    size = min(max_batch or _BATCH, WIDEST)
    for source in ("text", "data"):
        rows = tuple(index for index, one in enumerate(sources) if one == source)
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            if len(part) > 1:
                yield BatchCase(part, "right", source)
                yield BatchCase(part, "left", source)


def pad(
    rows: Sequence[NDArray[np.int64]], padding: Padding
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A padded batch as a caller would send it: (input_ids, attention_mask), int64.

    "both" has padding on both sides of every row, the longest too.
    """
    width = max(row.size for row in rows) + (2 if padding == "both" else 0)
    ids = np.zeros((len(rows), width), np.int64)
    mask = np.zeros_like(ids)
    for index, row in enumerate(rows):
        free = width - row.size
        start = {"right": 0, "left": free, "both": free // 2}[padding]
        place = slice(start, start + row.size)
        ids[index, place] = row
        mask[index, place] = 1
    return ids, mask
