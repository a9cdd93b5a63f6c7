"""How many activations share a scale where OpenVINO multiplies them with weights in int8."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

    from ptdeploy.bundle import Quantization

# The larger, the faster; above the first it gains nothing.
_GROUPS = (128, 64, 32)
LEAST_GROUP = _GROUPS[-1]
IN_INT8 = 4
# OpenVINO computes a product whose columns are no whole number of groups in float32.
_MOST = 0.9
IN_FLOAT32 = (
    "OpenVINO computes products with the quantized weights in float32, which is slower: too many "
    f"have columns that are no whole number of {LEAST_GROUP}."
)


def activation_group(model: ir.Model, quantization: Quantization | None) -> int:
    """The largest group that nine tenths of the quantized weights have whole numbers of.

    It is no larger than their own blocks. 0 where products are computed in float32: none is
    quantized, the accuracy level says so, or no group fits.
    """
    if quantization is None or quantization.accuracy_level != IN_INT8:
        return 0
    sizes = list(_columns(model))
    weights = sum(count for _, count in sizes)
    for group in _GROUPS:
        fit = sum(count for column, count in sizes if column % group == 0)
        if group <= (quantization.block_size or group) and weights and fit >= _MOST * weights:
            return group
    return 0


def _columns(model: ir.Model) -> Iterator[tuple[int, int]]:
    """How long the columns of each quantized matrix are, and how many weights it has."""
    for node in model.graph:
        codes = node.inputs[0].const_value if node.inputs and node.inputs[0] else None
        if node.op_type != "DequantizeLinear" or codes is None:
            continue
        shape = codes.shape.numpy()
        turned = any(one.op_type == "Transpose" for one in node.outputs[0].consumers())
        yield shape[1 if turned else 0], shape[0] * shape[1]
