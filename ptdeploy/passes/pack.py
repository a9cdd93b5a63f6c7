"""Queries, keys and values in one product, for an attention that takes them packed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ptdeploy.passes.edit import add_constant, like, replace

if TYPE_CHECKING:
    import onnx_ir as ir

    from ptdeploy.passes import PassContext


def run(model: ir.Model, context: PassContext) -> ir.Model:
    """Make the three products that an attention's queries, keys and values come from one.

    A decode step's products with quantized weights are so small that handing each to the threads
    counts. It is done where GroupQueryAttention turns its inputs itself and each comes straight
    from a MatMulNBits of the same input, with or without a bias. Every column keeps its codes.
    """
    import onnx_ir.passes.common as common

    packed = False
    for node in list(model.graph):
        if node.op_type != "GroupQueryAttention" or "do_rotary" not in node.attributes:
            continue
        parts = [part for value in node.inputs[:3] if (part := _product(value)) is not None]
        if len(parts) == 3 and _alike(parts):
            _pack(model.graph, node, parts)
            packed = True
    if packed:
        common.RemoveUnusedNodesPass()(model)
    return model


@dataclass(frozen=True)
class _Product:
    """A product with quantized weights, and its constants: codes, scales, perhaps a bias."""

    node: ir.Node
    constants: tuple[ir.Value, ...]


def _product(value: ir.Value | None) -> _Product | None:
    """What gives a value that nothing else reads, if it is one."""
    node = _giver(value)
    if node is None:
        return None
    if node.op_type != "Add":
        return _plain(node)
    for product, bias in (node.inputs, reversed(node.inputs)):
        inner = _giver(product)
        part = None if inner is None else _plain(inner)
        if part is None or bias is None or bias.const_value is None:
            continue
        if len(bias.const_value.shape) == 1:
            return _Product(part.node, (*part.constants, bias))
    return None


def _giver(value: ir.Value | None) -> ir.Node | None:
    """The node that gives a value, if only one reads it."""
    return None if value is None or len(value.uses()) != 1 else value.producer()


def _plain(node: ir.Node) -> _Product | None:
    """The product itself, if it is one without more inputs."""
    if node.op_type != "MatMulNBits" or len(node.inputs) != 3:
        return None
    constants = tuple(one for one in node.inputs[1:] if one is not None)
    return _Product(node, constants)


def _alike(parts: list[_Product]) -> bool:
    """Whether they read one input in the same way, all with a bias or none."""

    def how(part: _Product) -> object:
        numbers = {name: one.value for name, one in part.node.attributes.items() if name != "N"}
        return part.node.inputs[0], numbers, len(part.constants)

    return all(how(part) == how(parts[0]) for part in parts)


def _pack(graph: ir.Graph, attention: ir.Node, parts: list[_Product]) -> None:
    import onnx_ir as ir

    first = parts[0].node
    name = f"{str(parts[0].constants[0].name).removesuffix('.q')}.packed"
    joined = []
    for kind, values in zip(
        ("q", "scale", "bias"), zip(*(part.constants for part in parts), strict=True), strict=False
    ):
        arrays = [one.const_value.numpy() for one in values if one.const_value is not None]
        joined.append(add_constant(graph, f"{name}.{kind}", np.concatenate(arrays)))
    codes, scales, *bias = joined
    numbers = {key: one.value for key, one in first.attributes.items()}
    numbers["N"] = sum(int(part.node.attributes["N"].value) for part in parts)
    product = ir.node(
        "MatMulNBits",
        # Between scales and bias are zero points and an order of groups.
        [first.inputs[0], codes, scales, *((None, None, *bias) if bias else ())],
        attributes=numbers,
        domain=first.domain,
    )
    product.metadata_props.update(attention.metadata_props)
    product.outputs[0].type = first.outputs[0].type
    packed = like(attention, [product.outputs[0], None, None, *attention.inputs[3:]])
    replace(graph, attention, product, packed)
