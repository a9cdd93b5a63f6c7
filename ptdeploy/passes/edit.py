"""What passes change a graph with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx_ir as ir


def add_constant(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """A new constant of the graph."""
    import onnx_ir as ir

    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name,
        const_value=tensor,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(array.shape),
    )
    graph.register_initializer(value)
    return value


def like(node: ir.Node, inputs: Sequence[ir.Value | None], *more: ir.Attr) -> ir.Node:
    """A node anew, of the same module: of other inputs, and with more attributes."""
    import onnx_ir as ir

    made = ir.Node(
        node.domain,
        node.op_type,
        inputs,
        attributes=[*node.attributes.values(), *more],
        num_outputs=len(node.outputs),
        name=node.name,
    )
    made.metadata_props.update(node.metadata_props)
    return made


def take_over(before: ir.Value, after: ir.Value) -> None:
    """Have all that reads a value read another, which gets its name, type and shape."""
    if before.type is not None:
        after.type = before.type
    after.shape, name = before.shape, before.name
    before.replace_all_uses_with(after, replace_graph_outputs=True)
    before.name, after.name = None, name


def replace(graph: ir.Graph, old: ir.Node, *new: ir.Node) -> None:
    """Put nodes where another was; the last one gives what it gave, under the same names."""
    graph.insert_before(old, new)
    for before, after in zip(old.outputs, new[-1].outputs, strict=True):
        take_over(before, after)
    graph.remove(old, safe=True)
