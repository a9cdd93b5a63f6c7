"""How weights are quantized, and what that may cost: the request, checked before any work."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

from ptdeploy.arguments import number, path, whole
from ptdeploy.bundle import Quantization
from ptdeploy.bundle.precision import quantized
from ptdeploy.errors import InputError
from ptdeploy.printable import number_of
from ptdeploy.text_files import read_lines

T = TypeVar("T")

# What fewer texts are like says little of others.
LEAST_CALIBRATED = 16
_BLOCK_SIZES = (16, 32, 64, 128, 256)
_ACCURACY_LEVELS = _IN_FLOAT, _IN_INT8 = 1, 4


@dataclass(frozen=True)
class QuantizationOptions:
    """Options of the precisions int8, int4 and fp8; None is the precision's own default.

    `quality_text` is a UTF-8 file with one text a line, to evaluate the engine on instead of
    ours. `calibration` is another, to find scales of activations on.
    """

    block_size: int | None = None
    accuracy_level: int | None = None
    min_agreement: float | None = None
    max_perplexity_ratio: float | None = None
    max_logits_error: float | None = None
    quality_text: str | Path | None = None
    calibration: str | Path | None = None


# What its fields may be, where they are not None.
QUANTIZATION_OPTIONS = {
    "block_size": whole(),
    "accuracy_level": whole(),
    "min_agreement": number,
    "max_perplexity_ratio": number,
    "max_logits_error": number,
    "quality_text": path,
    "calibration": path,
}


def quantization_for(
    precision: str,
    options: QuantizationOptions,
    block_size: int = 32,
    has_levels: bool = True,
    group: int = 0,
) -> Quantization | None:
    """How a precision stores weights; None if it quantizes none.

    `block_size` is the target's own, 0 where a scale is for a whole column; `has_levels` says
    whether its products have accuracy levels, and `group` how many weights a block needs at least
    for products in int8.
    Raises InputError if an option is out of range or the precision has none.
    """
    weights = quantized().get(precision)
    if weights is None:
        for field in fields(options):
            if getattr(options, field.name) is not None:
                raise InputError(
                    f"--{field.name.replace('_', '-')} is about quantized weights, and "
                    f"{precision} quantizes none.",
                    "Choose --precision int8 or int4.",
                )
        return None
    is_float = weights.type != "int"
    if options.accuracy_level is not None and not has_levels:
        raise InputError(
            "--accuracy-level: this target multiplies with quantized weights in one way alone.",
            "Leave --accuracy-level out.",
        )
    if options.block_size is not None and (is_float or not block_size):
        raise InputError(
            f"--block-size: this target's {precision} has a scale for each column.",
            "Leave --block-size out.",
        )
    block = _given(options.block_size, block_size)
    level = (_IN_FLOAT if 0 < block < group else _IN_INT8) if has_levels else 0
    if options.accuracy_level == _IN_INT8 and level == _IN_FLOAT:
        raise InputError(
            f"--block-size {block} --accuracy-level {_IN_INT8}: this target's products in int8 "
            f"need blocks of {group} or more.",
            f"Choose a larger --block-size, or --accuracy-level {_IN_FLOAT}.",
        )
    found = Quantization(
        bits=weights.bits,
        block_size=block,
        accuracy_level=_given(options.accuracy_level, level),
        min_agreement=_given(options.min_agreement, weights.min_agreement),
        max_perplexity_ratio=_given(options.max_perplexity_ratio, weights.max_perplexity_ratio),
        type=weights.type,
        max_logits_error=_given(options.max_logits_error, weights.max_logits_error),
    )
    _check_range(found, options)
    return found


def _given(asked: T | None, default: T) -> T:
    return default if asked is None else asked


def _check_range(found: Quantization, options: QuantizationOptions) -> None:
    for option, holds, wanted in (
        ("--block-size", options.block_size in (None, *_BLOCK_SIZES), _one_of(_BLOCK_SIZES)),
        (
            "--accuracy-level",
            options.accuracy_level in (None, *_ACCURACY_LEVELS),
            _one_of(_ACCURACY_LEVELS),
        ),
        ("--min-agreement", 0 <= found.min_agreement <= 1, "from 0 to 1"),
        ("--max-perplexity-ratio", found.max_perplexity_ratio > 0, "more than 0"),
        ("--max-logits-error", (found.max_logits_error or 0) > 0, "more than 0"),
    ):
        if not holds:
            raise InputError(f"{option} must be {wanted}.")


def read_calibration(path: str | Path) -> tuple[str, ...]:
    """The texts of `--calibration`. Raises InputError if there are too few."""
    texts = read_texts(path, "--calibration")
    if len(texts) < LEAST_CALIBRATED:
        raise InputError(
            f"--calibration {path}: {number_of(len(texts), 'text')} say too little of others.",
            f"Give {LEAST_CALIBRATED} or more, one a line; some hundreds are better.",
        )
    return texts


def read_texts(path: str | Path, option: str) -> tuple[str, ...]:
    """The lines of a text file that are not blank. Raises InputError if there are none."""
    texts = tuple(line for line in read_lines(path, option) if line.strip())
    if not texts:
        raise InputError(
            f"{option} {path}: holds no text.",
            "Give text like that the model will be asked about, one a line.",
        )
    return texts


def _one_of(values: tuple[int, ...]) -> str:
    return ", ".join(map(str, values[:-1])) + f" or {values[-1]}"
