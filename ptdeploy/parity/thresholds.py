"""What an engine may cost: its precision's bounds, and a caller's own laid over them."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from ptdeploy.bundle import Quantization
from ptdeploy.bundle.precision import FINITE, PRECISIONS, Thresholds
from ptdeploy.bundle.task import Head
from ptdeploy.errors import InputError
from ptdeploy.printable import printable
from ptdeploy.text_files import read_text

T = TypeVar("T", bound=msgspec.Struct)


class Overrides(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A thresholds file. What it does not name keeps the bound stored with the reference.

    `min_agreement` and `max_logits_error` are for quantized weights, the second only of a head that
    chooses one class. `max_perplexity_ratio` is for a causal model, with quantized weights or with
    data and PEFT's answers to it. `min_accuracy` and `max_accuracy_drop` are for labelled data: the
    least accuracy, and by how much it may be below PEFT's; `max_squared_error` is for a
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

    def without_scores(self, quantized: bool, head: Head) -> dict[str, float]:
        """The bounds that were given and mean something without the data's labels.

        Of an engine with or without quantized weights, and a prompt with such a head.
        """
        scores = {"min_accuracy", "max_accuracy_drop", "max_squared_error"}
        if not quantized:
            scores.add("max_perplexity_ratio")
        if head != "softmax":
            scores.add("max_logits_error")
        given = msgspec.structs.asdict(self)
        return {n: v for n, v in given.items() if v is not None and n not in scores}

    def thresholds(self, stored: Thresholds) -> Thresholds:
        """The reference's bounds with the given ones laid over them."""
        return _laid_over(stored, self)

    def quantization(self, stored: Quantization | None, head: Head) -> Quantization | None:
        """The same for what quantized weights must keep of a prompt with such a head."""
        return None if stored is None else _laid_over(stored.of_head(head), self)


def thresholds_for(precision: str, quantization: Quantization | None, head: Head) -> Thresholds:
    """What a new engine may cost. Raises InputError if there are no bounds for its precision."""
    bounds = FINITE if quantization else _of_precision(precision)
    if head == "softmax":
        return bounds
    # Directions and probabilities of all outputs together mean nothing there. What numbers of their
    # own are off by goes with their size: few are of a size of 1, as logits are.
    exact = PRECISIONS["fp32"].thresholds
    smaller = {} if quantization or bounds == exact else {"max_abs": bounds.max_abs / 8}
    return msgspec.structs.replace(bounds, cosine=FINITE.cosine, kl=FINITE.kl, **smaller)


def _of_precision(precision: str) -> Thresholds:
    found = PRECISIONS.get(precision)
    if found is None or found.thresholds is None:
        raise InputError(
            f'There are no thresholds for the precision "{printable(precision)}".',
            "Verify the bundle with the ptdeploy that made it.",
        )
    return found.thresholds


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
        ) from error
    for name, value in msgspec.structs.asdict(given).items():
        if value is None:
            continue
        if name == "cosine":
            least, most = -1.0, 1.0
        else:
            # No bound needs to be larger than what every finite number keeps.
            least, most = 0.0, 1.0 if name in _SHARES else FINITE.max_abs
        if not least <= value <= most:
            raise InputError(f"--thresholds {path}: {name} is {value}, out of {least} to {most}.")
        quantizes = precision not in PRECISIONS or PRECISIONS[precision].weights is not None
        if not quantizes and name in ("min_agreement", "max_logits_error"):
            raise InputError(
                f"--thresholds {path}: {name} is about quantized weights, and {precision} "
                "quantizes none.",
                f"Leave {name} out.",
            )
    return given


def _laid_over(bounds: T, given: Overrides) -> T:
    changes = {
        name: getattr(given, name)
        for name in bounds.__struct_fields__
        if getattr(given, name, None) is not None
    }
    return msgspec.structs.replace(bounds, **changes)
