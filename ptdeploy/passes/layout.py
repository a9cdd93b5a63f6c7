"""Drop transposes and reshapes that undo each other, such as those between fused operators."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

    from ptdeploy.passes import PassContext


def run(model: ir.Model, context: PassContext) -> ir.Model:
    """Rewrite Transpose(Transpose(x)) and Reshape(Reshape(x)), and reshapes to the shape x has.

    Shapes are compared by the tracer's own symbols, so this runs before they are dropped.
    """
    import onnx_ir.passes.common as common

    for node in list(model.graph):
        if node.op_type == "Transpose":
            _join_transposes(node)
        elif node.op_type == "Reshape":
            _join_reshapes(node)
    common.RemoveUnusedNodesPass()(model)
    return model


def _join_transposes(node: ir.Node) -> None:
    before = _producer(node, "Transpose")
    if before is None or before.inputs[0] is None:
        return
    first, second = (one.attributes.get("perm") for one in (before, node))
    if first is None or second is None:
        return
    perm = [first.as_ints()[axis] for axis in second.as_ints()]
    if perm == list(range(len(perm))):
        _bypass(node, before.inputs[0])


def _join_reshapes(node: ir.Node) -> None:
    before = _producer(node, "Reshape")
    # A zero in the second shape would copy an axis of the first's result.
    if before is not None and _is_literal(node):
        node.replace_input_with(0, before.inputs[0])
    source = node.inputs[0]
    if source is not None and same_shape(source, node.outputs[0]):
        _bypass(node, source)


def _producer(node: ir.Node, op_type: str) -> ir.Node | None:
    producer = node.inputs[0].producer() if node.inputs[0] is not None else None
    return producer if producer is not None and producer.op_type == op_type else None


def _is_literal(reshape: ir.Node) -> bool:
    allowzero = reshape.attributes.get("allowzero")
    return allowzero is not None and allowzero.as_int() == 1


def _bypass(node: ir.Node, source: ir.Value) -> None:
    """Let what reads the node read `source`, unless the node names an output of the graph."""
    if not node.outputs[0].is_graph_output():
        node.outputs[0].replace_all_uses_with(source)


def same_shape(one: ir.Value, other: ir.Value) -> bool:
    """Whether both have one shape for certain: an axis without number or name is not certain."""
    import onnx_ir as ir

    if one.shape is None or other.shape is None or len(one.shape) != len(other.shape):
        return False
    return all(
        a == b and (not isinstance(a, ir.SymbolicDim) or a.value is not None)
        for a, b in zip(one.shape, other.shape, strict=True)
    )
