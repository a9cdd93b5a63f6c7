"""How weights are rounded, and what that may cost: the request, checked before any work."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from ptdeploy.arguments import number, path, whole
from ptdeploy.bundle import Quantization
from ptdeploy.errors import InputError
from ptdeploy.text_files import read_lines

_BITS = {"int8": 8, "int4": 4, "fp8": 8}
# What round-to-nearest in blocks of 32 keeps on models that were trained, with some room.
_KEEPS = {"int8": (0.97, 1.02), "int4": (0.80, 1.15), "fp8": (0.93, 1.05)}
# Largest logits error (parity/quality.py) of a classifier. Measured: 0.02, 0.16 and 0.06 on a
# trained model, up to 0.09 and 0.73 in int8 and int4 on random ones that answer to the text.
_LOGITS_ERROR = {"int8": 0.15, "int4": 0.75, "fp8": 0.35}
_BLOCK_SIZES = (16, 32, 64, 128, 256)
_ACCURACY_LEVELS = (1, 4)


@dataclass(frozen=True)
class Rounding:
    """Options of the precisions int8, int4 and fp8; None is the precision's own default.

    `quality_text` is a UTF-8 file with one text a line, to judge the engine on instead of ours.
    """

    block_size: int | None = None
    accuracy_level: int | None = None
    min_agreement: float | None = None
    max_perplexity_ratio: float | None = None
    max_logits_error: float | None = None
    quality_text: str | Path | None = None


# What its fields may be, where they are not None.
ROUNDING = {
    "block_size": whole(),
    "accuracy_level": whole(),
    "min_agreement": number,
    "max_perplexity_ratio": number,
    "max_logits_error": number,
    "quality_text": path,
}


def quantization_for(
    precision: str, rounding: Rounding, block_size: int = 32, matmul_nbits: bool = True
) -> Quantization | None:
    """How a precision stores weights; None if it rounds none.

    `block_size` is the target's own, 0 where a scale is for a whole column; `matmul_nbits` says
    whether its products are ONNX Runtime's operator, which has accuracy levels.
    Raises InputError if an option is out of range or the precision has none.
    """
    if precision not in _BITS:
        for field in fields(rounding):
            if getattr(rounding, field.name) is not None:
                raise InputError(
                    f"--{field.name.replace('_', '-')} is about rounded weights, and {precision} "
                    f"rounds none.",
                    "Choose --precision int8 or int4.",
                )
        return None
    is_float = precision == "fp8"
    if rounding.accuracy_level is not None and not matmul_nbits:
        raise InputError("--accuracy-level is ONNX Runtime's; this target has none.")
    if rounding.block_size is not None and (is_float or not block_size):
        raise InputError(f"--block-size: this target's {precision} has a scale for each column.")
    agreement, ratio = _KEEPS[precision]
    found = Quantization(
        bits=_BITS[precision],
        block_size=block_size if rounding.block_size is None else rounding.block_size,
        accuracy_level=rounding.accuracy_level or (4 if matmul_nbits else 0),
        min_agreement=agreement if rounding.min_agreement is None else rounding.min_agreement,
        max_perplexity_ratio=ratio
        if rounding.max_perplexity_ratio is None
        else rounding.max_perplexity_ratio,
        type="float8e4m3fn" if is_float else "int",
        max_logits_error=_LOGITS_ERROR[precision]
        if rounding.max_logits_error is None
        else rounding.max_logits_error,
    )
    for option, holds, wanted in (
        ("--block-size", rounding.block_size in (None, *_BLOCK_SIZES), _one_of(_BLOCK_SIZES)),
        (
            "--accuracy-level",
            rounding.accuracy_level in (None, *_ACCURACY_LEVELS),
            _one_of(_ACCURACY_LEVELS),
        ),
        ("--min-agreement", 0 <= found.min_agreement <= 1, "from 0 to 1"),
        ("--max-perplexity-ratio", found.max_perplexity_ratio > 0, "more than 0"),
        ("--max-logits-error", (found.max_logits_error or 0) > 0, "more than 0"),
    ):
        if not holds:
            raise InputError(f"{option} must be {wanted}.")
    return found


def read_texts(path: str | Path) -> tuple[str, ...]:
    """The lines of a text file that are not blank. Raises InputError if there are none."""
    texts = tuple(line for line in read_lines(path, "--quality-text") if line.strip())
    if not texts:
        raise InputError(f"--quality-text {path}: holds no text.")
    return texts


def _one_of(values: tuple[int, ...]) -> str:
    return ", ".join(map(str, values[:-1])) + f" or {values[-1]}"
