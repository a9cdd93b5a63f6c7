"""Measures of difference between the reference's and an engine's logits, in one pass over them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# A histogram's bins: under 1e-9, one for each decade, and from 10 on, where NaN is counted too.
HISTOGRAM_EDGES = tuple(10.0**power for power in range(-9, 2))
_POSITION_BINS = 64
# Scores that are measured at once.
_SCORES = 1 << 20


@dataclass(frozen=True)
class Measured:
    """One case's rows, flattened to positions; None where a number is not finite."""

    max_abs: float | None
    mean_abs: float | None
    cosine: float | None
    kl: float | None
    top1_agreement: float
    clear_agreement: bool
    histogram: tuple[int, ...]


def measure(
    want: NDArray[np.float32], got: NDArray[np.float32], allowed: float, short: float
) -> tuple[Measured, NDArray[np.float64]]:
    """Compare (positions, scores); gives the numbers and each position's largest difference.

    Scores that are short beside `short` point nowhere: their cosine is that of both lengthened by
    so much in one more direction.

    `clear_agreement` says that the argmax agrees wherever the reference's own margin is larger
    than twice `allowed`. A few positions at a time: measuring takes many times what they take.
    """
    rows = max(1, _SCORES // want.shape[1])
    starts = range(0, len(want), rows)
    pieces = [_piece(want[at : at + rows], got[at : at + rows], allowed, short) for at in starts]
    largest, means, cosines, kls, agree, clear, counts = map(
        np.concatenate, zip(*pieces, strict=True)
    )
    numbers = Measured(
        max_abs=finite(largest.max()),
        mean_abs=finite(means.mean()),
        cosine=finite(cosines.min()),
        kl=finite(kls.max()),
        top1_agreement=float(agree.mean()),
        clear_agreement=bool(agree[clear].all()),
        histogram=tuple(counts.sum(0).tolist()),
    )
    return numbers, largest


def _piece(
    want: NDArray[np.float32], got: NDArray[np.float32], allowed: float, short: float
) -> tuple[NDArray[Any], ...]:
    """Of each position: its largest and mean difference, cosine and KL divergence, whether the
    argmax agrees and whether the reference is clear; and the histogram of all, a row of counts."""
    want, got = want.astype(np.float64), got.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(want - got)
        # NaN sorts high: what is not finite must never hide behind a maximum.
        largest = np.where(np.isfinite(difference), difference, np.inf).max(-1)
        clear = np.ones(len(want), bool)
        if want.shape[1] > 1:
            second, first = np.partition(want, -2, axis=-1)[:, -2:].T
            clear = first - second > 2 * allowed
        return (
            largest,
            difference.mean(-1),
            _cosine(want, got, short),
            _kl(want, got),
            want.argmax(-1) == got.argmax(-1),
            clear,
            np.array([histogram(difference)]),
        )


def finite(number: float) -> float | None:
    """A number that JSON can carry, else None."""
    return float(number) if math.isfinite(number) else None


def histogram(difference: NDArray[np.float64]) -> tuple[int, ...]:
    """How many differences lie in each of HISTOGRAM_EDGES' bins."""
    bins = np.digitize(np.nan_to_num(difference, nan=np.inf), HISTOGRAM_EDGES)
    return tuple(np.bincount(bins.ravel(), minlength=len(HISTOGRAM_EDGES) + 1).tolist())


def bin_positions(found: Sequence[tuple[int, float]]) -> list[tuple[int, int, float]]:
    """(position, difference) pairs in at most 64 ranges: (first, last, largest difference)."""
    if not found:
        return []
    width = -(-(max(position for position, _ in found) + 1) // _POSITION_BINS)
    largest: dict[int, float] = {}
    for position, difference in found:
        largest[position // width] = max(largest.get(position // width, 0.0), difference)
    return [(b * width, b * width + width - 1, largest[b]) for b in sorted(largest)]


def _cosine(a: NDArray[np.floating], b: NDArray[np.floating], short: float) -> NDArray[np.float64]:
    left, right = (
        np.hypot(np.linalg.norm(a, axis=-1), short),
        np.hypot(np.linalg.norm(b, axis=-1), short),
    )
    norms = left * right
    result: NDArray[np.float64] = ((a * b).sum(-1) + short**2) / np.where(norms == 0, 1, norms)
    # A head that gives nothing points nowhere: two of them agree.
    return np.where((left == 0) & (right == 0), 1.0, result)


def _kl(want: NDArray[np.floating], got: NDArray[np.floating]) -> NDArray[np.float64]:
    p, q = log_softmax(want), log_softmax(got)
    result: NDArray[np.float64] = (np.exp(p) * (p - q)).sum(-1)
    return result


def log_softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    shifted = logits - logits.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result
