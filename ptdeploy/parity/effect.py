"""Whether a quantized engine has its prompt: how much of what the prompt changes is missing.

Quantizing weights moves logits by as much as a prompt may, so that agreement and perplexity do not
tell an engine that leaves the prompt out from an honest one. But what quantization changes has
little to do with what the prompt changes. With d, the reference less what the same model gives
without the prompt, and e, the engine less the reference, -<e, d> / <d, d> is about 0 where the
prompt is there, and 1 where it is left out. Towards another prompt, d being the reference less that
one's, it is 1 where the engine has taken that one.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from ptdeploy.parity.measure import finite

# Halfway between an engine with the prompt and one without it.
MOST_MISSING = 0.5
# The two are told apart where so many standard errors lie between each and the middle: positions of
# a row are off alike, so that the error is larger than it seems.
_STANDARD_ERRORS = 8
# Of fewer positions the standard error is itself a guess.
_LEAST_POSITIONS = 8


class PromptEffect(msgspec.Struct, frozen=True):
    """How much of what sets a prompt apart from another one is missing in a quantized engine.

    The other is named by `other`; null is the base model alone. `missing` is about 0 in an engine
    that has the prompt, and 1 in one that has the other in its place; `error` is its standard
    error. Both are null where they are not finite, as where the prompts change nothing.
    `without_prompt` says that it is of rows of the base model alone, which may have `other`.
    """

    other: str | None
    missing: float | None
    error: float | None
    positions: int
    without_prompt: bool = False

    @property
    def told(self) -> bool:
        """Whether the two are far enough apart to be told from one another."""
        return (
            self.missing is not None
            and self.error is not None
            and self.positions >= _LEAST_POSITIONS
            and _STANDARD_ERRORS * self.error <= MOST_MISSING
        )

    @property
    def passed(self) -> bool:
        return not self.told or self.missing is None or self.missing <= MOST_MISSING


class Projection:
    """What of an engine's difference lies along a prompt's effect, position by position."""

    def __init__(self) -> None:
        self._along: list[NDArray[np.float64]] = []
        self._effect: list[NDArray[np.float64]] = []

    def add(
        self,
        want: NDArray[np.float32],
        got: NDArray[np.float32],
        other: NDArray[np.float32],
        got_other: NDArray[np.float32] | None = None,
    ) -> None:
        """One row: the reference's logits, the engine's, and both with another prompt.

        Of each the last positions count that all have. Without `got_other` the engine is taken to
        give the reference's with the other prompt; with it, what quantization does to both alike,
        which prompts that differ little would be lost in, does not count.
        """
        given_to = [want, got, other, other if got_other is None else got_other]
        count = min(len(np.atleast_2d(one)) for one in given_to)
        wanted, given, others, given_others = (_shifted(one, count) for one in given_to)
        effect = wanted - others
        with np.errstate(invalid="ignore", over="ignore"):
            self._along.append(-((given - given_others - effect) * effect).sum(-1))
            self._effect.append((effect**2).sum(-1))

    def result(self, other: str | None) -> PromptEffect | None:
        """The share that is missing; None where no row was added."""
        if not self._along:
            return None
        along, effect = np.concatenate(self._along), np.concatenate(self._effect)
        total, count = float(effect.sum()), along.size
        if not total > 0 or count < 2:
            return PromptEffect(other, None, None, count)
        with np.errstate(invalid="ignore", over="ignore"):
            missing = float(along.sum()) / total
            off = along - missing * effect
            error = float(np.sqrt((off**2).sum() * count / (count - 1))) / total
        return PromptEffect(other, finite(missing), finite(error), count)


def effect_words(one: PromptEffect) -> str:
    """How much of the effect is missing."""
    return f"{missing_words(one)} of {apart_words(one)} is missing"


def missing_words(one: PromptEffect) -> str:
    """The share alone."""
    return "an unknown share" if one.missing is None else f"{one.missing:.1%}"


def apart_words(one: PromptEffect) -> str:
    """What it is a share of."""
    if one.other is None:
        return "what the prompt changes in the logits"
    if one.without_prompt:
        return f"what sets logits without a prompt apart from those of {one.other!r}"
    return f"what sets the prompt's logits apart from those of {one.other!r}"


def effect_notes(effects: Sequence[PromptEffect]) -> list[str]:
    """Where it cannot be told whether the engine has its prompt, in words."""
    return [
        f"the prompt changes too little to tell whether the engine {_may_have(one)}."
        for one in effects
        if not one.told
    ]


def _may_have(one: PromptEffect) -> str:
    """What is not known of the engine, to go on from other words."""
    if one.without_prompt:
        return f"has {one.other!r} where no prompt is asked for"
    return "has it" if one.other is None else f"has it or {one.other!r} in its place"


def _shifted(logits: NDArray[np.float32], count: int) -> NDArray[np.float64]:
    """The last positions' logits less each one's mean, which changes no probability.

    A single score is no softmax's: its size counts.
    """
    scores = np.atleast_2d(logits)[-count:].astype(np.float64)
    return scores if scores.shape[1] == 1 else scores - scores.mean(-1, keepdims=True)
