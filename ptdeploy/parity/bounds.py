"""What the cases of a comparison are held by."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ptdeploy.bundle.precision import FINITE, Thresholds
from ptdeploy.bundle.task import Head
from ptdeploy.parity.own import own_bound, own_outputs
from ptdeploy.parity.quality import Quality
from ptdeploy.parity.reference import Reference
from ptdeploy.parity.report import ParityReport

# Of two classes that are as likely the logits may be (a, -a) of any small a: rounding turns them
# around. Measured in bf16 on trained heads: this takes honest ones to 0.37 of the bound.
_SHORT = 0.3


@dataclass(frozen=True)
class Bounds:
    """What cases are held by.

    `scale` is the reference's largest logit; `scales` are those of each output of a head that
    chooses no one class, which are numbers of their own: None for others, and of one. A position's
    logits that are shorter than `short`, as a vector, have no direction to keep. `own` is what
    a quantized engine's logits may be off its own rows alone, `own_outputs` the same of each
    output.
    """

    thresholds: Thresholds
    scale: float
    scales: NDArray[np.float64] | None = None
    short: float = 0.0
    own: float | None = None
    own_outputs: NDArray[np.float64] | None = None

    @property
    def allowed(self) -> float:
        """What a logit may be off by."""
        return self.thresholds.allowed(self.scale)

    @property
    def outputs(self) -> NDArray[np.float64] | None:
        """What each output may be off by."""
        if self.scales is None:
            return None
        return self.thresholds.allowed(self.scales)

    @property
    def sizes(self) -> NDArray[np.float64]:
        """What differences of logits are measured by: of each output, or of all, 1 for nothing."""
        sizes = np.array([self.scale]) if self.scales is None else self.scales
        return np.where(sizes > 0, sizes, 1.0)

    @property
    def tie(self) -> float:
        """Which logits lie so near that either is as right: each may be off by what is allowed."""
        return 2 * self.allowed

    @property
    def decode(self) -> float:
        """How far below the likeliest of the engine's own prefill a chosen token may lie.

        A quantized engine is held to itself. Of another, prefill and decode steps may each be off
        the reference, so that they are as far apart as what is a near tie.
        """
        return self.tie if self.own is None else self.own

    @property
    def bind(self) -> bool:
        """Whether they ask for more than numbers that are finite."""
        return self.thresholds != FINITE

    @property
    def limits_logits(self) -> bool:
        return self.thresholds.max_abs < FINITE.max_abs

    def with_own(self, quality: Quality | None) -> Bounds:
        """The bounds of a quantized engine, which is held to itself, too."""
        return replace(
            self,
            own=own_bound(quality, self.scale),
            own_outputs=own_outputs(quality, self.scales),
        )


def bounds_of(reference: Reference, thresholds: Thresholds, head: Head) -> Bounds:
    each = [np.abs(np.atleast_2d(row.logits)).max(0) for row in reference.rows]
    scales = np.max(each, axis=0).astype(np.float64) if each else np.zeros(1)
    several = scales if head != "softmax" and scales.size > 1 else None
    return Bounds(thresholds, float(scales.max()), several, _SHORT * _usual_length(reference))


def _usual_length(reference: Reference) -> float:
    """The length that half of its positions' logits have at most, as vectors."""
    each = [np.atleast_2d(row.logits).astype(np.float64) for row in reference.rows]
    lengths = np.concatenate([[0.0], *(np.linalg.norm(one, axis=-1) for one in each)])[1:]
    return float(np.sort(lengths)[(lengths.size - 1) // 2]) if lengths.size else 0.0


def bounds_of_report(report: ParityReport, reference: Reference, head: Head) -> Bounds:
    """What a report's cases were held by, against that reference."""
    bounds = bounds_of(reference, report.thresholds or FINITE, head)
    return bounds if report.own_allowed is None else bounds.with_own(report.quality)
