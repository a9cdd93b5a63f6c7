"""Activations and weights in 16 bits, but for what would lose by it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx_ir as ir

    from ptdeploy.passes import PassContext

# Computed in fp32 whatever comes in: sums of many terms, and functions that overflow or lose
# small differences. Norms and fused attention keep their statistics in fp32 themselves.
_KEPT = {"Softmax", "LogSoftmax", "ReduceMean", "ReduceSum", "ReduceL2", "CumSum"}
_KEPT |= {"Pow", "Exp", "Log", "Cos", "Sin"}


def run(model: ir.Model, context: PassContext) -> ir.Model:
    """Compute in float16 or bfloat16 if the context says so; `logits` are widened to fp32 again.

    A node computes in 16 bits if anything it reads does. What is reckoned from whole numbers, such
    as rotary angles from positions, stays fp32 up to where it meets the model's own values.
    """
    import onnx_ir as ir

    if context.activations == "float32":
        return model
    graph, wanted = model.graph, ir.DataType[context.activations.upper()]
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    for value in graph.inputs:
        if value.dtype == ir.DataType.FLOAT:
            value.dtype = wanted
    for node in list(graph):
        if node.op_type == "Cast":
            continue
        floats = (ir.DataType.FLOAT, wanted)
        reads = [v for v in node.inputs if v is not None and v.dtype in floats]
        computed = [v for v in reads if v.const_value is None]
        in_half = node.op_type not in _KEPT and (
            any(v.dtype == wanted for v in computed) or (bool(reads) and not computed)
        )
        dtype = wanted if in_half else ir.DataType.FLOAT
        for index, read in enumerate(node.inputs):
            if read is None or read not in reads or read.dtype == dtype:
                continue
            if (read, dtype) not in casts:
                casts[read, dtype] = _cast(graph, node, read, dtype)
            node.replace_input_with(index, casts[read, dtype])
        if in_half:
            for output in node.outputs:
                if output.dtype == ir.DataType.FLOAT:
                    output.dtype = wanted
    _widen_logits(graph, wanted)
    for name in [n for n, v in graph.initializers.items() if not v.uses()]:
        del graph.initializers[name]
    return model


def _cast(graph: ir.Graph, before: ir.Node, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """The value in another type: a constant is rounded here, anything else by a Cast."""
    import onnx_ir as ir

    name = f"{value.name}.{dtype.name.lower()}"
    if value.const_value is not None:
        constant = ir.tensor(_rounded(value.const_value.numpy(), dtype.numpy()), name=name)
        turned = ir.Value(name=name, const_value=constant, type=ir.TensorType(dtype))
        graph.register_initializer(turned)
        return turned
    node = ir.node("Cast", [value], attributes={"to": dtype.value})
    graph.insert_before(before, node)
    result = node.outputs[0]
    result.name, result.dtype, result.shape = name, dtype, value.shape
    return result


def _rounded(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    # Masks hold the most negative fp32 number, which must not become minus infinity.
    import ml_dtypes

    largest = float(cast("Any", ml_dtypes).finfo(dtype).max)
    finite = np.where(np.isfinite(array), np.clip(array, -largest, largest), array)
    return np.ascontiguousarray(finite.astype(dtype))


def _widen_logits(graph: ir.Graph, narrow: ir.DataType) -> None:
    import onnx_ir as ir

    for index, value in enumerate(graph.outputs):
        if value.name == "logits" and value.dtype == narrow:
            node = ir.node("Cast", [value], attributes={"to": ir.DataType.FLOAT.value})
            graph.append(node)
            wide = node.outputs[0]
            wide.dtype, wide.shape = ir.DataType.FLOAT, value.shape
            value.name, wide.name = f"logits.{narrow.name.lower()}", "logits"
            graph.outputs[index] = wide
