"""The last layer for the one token that the head reads; its keys and values are everyone's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

    from ptdeploy.passes import PassContext

# What gives each token's output from that token's inputs alone.
_ALONE = {"Cast", "Erf", "Gelu", "Relu", "Sigmoid", "Tanh", "Elu", "Softplus"}
_SUMS = {"Add", "Sub", "Mul", "Div"}
_NORMS = {"LayerNormalization", "SimplifiedLayerNormalization"}


def run(model: ir.Model, context: PassContext) -> ir.Model:
    """Where only the first token of a layer's output is read, compute only that token's.

    A Gather of token 0 from (batch, tokens, width) is moved up through all that works on each token
    alone, and to an attention's queries, as far as nothing else reads what lies between.
    """
    for node in list(model.graph):
        read = _first_token(node)
        if read is not None:
            _narrow(model.graph, node, read)
    return model


def _first_token(node: ir.Node) -> ir.Value | None:
    """The (batch, tokens, width) that a node takes token 0 from."""
    if node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 1:
        return None
    values, index = node.inputs
    if values is None or index is None or index.const_value is None:
        return None
    chosen = index.const_value.numpy()
    is_first = chosen.ndim == 0 and int(chosen) == 0
    return values if is_first and _rank(values) == 3 else None


def _narrow(graph: ir.Graph, reader: ir.Node, read: ir.Value) -> None:
    import numpy as np
    import onnx_ir as ir

    narrowed = _narrowable(graph, reader, read)
    if not any(node.op_type == "MatMul" for node in narrowed):
        return
    outputs = {node.outputs[0] for node in narrowed}
    first = ir.Value(
        name=f"{reader.outputs[0].name}.first_token",
        const_value=ir.tensor(np.zeros(1, np.int64)),
        type=ir.TensorType(ir.DataType.INT64),
        shape=ir.Shape((1,)),
    )
    graph.register_initializer(first)
    taken: dict[ir.Value, ir.Value] = {}
    for node in narrowed:
        for place in _row_inputs(node):
            wide = node.inputs[place]
            if wide is None or wide in outputs:
                continue
            if wide not in taken:
                gather = ir.node("Gather", [wide, first], attributes={"axis": 1})
                gather.metadata_props.update(node.metadata_props)
                gather.outputs[0].name = f"{wide.name}.first_token"
                gather.outputs[0].type = wide.type
                graph.insert_before(node, gather)
                taken[wide] = gather.outputs[0]
            node.replace_input_with(place, taken[wide])
        node.outputs[0].shape = None


def _narrowable(graph: ir.Graph, reader: ir.Node, read: ir.Value) -> list[ir.Node]:
    """The nodes that need compute one token alone for it to be read, in the graph's order."""
    chosen: dict[ir.Node, None] = {}
    for node in reversed(list(graph)):
        if not node.outputs or not _works_alone(node):
            continue
        output = node.outputs[0]
        if output.is_graph_output() or not list(output.uses()):
            continue
        if all(
            (user is reader and output is read)
            or (user in chosen and place in set(_row_inputs(user)))
            for user, place in output.uses()
        ):
            chosen[node] = None
    return list(reversed(chosen))


def _works_alone(node: ir.Node) -> bool:
    """Whether a node gives each token's output from its own inputs, and an attention's keys."""
    kind, inputs = node.op_type, node.inputs
    if len([one for one in node.outputs if one.name]) != 1 or not inputs:
        return False
    if kind in _ALONE:
        return True
    if kind in _NORMS:
        return node.attributes.get_int("axis", -1) in (-1, 2) and _rank(inputs[0]) == 3
    if kind == "MatMul":
        return _rank(inputs[0]) == 3 and _rank(inputs[1]) == 2
    if kind in _SUMS:
        return all(_is_constant(one) or _rank(one) == 3 for one in inputs)
    # An attention bias would have an axis of queries.
    return kind == "MultiHeadAttention" and all(one is None for one in inputs[5:])


def _row_inputs(node: ir.Node) -> Iterator[int]:
    """The places of a node's inputs that have a row for each token of its output."""
    if node.op_type in _SUMS:
        yield from (i for i, one in enumerate(node.inputs) if not _is_constant(one))
    else:
        yield 0


def _is_constant(value: ir.Value | None) -> bool:
    """Whether it is a constant that is the same for all tokens."""
    return value is not None and value.const_value is not None and len(value.const_value.shape) < 2


def _rank(value: ir.Value | None) -> int:
    return -1 if value is None or value.shape is None else len(value.shape)
