"""What a precision may cost, and a caller's own bounds instead."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TypeVar

import msgspec

from ptdeploy.bundle import Quantization
from ptdeploy.bundle.task import Head
from ptdeploy.errors import InputError
from ptdeploy.text_files import read_text

T = TypeVar("T", bound=msgspec.Struct)


class Thresholds(msgspec.Struct, frozen=True):
    """What a precision that rounds no weights may cost.

    A logits difference may reach `max_abs` + `relative` times the largest reference logit; `kl` is
    in nats. Top-1 and greedy tokens must agree wherever the reference's own margin is larger than
    twice that difference: below it either token is as right. `min_top1_agreement` is the share of
    a case's positions that must agree whatever the margin.
    """

    max_abs: float
    relative: float
    cosine: float
    kl: float
    min_top1_agreement: float = 0


THRESHOLDS = {
    "fp32": Thresholds(max_abs=1e-5, relative=1e-5, cosine=0.99999, kl=1e-6),
    # Products of 10 bits of mantissa, summed in fp32.
    "tf32": Thresholds(max_abs=5e-3, relative=5e-3, cosine=0.9999, kl=1e-4),
    "fp16": Thresholds(max_abs=1e-2, relative=1e-2, cosine=0.999, kl=1e-3),
    # 8 bits of mantissa, 7 of them stored: eight times fp16's steps.
    "bf16": Thresholds(max_abs=8e-2, relative=8e-2, cosine=0.95, kl=1e-2),
}
# Rounded weights are judged by what they do to text; the cases only have to be finite.
ROUNDED = Thresholds(max_abs=1e30, relative=0, cosine=-1, kl=1e30)


class Overrides(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A thresholds file. What it does not name keeps the precision's own bound.

    `min_agreement` and `max_logits_error` are for rounded weights, `max_perplexity_ratio` for those
    and for data given to a causal model. `min_accuracy` and `max_accuracy_drop` are for labelled
    data: the least accuracy, and by how much it may be below PEFT's; `max_squared_error` is for a
    regression's.
    """

    max_abs: float | None = None
    relative: float | None = None
    cosine: float | None = None
    kl: float | None = None
    min_top1_agreement: float | None = None
    min_agreement: float | None = None
    max_perplexity_ratio: float | None = None
    max_logits_error: float | None = None
    min_accuracy: float | None = None
    max_accuracy_drop: float | None = None
    max_squared_error: float | None = None

    def thresholds(self, precision: str, rounded: Quantization | None, head: Head) -> Thresholds:
        """The precision's bounds with the given ones laid over them."""
        bounds = ROUNDED if rounded else THRESHOLDS[precision]
        if head != "softmax":
            # Directions and probabilities of all outputs together mean nothing there.
            bounds = msgspec.structs.replace(bounds, cosine=ROUNDED.cosine, kl=ROUNDED.kl)
        return _laid_over(bounds, self)

    def rounding(self, rounded: Quantization | None) -> Quantization | None:
        """The same for what rounded weights must keep."""
        return None if rounded is None else _laid_over(rounded, self)


_SHARES = ("min_top1_agreement", "min_agreement", "min_accuracy", "max_accuracy_drop")


def read_thresholds(path: str | Path, precision: str) -> Overrides:
    """Read a thresholds file: a JSON object of numbers with the fields of Overrides.

    Raises InputError if it cannot be read, or a field is unknown, out of range, or means nothing
    for this precision.
    """
    try:
        given = msgspec.json.decode(read_text(path, "--thresholds"), type=Overrides)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InputError(
            f"--thresholds {path}: not a thresholds file ({error}).",
            f"It is a JSON object with any of: {', '.join(Overrides.__struct_fields__)}.",
        ) from None
    for name, value in msgspec.structs.asdict(given).items():
        if value is None:
            continue
        if name == "cosine":
            least, most = -1.0, 1.0
        else:
            least, most = 0.0, 1.0 if name in _SHARES else math.inf
        if not least <= value <= most:
            raise InputError(f"--thresholds {path}: {name} is {value}, out of {least} to {most}.")
        if precision in THRESHOLDS and name in ("min_agreement", "max_logits_error"):
            raise InputError(
                f"--thresholds {path}: {name} is about rounded weights, and {precision} rounds "
                "none."
            )
    return given


def _laid_over(bounds: T, given: Overrides) -> T:
    changes = {
        name: getattr(given, name)
        for name in bounds.__struct_fields__
        if getattr(given, name, None) is not None
    }
    return msgspec.structs.replace(bounds, **changes)
