"""Queries, keys and values in one product, for an attention that takes them packed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ptdeploy.passes.edit import add_constant, replace

if TYPE_CHECKING:
    import onnx_ir as ir

    from ptdeploy.passes import PassContext


def run(model: ir.Model, context: PassContext) -> ir.Model:
    """Make the three products that an attention's queries, keys and values come from one.

    A decode step's products with quantized weights are so small that handing each to the threads
    counts. It is done where GroupQueryAttention turns its inputs itself and each comes straight
    from a MatMulNBits of the same input, with or without a bias. Every column keeps its codes.
    """
    graph = model.graph
    for node in list(graph):
        if node.op_type != "GroupQueryAttention" or len(node.inputs) < 9:
            continue
        parts = [_product(value) for value in node.inputs[:3]]
        found = [part for part in parts if part is not None]
        if len(found) == 3 and _alike(found):
            _pack(graph, node, found)
    return model


@dataclass(frozen=True)
class _Product:
    """A product with quantized weights, and the bias that is added to it, if one is."""

    node: ir.Node
    sum: ir.Node | None
    bias: ir.Value | None


def _product(value: ir.Value | None) -> _Product | None:
    """What gives a value that nothing else reads, if it is one."""
    node = None if value is None or len(value.uses()) != 1 else value.producer()
    if node is None or node.op_type != "Add":
        return _Product(node, None, None) if node is not None and _is_plain(node) else None
    for product, bias in (node.inputs, reversed(node.inputs)):
        inner = product.producer() if product is not None else None
        if product is None or inner is None or not _is_plain(inner) or len(product.uses()) != 1:
            continue
        if bias is not None and bias.const_value is not None and len(bias.const_value.shape) == 1:
            return _Product(inner, node, bias)
    return None


def _is_plain(node: ir.Node) -> bool:
    return node.op_type == "MatMulNBits" and len(node.inputs) == 3


def _alike(parts: list[_Product]) -> bool:
    """Whether they read one input in the same way, all with a bias or none."""

    def how(part: _Product) -> object:
        numbers = {name: one.value for name, one in part.node.attributes.items() if name != "N"}
        return part.node.inputs[0], numbers, part.bias is None

    return all(how(part) == how(parts[0]) for part in parts)


def _pack(graph: ir.Graph, attention: ir.Node, parts: list[_Product]) -> None:
    import onnx_ir as ir

    first = parts[0].node
    names = [str(part.node.inputs[1].name) for part in parts if part.node.inputs[1] is not None]
    name = f"{names[0].removesuffix('.q')}.packed"

    def joined(values: list[ir.Value | None], kind: str) -> ir.Value:
        tensors = [one.const_value for one in values if one is not None]
        arrays = [one.numpy() for one in tensors if one is not None]
        return add_constant(graph, f"{name}.{kind}", np.concatenate(arrays))

    weights = [
        joined([part.node.inputs[i] for part in parts], kind)
        for i, kind in ((1, "q"), (2, "scale"))
    ]
    biases: list[ir.Value | None] = []
    if parts[0].bias is not None:
        biases = [None, None, joined([part.bias for part in parts], "bias")]
    numbers = {key: one.value for key, one in first.attributes.items()}
    numbers["N"] = sum(int(part.node.attributes["N"].value) for part in parts)
    product = ir.node(
        "MatMulNBits", [first.inputs[0], *weights, *biases], attributes=numbers, domain=first.domain
    )
    product.outputs[0].type = first.outputs[0].type
    packed = ir.Node(
        attention.domain,
        attention.op_type,
        [product.outputs[0], None, None, *attention.inputs[3:]],
        attributes=list(attention.attributes.values()),
        num_outputs=len(attention.outputs),
        name=attention.name,
    )
    for one in (product, packed):
        one.metadata_props.update(attention.metadata_props)
    replace(graph, attention, product, packed)
    read = [value for part in parts for value in (*part.node.inputs[1:], part.bias)]
    for part in parts:
        graph.remove([one for one in (part.sum, part.node) if one is not None], safe=True)
    for value in read:
        # Layers may share a bias.
        if value is not None and not value.uses():
            graph.initializers.pop(str(value.name), None)
