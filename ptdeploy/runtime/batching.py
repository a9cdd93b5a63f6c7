"""Rows of token ids in any padding, to one batch padded on the right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptdeploy.arguments import ITEMS, listed, shown
from ptdeploy.bundle import Limits
from ptdeploy.errors import InputError
from ptdeploy.runtime.tokenizer import Encoding

# A row joins a batch of shorter ones for at most so many tokens of padding: another run costs less
# than computing more of it.
_PADDING = 64

# The token ids of one row, or the segment of each of its tokens.
Ids = NDArray[np.int64]
# For a number of rows how many tokens of text each has room for, beside its own prompt.
Rooms = Callable[[int], Sequence[int]]


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right: `input_ids`, `attention_mask`, int64, (batch, sequence)."""

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        lengths: NDArray[np.int64] = self.attention_mask.sum(axis=1)
        return lengths


def grouped(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices of rows of these lengths in batches of at most `size` that need little padding.

    Shorter rows come first, and rows of one length in their own order. The C++ library groups by
    the same rule (rows.cc): what shares a batch may change an answer's last bits.
    """
    groups: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda one: lengths[one]):
        padding = (lengths[index] - longest) * len(groups[-1]) if groups else 0
        if groups and len(groups[-1]) < size and padding <= _PADDING:
            groups[-1].append(index)
        else:
            groups.append([index])
        longest = lengths[index]
    return groups


def rows_of(
    input_ids: ArrayLike | Sequence[Sequence[int]],
    attention_mask: ArrayLike | Sequence[Sequence[int]] | None,
    limits: Limits,
    rooms: Rooms,
    truncate: bool = False,
) -> list[Ids]:
    """Take the real tokens out of a batch padded anywhere, or out of rows of unequal length.

    Raises InputError if a row is empty, longer than it has room for (unless `truncate`), or holds
    an id outside the vocabulary, or if the mask says anything else than where padding is.
    """
    rows = _unpad("input_ids", input_ids, attention_mask)
    if not rows:
        raise InputError("The batch has no rows.")
    room = rooms(len(rows))
    for index, row in enumerate(rows):
        if row.size == 0:
            raise InputError(f"Row {index} is empty: an engine needs at least one token.")
        if row.min() < 0 or row.max() >= limits.vocab_size:
            raise InputError(
                f"Row {index} holds a token id outside 0 to {limits.vocab_size - 1}.",
                "The ids come from another tokenizer than the base model's.",
            )
        if row.size > room[index] and not truncate:
            raise InputError(
                f"Row {index} has {row.size} tokens, but at most {room[index]} fit beside the "
                "virtual tokens.",
                f"Shorten it: row[:{room[index]}] fits.",
            )
    return [row[:most] for row, most in zip(rows, room, strict=True)]


def embedded(encoding: Encoding, limits: Limits) -> Encoding:
    """A text's encoding. Raises InputError, naming the token, if the model has no embedding for it.

    A tokenizer may have more tokens than its model: an engine would read beyond the table.
    """
    if not encoding.ids or max(encoding.ids) < limits.vocab_size:
        return encoding
    place = next(i for i, one in enumerate(encoding.ids) if one >= limits.vocab_size)
    raise InputError(
        f"The text holds the token {encoding.tokens[place]!r} ({encoding.ids[place]}), which the "
        f"model has no embedding for: its ids are 0 to {limits.vocab_size - 1}.",
        "Leave that token out of the text.",
    )


def segments_of(
    token_type_ids: ArrayLike | Sequence[Sequence[int]],
    input_ids: ArrayLike | Sequence[Sequence[int]],
    attention_mask: ArrayLike | Sequence[Sequence[int]] | None,
    limits: Limits,
    rooms: Rooms,
) -> list[Ids]:
    """The segment of each token that `rows_of` takes out of the same batch.

    Raises InputError if the model has no segments, or one is out of its range or missing.
    """
    if limits.type_vocab_size < 1:
        raise InputError(
            "The model has no segments, or the bundle does not say how many: it takes no "
            "token_type_ids.",
            "Leave them out. A pair of texts needs none: its separator tokens say where it parts.",
        )
    segments = _unpad("token_type_ids", token_type_ids, attention_mask)
    rows = _unpad("input_ids", input_ids, attention_mask)
    if len(segments) != len(rows):
        raise InputError(f"token_type_ids has {len(segments)} rows, but input_ids {len(rows)}.")
    for index, (row, ids) in enumerate(zip(segments, rows, strict=True)):
        if row.size != ids.size:
            raise InputError(
                f"Row {index} has {ids.size} tokens, but {row.size} token_type_ids: each token "
                "needs one."
            )
        check_segments(row, limits, f"Row {index}")
    return [row[:most] for row, most in zip(segments, rooms(len(rows)), strict=True)]


def check_segments(row: ArrayLike, limits: Limits, where: str) -> None:
    """Raises InputError if a row's segments are out of the model's range."""
    segments = np.asarray(row)
    most = max(limits.type_vocab_size - 1, 0)
    if segments.size and not 0 <= segments.min() <= segments.max() <= most:
        raise InputError(
            f"{where} holds a token_type_id outside 0 to {most}.",
            "The first text of a pair is segment 0, the second 1.",
        )


def pack(rows: Sequence[Ids]) -> Batch:
    """Pad rows on the right to the longest one."""
    width = max(row.size for row in rows)
    ids = np.zeros((len(rows), width), np.int64)
    mask = np.zeros((len(rows), width), np.int64)
    for index, row in enumerate(rows):
        ids[index, : row.size] = row
        mask[index, : row.size] = 1
    return Batch(ids, mask)


def _unpad(name: str, given: Any, attention_mask: Any) -> list[Ids]:
    """Rows of whole numbers, without what the mask says is padding."""
    if isinstance(given, str):
        raise _text_instead(name)
    rows = [_integers(name, row) for row in _batch(name, given)]
    if attention_mask is None:
        return rows
    masks = _batch("attention_mask", attention_mask)
    if (deepest := max((mask.ndim for mask in masks), default=1)) > 1:
        raise InputError(
            f"attention_mask has {1 + deepest} dimensions, but needs (batch, sequence): 1 for "
            "text, 0 for padding.",
            "An engine takes no mask of which token sees which: that is the model's own.",
        )
    sizes, wanted = [row.size for row in rows], [mask.size for mask in masks]
    if sizes != wanted:
        raise InputError(
            f"{name} has rows of {_few(sizes)} numbers and attention_mask of {_few(wanted)}; both "
            "need the same shape (batch, sequence)."
        )
    return [row[_text(i, mask)] for i, (row, mask) in enumerate(zip(rows, masks, strict=True))]


def split(given: Any, name: str = "The request") -> list[Any]:
    """What a request's list holds. Raises InputError if it is none."""
    if isinstance(given, Mapping):
        raise InputError(
            f"A mapping of {_keys(given)} is no batch.",
            "Give its input_ids, and attention_mask and token_type_ids by their names.",
        )
    if isinstance(given, (bytes, bytearray)):
        raise InputError("The text is bytes, not a string.", "Decode it: text.decode('utf-8').")
    if hasattr(type(given), "__array__"):
        given = _array(name, given)
    return listed(name, given, "is no batch of rows")


def _batch(name: str, given: Any) -> list[NDArray[Any]]:
    """The rows of a batch; one row alone is a batch of one."""
    rows = split(given, name)
    if rows and all(_array(name, row).ndim == 0 for row in rows):
        return [_array(name, rows)]
    return [_array(name, row) for row in rows]


def _array(name: str, row: Any) -> NDArray[Any]:
    if isinstance(row, np.ma.MaskedArray):
        raise InputError(
            f"{_called(name)}: a masked array holds numbers that are not to be read.",
            "Give each row's numbers without those: row.compressed() for row in rows",
        )
    try:
        # A range says how many numbers it has before they are made.
        count = len(row) if isinstance(row, Sequence) else 0
        if count <= ITEMS:
            return np.asarray(row)
    except Exception as error:  # ragged, too deep, or a stranger's __array__
        raise InputError(f"{name}: a row is no list of numbers.") from error
    raise InputError(f"{name}: a row has {count} numbers; at most {ITEMS} are read.")


def _integers(name: str, array: NDArray[Any]) -> Ids:
    # By its letter: numpy has spans of time among the integers.
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        if array.dtype.kind in "US":
            raise _text_instead(name)
        raise InputError(f"{_called(name)} must be whole numbers, one list for each row.")
    return array.astype(np.int64)


def _called(name: str) -> str:
    return "Token ids" if name == "input_ids" else name


def _text_instead(name: str) -> InputError:
    return InputError(
        f"{_called(name)} must be whole numbers, one list for each row; this is text.",
        "Encode texts first: rows = engine.encode(texts); engine.logits([row.ids for row in rows])",
    )


def _text(index: int, mask: NDArray[Any]) -> slice:
    """Where a row's text stands between its padding."""
    usual = mask.dtype.kind in "iufb"
    other = mask[~np.isin(mask, (0, 1))] if usual else mask
    if other.size:
        raise InputError(
            f"Row {index} of attention_mask holds {other[0]}, but 1 is for text and 0 for padding.",
            "An engine takes no mask that is added to scores: give what the tokenizer gave.",
        )
    places = np.flatnonzero(mask)
    if not places.size:
        return slice(0)
    start, end = int(places[0]), int(places[-1]) + 1
    if end - start != places.size:
        raise InputError(
            f"Row {index} of attention_mask has a gap: a 0 between ones, at position "
            f"{start + int(np.argmin(mask[start:end]))}.",
            "Padding stands before or after the text. PEFT numbers positions over a gap, which an "
            "engine cannot: take hidden tokens out of input_ids, and train so.",
        )
    return slice(start, end)


def _keys(given: Mapping[Any, Any]) -> str:
    return ", ".join(key[:40] if isinstance(key, str) else shown(key) for key in islice(given, 8))


def _few(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes[:8])) + (", ..." if len(sizes) > 8 else "")
