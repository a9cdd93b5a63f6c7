"""Rows of token ids in any padding, to one batch padded on the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptdeploy.bundle import Limits
from ptdeploy.errors import InputError
from ptdeploy.runtime.tokenizer import Encoding

Row = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right: `input_ids`, `attention_mask`, int64, (batch, sequence)."""

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        lengths: NDArray[np.int64] = self.attention_mask.sum(axis=1)
        return lengths


def rows_of(
    input_ids: ArrayLike | Sequence[Sequence[int]],
    attention_mask: ArrayLike | None,
    limits: Limits,
    truncate: bool = False,
) -> list[Row]:
    """Take the real tokens out of a batch padded anywhere, or out of rows of unequal length.

    Raises InputError if a row is empty, longer than `limits.max_sequence` (unless `truncate`), or
    holds an id outside the vocabulary.
    """
    rows = _unpad(input_ids, attention_mask)
    if not rows:
        raise InputError("The batch has no rows.")
    for index, row in enumerate(rows):
        if row.size == 0:
            raise InputError(f"Row {index} is empty: an engine needs at least one token.")
        if row.min() < 0 or row.max() >= limits.vocab_size:
            raise InputError(
                f"Row {index} holds a token id outside 0 to {limits.vocab_size - 1}.",
                "The ids come from another tokenizer than the base model's.",
            )
        if row.size > limits.max_sequence and not truncate:
            raise InputError(
                f"Row {index} has {row.size} tokens, but at most {limits.max_sequence} fit beside "
                "the virtual tokens.",
                "Shorten the text, or cut it with truncate=True (--truncate).",
            )
    return [row[: limits.max_sequence] for row in rows]


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


def pack(rows: Sequence[Row]) -> Batch:
    """Pad rows on the right to the longest one."""
    width = max(row.size for row in rows)
    ids = np.zeros((len(rows), width), np.int64)
    mask = np.zeros((len(rows), width), np.int64)
    for index, row in enumerate(rows):
        ids[index, : row.size] = row
        mask[index, : row.size] = 1
    return Batch(ids, mask)


def _unpad(
    input_ids: ArrayLike | Sequence[Sequence[int]], attention_mask: ArrayLike | None
) -> list[Row]:
    if attention_mask is None:
        given: list[Any] = list(input_ids)  # type: ignore[arg-type]
        if given and all(np.ndim(row) == 0 for row in given):
            given = [given]
        return [_integers(row) for row in given]
    ids, mask = np.asarray(input_ids), np.asarray(attention_mask)
    if ids.ndim != 2 or ids.shape != mask.shape:
        raise InputError(
            f"input_ids has shape {ids.shape} and attention_mask {mask.shape}; both need "
            "(batch, sequence)."
        )
    return [_integers(row[keep]) for row, keep in zip(ids, mask != 0, strict=True)]


def _integers(row: ArrayLike) -> Row:
    array = np.asarray(row)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise InputError("Token ids must be whole numbers, one list for each row.")
    return array.astype(np.int64)
