"""Products of int8 by int8: weights with a scale for each column, activations for each token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptdeploy.passes.edit import add_constant, replace
from ptdeploy.passes.quantize import constant_product

if TYPE_CHECKING:
    import onnx_ir as ir

    from ptdeploy.passes import PassContext

_LARGEST = 127
# Codes of activations are unsigned, as the kernels want them: this one is zero.
_ZERO = 128
# By how much the outputs of these are below zero at most. All others' are looked at.
_LEAST = {"Gelu": 0.17, "Relu": 0.0}
# A token of zeros must not divide by zero.
_TINY = 1e-30


def run(model: ir.Model, context: PassContext) -> ir.Model:
    """Rewrite MatMul, FusedMatMul and Gemm of x and a weight, where activations are quantized.

    x is (batch, tokens, width), or that as rows, (batch * tokens, width). A token's scale is of its
    own values alone, found as the engine runs, so that no token's output hangs on its neighbours
    and nothing needs calibrating. Products of one token for each text stay as they are: there is
    nothing to gain.
    """
    wanted = context.quantization
    if wanted is None or wanted.activations != "int8":
        return model
    rows = _Rows(model.graph)
    for node in list(model.graph):
        found = constant_product(node)
        if found is not None and has_tokens(node):
            rows.quantize(node, *found)
    model.opset_imports["com.microsoft"] = 1
    return model


def quantize(matrix: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes (K, N) and scales (N,) of a matrix (K, N): a value is its code times its scale.

    Symmetric, rounded to nearest.
    """
    scales = (np.abs(matrix).max(axis=0) / _LARGEST).astype(np.float32)
    scales[scales == 0] = 1
    return np.rint(matrix / scales).clip(-_LARGEST, _LARGEST).astype(np.int8), scales


def has_tokens(node: ir.Node) -> bool:
    """Whether a product is of all tokens of a text, not of one."""
    given = node.inputs[0]
    producer = None if given is None else given.producer()
    # All tokens as rows, or all heads of each before that.
    if node.op_type == "Gemm" and producer is not None and producer.op_type == "Reshape":
        given = producer.inputs[0]
    return given is not None and given.shape is not None and len(given.shape) in (3, 4)


class _Rows:
    """Quantizes a graph's products; what several of them read is quantized once."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._weights: dict[tuple[int, bool], tuple[ir.Value, ir.Value]] = {}
        self._codes: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
        self._constants: dict[str, ir.Value] = {}

    def quantize(
        self, node: ir.Node, weight: ir.Value, constant: ir.TensorProtocol, is_transposed: bool
    ) -> None:
        import onnx_ir as ir

        key = id(constant), is_transposed
        if key not in self._weights:
            matrix = constant.numpy()
            name = f"{weight.name}.transposed" if is_transposed else str(weight.name)
            codes, steps = quantize(matrix.T if is_transposed else matrix)
            self._weights[key] = (
                self._constant(f"{name}.q", codes),
                self._constant(f"{name}.scale", steps),
            )
        given = node.inputs[0]
        assert given is not None
        if given not in self._codes:
            width = constant.shape.numpy()[1 if is_transposed else 0]
            self._codes[given] = self._quantized(node, given, width)
        rows, scale = self._codes[given]
        zero = self._constant("zero_point", np.array(_ZERO, np.uint8))
        one = self._constant("one", np.array(1, np.float32))
        packed, columns = self._weights[key]
        product = ir.node(
            "MatMulIntegerToFloat",
            [rows, packed, one, columns, zero],
            domain="com.microsoft",
            name=node.name,
        )
        nodes = [product, ir.node("Mul", [product.outputs[0], scale])]
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            nodes.append(ir.node("Add", [nodes[-1].outputs[0], node.inputs[2]]))
        for new in nodes:
            new.metadata_props.update(node.metadata_props)
        replace(self._graph, node, *nodes)
        if not weight.uses():
            del self._graph.initializers[str(weight.name)]

    def _quantized(self, node: ir.Node, given: ir.Value, width: int) -> tuple[ir.Value, ir.Value]:
        """What a node reads as codes, and its scales, of width 1, made before that node."""
        import onnx_ir as ir

        last = self._constant("last_axis", np.array([-1], np.int64))
        step = self._constant("step", np.array(1 / _LARGEST, np.float32))
        zero = self._constant("zero_point", np.array(_ZERO, np.uint8))
        nodes: list[ir.Node] = []

        def add(kind: str, inputs: list[ir.Value], **attributes: int) -> ir.Value:
            nodes.append(ir.node(kind, inputs, attributes=attributes))
            return nodes[-1].outputs[0]

        producer = given.producer()
        least = _LEAST.get(producer.op_type if producer is not None else "")
        above = [add("ReduceMax", [given, last])]
        if least is None:
            above.append(add("Neg", [add("ReduceMin", [given, last])]))
        bound = max(least or 0.0, _TINY)
        above.append(self._constant(f"least.{bound}", np.array(bound, np.float32)))
        scale = add("Mul", [add("Max", above), step])
        zeros = add("Expand", [zero, add("Shape", [scale])])
        codes = add("QuantizeLinear", [given, scale, zeros], axis=-1, block_size=width)
        for new in nodes:
            new.metadata_props.update(node.metadata_props)
        self._graph.insert_before(node, nodes)
        return codes, scale

    def _constant(self, name: str, array: NDArray[Any]) -> ir.Value:
        if name not in self._constants:
            self._constants[name] = add_constant(self._graph, f"rows.{name}", array)
        return self._constants[name]
