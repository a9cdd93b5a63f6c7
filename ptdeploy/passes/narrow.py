"""The last layer for the tokens that are asked for alone; its keys and values are everyone's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ptdeploy.passes.edit import add_constant

if TYPE_CHECKING:
    import onnx_ir as ir

    from ptdeploy.passes import PassContext

# What gives each token's output from that token's inputs alone.
_ALONE = {"Cast", "Erf", "Gelu", "Relu", "Sigmoid", "Tanh", "Elu", "Softplus"}
_SUMS = {"Add", "Sub", "Mul", "Div"}
_NORMS = {"LayerNormalization", "SimplifiedLayerNormalization"}


def run(model: ir.Model, context: PassContext) -> ir.Model:
    """Where only some tokens of a layer's output are read, compute only those.

    A Gather of token 0, or of the tokens that an input of the graph names, from (batch, tokens,
    width) is moved up through all that works on each token alone, and to an attention's queries, as
    far as nothing else reads what lies between.
    """
    for node in list(model.graph):
        read = _tokens_of(node)
        if read is not None:
            _narrow(model.graph, node, read)
    return model


def _tokens_of(node: ir.Node) -> ir.Value | None:
    """The (batch, tokens, width) that a node takes token 0 from, or those that an input names."""
    if node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 1:
        return None
    values, index = node.inputs
    if values is None or index is None or _rank(values) != 3:
        return None
    if _named(index) is not None:
        return values
    chosen = None if index.const_value is None else index.const_value.numpy()
    return values if chosen is not None and chosen.ndim == 0 and int(chosen) == 0 else None


def _named(index: ir.Value) -> ir.Value | None:
    """The input of the graph that has the place of each token that is read.

    The exporter makes it flat, which it is already.
    """
    node = index.producer()
    given = index if node is None or node.op_type != "Reshape" else node.inputs[0]
    if given is None or not given.is_graph_input() or given.const_value is not None:
        return None
    return given if _rank(given) == _rank(index) == 1 else None


def _narrow(graph: ir.Graph, reader: ir.Node, read: ir.Value) -> None:
    import onnx_ir as ir

    narrowed = _narrowable(graph, reader, read)
    if not any(node.op_type == "MatMul" for node in narrowed):
        return
    index = reader.inputs[1]
    assert index is not None
    named = _named(index)
    places = named or _first(graph, reader)
    suffix = "tokens" if named else "first_token"
    outputs = {node.outputs[0] for node in narrowed}
    taken: dict[ir.Value, ir.Value] = {}
    for node in narrowed:
        for place in _row_inputs(node):
            wide = node.inputs[place]
            if wide is None or wide in outputs:
                continue
            if wide not in taken:
                gather = ir.node("Gather", [wide, places], attributes={"axis": 1})
                gather.metadata_props.update(node.metadata_props)
                gather.outputs[0].name = f"{wide.name}.{suffix}"
                gather.outputs[0].type = wide.type
                gather.outputs[0].shape = _narrowed_shape(wide, named)
                graph.insert_before(node, gather)
                taken[wide] = gather.outputs[0]
            node.replace_input_with(place, taken[wide])
        node.outputs[0].shape = _narrowed_shape(node.outputs[0], named)
    if named:
        _drop(graph, reader, read)


def _narrowed_shape(wide: ir.Value, named: ir.Value | None) -> ir.Shape | None:
    """What is left of (batch, tokens, width): unknown where it is a single token's."""
    import onnx_ir as ir

    if named is None or named.shape is None or wide.shape is None or len(wide.shape) != 3:
        return None
    return ir.Shape([wide.shape[0], named.shape[0], wide.shape[2]])


def _drop(graph: ir.Graph, reader: ir.Node, read: ir.Value) -> None:
    """Take out a Gather whose input is now what it gave."""
    index, name = reader.inputs[1], reader.outputs[0].name
    reader.outputs[0].replace_all_uses_with(read, replace_graph_outputs=True)
    graph.remove(reader, safe=True)
    read.name = name
    flat = None if index is None else index.producer()
    if flat is not None and not flat.outputs[0].uses():
        graph.remove(flat, safe=True)


def _first(graph: ir.Graph, reader: ir.Node) -> ir.Value:
    """A constant of the place of token 0 alone, which keeps the axis that it is taken from."""
    import numpy as np

    return add_constant(graph, f"{reader.outputs[0].name}.first_token", np.zeros(1, np.int64))


def _narrowable(graph: ir.Graph, reader: ir.Node, read: ir.Value) -> list[ir.Node]:
    """The nodes that need compute no more tokens than are read, in the graph's order."""
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
        # A matrix for all rows, or one for each.
        return _rank(inputs[0]) == 3 and _rank(inputs[1]) in (2, 3)
    if kind in _SUMS:
        return all(_is_shared(one) or _rank(one) == 3 for one in inputs)
    # An attention bias would have an axis of queries.
    return kind == "MultiHeadAttention" and all(one is None for one in inputs[5:])


def _row_inputs(node: ir.Node) -> Iterator[int]:
    """The places of a node's inputs that have a row for each token of its output."""
    if node.op_type in _SUMS:
        yield from (i for i, one in enumerate(node.inputs) if not _is_shared(one))
    else:
        yield 0


def _is_shared(value: ir.Value | None) -> bool:
    """Whether it is the same for all tokens: a constant, or one vector for each row."""
    if value is None:
        return False
    if value.const_value is not None and len(value.const_value.shape) < 2:
        return True
    return _rank(value) == 3 and value.shape is not None and value.shape[1] == 1


def _rank(value: ir.Value | None) -> int:
    return -1 if value is None or value.shape is None else len(value.shape)
