"""What each precision is and may cost: the one table of it.

`make schema` writes it into docs/parity.md; help texts are made from it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeVar

import msgspec

if TYPE_CHECKING:  # --help reads this table, and is not to wait for numpy
    import numpy as np
    from numpy.typing import NDArray

    _Scale = TypeVar("_Scale", float, NDArray[np.float64])


class Thresholds(msgspec.Struct, frozen=True):
    """What a precision that quantizes no weights may cost.

    A logits difference may reach `max_abs` + `relative` times the largest reference logit; `kl` is
    in nats. Top-1 and greedy tokens must agree wherever the reference's own margin is larger than
    twice that difference: below it either token is as right. `min_top1_agreement` is the share of
    a case's positions that must agree whatever the margin.
    """

    max_abs: float
    relative: float
    cosine: float
    kl: float
    min_top1_agreement: float = 0.0

    def allowed(self, scale: _Scale) -> _Scale:
        """What a logit may be off by, where the largest one of the reference is `scale`."""
        return self.max_abs + self.relative * scale


class QuantizedWeights(msgspec.Struct, frozen=True):
    """How a precision quantizes weights, and what the engine must keep on the evaluation text.

    `min_agreement` and `max_perplexity_ratio` are what round-to-nearest in blocks of 32 keeps on
    models that were trained, with some room. `min_class_agreement` is of a classifier's answers
    that are no near ties (parity/quality.py). `max_logits_error` (parity/quality.py) is of a
    classifier: measured were 0.02 (int8), 0.16 (int4) and 0.06 (fp8) on a trained model, up to 0.09
    (int8) and 0.73 (int4) on random ones that answer to the text.
    """

    bits: int
    min_agreement: float
    max_perplexity_ratio: float
    max_logits_error: float
    min_class_agreement: float
    type: Literal["int", "float8e4m3fn"] = "int"


class Precision(msgspec.Struct, frozen=True):
    """One precision: held by `thresholds` on logits, or by the evaluation text where `weights` are
    quantized.

    `inner_tolerance` is what a float32 value inside the engine may be off by, over its tensor's
    largest, before --locate takes it for a mismatch.
    """

    name: str
    inner_tolerance: float
    thresholds: Thresholds | None = None
    weights: QuantizedWeights | None = None


_FP32 = Thresholds(max_abs=1e-5, relative=1e-5, cosine=0.99999, kl=1e-6)
# Products of 10 bits of mantissa, summed in fp32.
_TF32 = Thresholds(max_abs=5e-3, relative=5e-3, cosine=0.9999, kl=1e-4)
_FP16 = Thresholds(max_abs=1e-2, relative=1e-2, cosine=0.999, kl=1e-3)
# 8 bits of mantissa, 7 of them stored: eight times fp16's steps.
_BF16 = Thresholds(max_abs=8e-2, relative=8e-2, cosine=0.95, kl=1e-2)
_INT8 = QuantizedWeights(8, 0.97, 1.02, max_logits_error=0.15, min_class_agreement=0.995)
_INT4 = QuantizedWeights(4, 0.80, 1.15, max_logits_error=0.75, min_class_agreement=0.95)
_FP8 = QuantizedWeights(8, 0.93, 1.05, 0.35, min_class_agreement=0.99, type="float8e4m3fn")

PRECISIONS = {
    one.name: one
    for one in (
        Precision("fp32", 2e-5, _FP32),
        Precision("tf32", 5e-3, _TF32),
        # Its halves have a tolerance of their own; what stays float32 is as exact as in fp32.
        Precision("fp16", 2e-5, _FP16),
        # Values come out of a bf16 engine as float32.
        Precision("bf16", 4e-2, _BF16),
        Precision("int8", 0.3, weights=_INT8),
        Precision("int4", 0.3, weights=_INT4),
        Precision("fp8", 0.3, weights=_FP8),
    )
}
# The same tolerance for values of these types, whatever the precision, where it is larger.
INNER_TYPES = {"float16": 5e-3, "bfloat16": 4e-2}
# Quantized weights are evaluated by what they do to text, and batches against the engine's own rows
# alone (parity/own.py): against the reference a case only has to be finite.
FINITE = Thresholds(max_abs=1e30, relative=0, cosine=-1, kl=1e30)


def looser(precision: str, other: str) -> str:
    """Of two precisions the one whose thresholds allow more; the first if it has none."""
    own, others = PRECISIONS.get(precision), PRECISIONS.get(other)
    if not (own and own.thresholds and others and others.thresholds):
        return precision
    return other if others.thresholds.max_abs > own.thresholds.max_abs else precision


def quantized() -> dict[str, QuantizedWeights]:
    """The precisions that quantize weights, by name."""
    return {name: one.weights for name, one in PRECISIONS.items() if one.weights is not None}


def default_words(bound: str, digits: int = 2) -> str:
    """A bound of the precisions that quantize, in their order, for help texts."""
    return ", ".join(f"{getattr(weights, bound):.{digits}f}" for weights in quantized().values())
