"""Which activations keep their accuracy at a fixed scale, and at which: found on what they were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ptdeploy.passes.fixed_scales import FixedScale
from ptdeploy.passes.quantize_rows import quantize

_CODES = 255
# Other texts go beyond what was seen: so much room they get.
_ROOM = 1.1
# How much of a channel's size goes over to the weights. All of it would make them as uneven.
_POWERS = (0.5, 0.65, 0.8)
# Rows that errors are measured on, of one input.
_ROWS = 512
_TINY = np.float32(1e-6)


Ends: TypeAlias = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(eq=False)
class Seen:
    """What products read in texts, of which every second one is to try scales on.

    `ends` are each channel's least and largest values (K,), of the first kind of texts and of the
    second; `rows` (tokens, K) are some tokens of the second.
    """

    ends: dict[int, Ends] = field(default_factory=dict)
    rows: list[NDArray[np.float32]] = field(default_factory=list)
    texts: int = 0

    def add(self, rows: NDArray[np.float32], share: float) -> None:
        """Take in a text's tokens (tokens, K); `share` is how many of the rows kept are its own."""
        half = self.texts % 2
        self.texts += 1
        found = rows.min(axis=0), rows.max(axis=0)
        self.ends[half] = _joined([found, self.ends.get(half, found)])
        if half:
            count = max(1, min(len(rows), round(_ROWS * share)))
            self.rows.append(rows[np.linspace(0, len(rows) - 1, count).round().astype(int)])


def fit(seen: Sequence[Seen], matrices: Sequence[NDArray[np.float32]]) -> FixedScale | None:
    """The scale of inputs that are read by the same matrices (K, N); None where none is good.

    A channel's factor is its largest value to a power, by its largest weight to the rest
    (SmoothQuant, Xiao et al. 2023, arXiv 2211.10438, equation 4). The power with the least error is
    taken, on tokens of texts whose ranges were not looked at. That error, of each token by the size
    of its product, is no more than with a scale for each token; or there is no fixed one.
    """
    weights = np.concatenate(matrices, axis=1)
    rows = np.concatenate([row for one in seen for row in one.rows])
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), _ROWS)).round().astype(int)]
    ends = [_joined([one.ends[half] for one in seen]) for half in range(2)]
    wanted = rows @ weights
    own = _error(_by_token(rows) @ _rounded(weights), wanted)
    tried = {power: _scale(ends[0], weights, power) for power in _POWERS}
    errors = {
        power: _error(_by_scale(rows, one) @ _rounded(weights * one.factors[:, None]), wanted)
        for power, one in tried.items()
    }
    best = min(errors, key=errors.__getitem__)
    if not errors[best] <= own:
        return None
    return _scale(_joined(ends), weights, best)


def _joined(ends: Sequence[Ends]) -> Ends:
    low, high = zip(*ends, strict=True)
    return np.min(low, axis=0), np.max(high, axis=0)


def _scale(ends: Ends, weights: NDArray[np.float32], power: float) -> FixedScale:
    low, high = ends
    sizes = np.maximum(np.maximum(-low, high), _TINY)
    largest = np.maximum(np.abs(weights).max(axis=1), _TINY)
    factors = (sizes**power / largest ** (1 - power)).astype(np.float32)
    least, most = (min(0.0, float((low / factors).min())), max(0.0, float((high / factors).max())))
    step = max((most - least) * _ROOM / _CODES, float(_TINY))
    return FixedScale(factors, step, int(np.clip(round(-least * _ROOM / step), 0, _CODES)))


def _by_scale(rows: NDArray[np.float32], scale: FixedScale) -> NDArray[np.float32]:
    """What rows are as codes, in the size that weights with its factors take."""
    codes = np.rint(rows / scale.factors / np.float32(scale.step))
    found: NDArray[np.float32] = codes.clip(-scale.zero, _CODES - scale.zero)
    return found * np.float32(scale.step)


def _by_token(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    steps = np.maximum(np.abs(rows).max(axis=1, keepdims=True), _TINY) / (_CODES // 2)
    found: NDArray[np.float32] = np.rint(rows / steps) * steps
    return found


def _rounded(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    codes, scales = quantize(weights)
    read: NDArray[np.float32] = np.multiply(codes, scales, dtype=np.float32)
    return read


def _error(got: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """The mean over tokens of how far a product is off, by its size."""
    sizes = np.maximum(np.square(wanted).mean(axis=1), _TINY**2)
    return float(np.sqrt(np.square(got - wanted).mean(axis=1) / sizes).mean())
