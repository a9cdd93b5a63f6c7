"""From logits to probabilities."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptdeploy.errors import EngineFault


def finite(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """The logits themselves. Raises EngineFault unless all are finite: no class is likeliest."""
    if not np.isfinite(logits).all():
        raise EngineFault(
            "The engine gave logits that are not finite.",
            "Hold the bundle against its reference: ptdeploy verify BUNDLE",
        )
    return logits


def sigmoid(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """The probability of each class by itself, in float64."""
    # Whichever way, the exponential is of a number below 0.
    small = np.exp(-np.abs(logits.astype(np.float64)))
    probabilities: NDArray[np.float64] = np.where(logits < 0, small, 1) / (1 + small)
    return probabilities


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities over the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    weights = np.exp(shifted)
    probabilities: NDArray[np.float64] = weights / weights.sum(axis=-1, keepdims=True)
    return probabilities
