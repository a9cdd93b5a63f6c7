"""Products of activations at a scale that is fixed, for those whose activations were looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ptdeploy.passes import dequantize, quantize_rows
from ptdeploy.passes.edit import add_constant, replace
from ptdeploy.passes.quantize import constant_product

if TYPE_CHECKING:
    import onnx_ir as ir

    from ptdeploy.passes import PassContext


@dataclass(frozen=True, eq=False)
class FixedScale:
    """How activations (tokens, K) become codes, uint8: `x / factors / step + zero`, rounded.

    `factors` (K,) are each channel's own and go over to the weights, so that one step fits all.
    """

    factors: NDArray[np.float32]
    step: float
    zero: int


@dataclass(frozen=True)
class Calibration:
    """At which fixed scale each product takes activations, None where each token has its own.

    `share` is how much of the weights in these products is multiplied with such activations.
    """

    scales: tuple[FixedScale | None, ...]
    share: float


@dataclass(frozen=True, eq=False)
class Product:
    """A product of all tokens with a constant matrix; `given` is what it reads."""

    node: ir.Node
    given: ir.Value
    constant: ir.TensorProtocol
    is_transposed: bool

    @property
    def matrix(self) -> NDArray[np.float32]:
        """It as (K, N)."""
        found = self.constant.numpy().astype(np.float32)
        return found.T if self.is_transposed else found

    @property
    def of(self) -> tuple[int, bool]:
        """The same for all products with one matrix."""
        return id(self.constant), self.is_transposed


def products(model: ir.Model) -> list[Product]:
    """A graph's products in order: the same ones where it is for an engine of floats."""
    found = []
    for node in model.graph:
        one, given = constant_product(node), node.inputs[0] if node.inputs else None
        if one is not None and given is not None and quantize_rows.has_tokens(node):
            found.append(Product(node, given, *one[1:]))
    return found


def run(model: ir.Model, context: PassContext) -> ir.Model:
    """Rewrite the products that the context has a scale for; the other passes take the rest.

    A MatMulIntegerToFloat takes codes; an engine that reads weights through DequantizeLinear gets
    activations so as well. Products that share what they read, or their matrix, share their scale.
    """
    if not context.scales:
        return model
    writer = _Codes(model.graph, context)
    for product, scale in zip(products(model), context.scales, strict=True):
        if scale is not None:
            writer.rewrite(product, scale)
    model.opset_imports["com.microsoft"] = 1
    return model


class _Codes:
    """Rewrites a graph's products; what several of them share becomes codes once."""

    def __init__(self, graph: ir.Graph, context: PassContext) -> None:
        self._graph = graph
        self._reads = context.weights == "DequantizeLinear"
        self._quantization = context.quantization
        self._activations: dict[ir.Value, tuple[ir.Value, ...]] = {}
        self._weights: dict[tuple[int, bool], tuple[ir.Value, ...]] = {}

    def rewrite(self, product: Product, scale: FixedScale) -> None:
        node, given, weight = product.node, product.given, product.node.inputs[1]
        assert weight is not None
        if given not in self._activations:
            self._activations[given] = self._quantized(node, given, scale)
        if product.of not in self._weights:
            self._weights[product.of] = self._stored(product.matrix * scale.factors[:, None])
        rewritten = self._read if self._reads else self._multiply
        rewritten(node, *self._activations[given], *self._weights[product.of])
        if not weight.uses():
            del self._graph.initializers[str(weight.name)]

    def _quantized(self, node: ir.Node, given: ir.Value, scale: FixedScale) -> tuple[ir.Value, ...]:
        """What a node reads as codes, made before that node, with their step and their zero."""
        import onnx_ir as ir

        name = f"fixed.{len(self._activations)}"
        inverse = add_constant(self._graph, f"{name}.inverse", 1 / scale.factors)
        step = add_constant(self._graph, f"{name}.step", np.array(scale.step, np.float32))
        zero = add_constant(self._graph, f"{name}.zero", np.array(scale.zero, np.uint8))
        even = ir.node("Mul", [given, inverse])
        codes = ir.node("QuantizeLinear", [even.outputs[0], step, zero])
        _put_before(self._graph, node, even, codes)
        return codes.outputs[0], step, zero

    def _stored(self, weights: NDArray[np.float32]) -> tuple[ir.Value, ...]:
        """Constants of a matrix (K, N): its codes, and a scale for each column."""
        assert self._quantization is not None, "scales are for quantized engines"
        if self._reads:
            codes, columns = dequantize.quantize(weights, self._quantization)
        else:
            codes, columns = quantize_rows.quantize(weights)
        name = f"fixed.weights.{len(self._weights)}"
        return (
            add_constant(self._graph, f"{name}.q", codes),
            add_constant(self._graph, f"{name}.scale", columns),
        )

    def _multiply(
        self,
        node: ir.Node,
        codes: ir.Value,
        step: ir.Value,
        zero: ir.Value,
        packed: ir.Value,
        columns: ir.Value,
    ) -> None:
        """Codes by codes; a bias that is added to the product goes into it."""
        import onnx_ir as ir

        bias = node.inputs[2] if len(node.inputs) > 2 else None
        last = node
        if bias is None and (added := _addition(node, columns)) is not None:
            last, bias = added
        inputs = [codes, packed, step, columns, zero]
        product = ir.node(
            "MatMulIntegerToFloat",
            inputs if bias is None else [*inputs, None, bias],
            domain="com.microsoft",
        )
        product.metadata_props.update(node.metadata_props)
        replace(self._graph, last, product)
        if last is not node:
            self._graph.remove(node, safe=True)

    def _read(
        self,
        node: ir.Node,
        codes: ir.Value,
        step: ir.Value,
        zero: ir.Value,
        packed: ir.Value,
        columns: ir.Value,
    ) -> None:
        """Activations and weights that come through DequantizeLinear."""
        import onnx_ir as ir

        given = node.inputs[0]
        assert given is not None
        activations = ir.node("DequantizeLinear", [codes, step, zero])
        activations.outputs[0].type, activations.outputs[0].shape = given.type, given.shape
        weights = ir.node("DequantizeLinear", [packed, columns], attributes={"axis": 1})
        weights.outputs[0].type = given.type
        _put_before(self._graph, node, activations, weights)
        node.replace_input_with(0, activations.outputs[0])
        node.replace_input_with(1, weights.outputs[0])
        node.attributes.pop("transB", None)
        if node.op_type == "FusedMatMul":
            node.op_type, node.domain = "MatMul", ""


def _put_before(graph: ir.Graph, node: ir.Node, *new: ir.Node) -> None:
    for one in new:
        one.metadata_props.update(node.metadata_props)
    graph.insert_before(node, new)


def _addition(node: ir.Node, columns: ir.Value) -> tuple[ir.Node, ir.Value] | None:
    """What alone reads a product and adds a constant for each of its columns, and that constant."""
    product = node.outputs[0]
    uses = product.uses()
    if len(uses) != 1 or product.is_graph_output():
        return None
    (use,) = uses
    if use.node.op_type != "Add":
        return None
    bias = use.node.inputs[1 - use.idx]
    if bias is None or not bias.is_initializer() or bias.const_value is None:
        return None
    # The operator takes no single number that is added to every column.
    assert columns.const_value is not None
    return (use.node, bias) if bias.const_value.shape == columns.const_value.shape else None
