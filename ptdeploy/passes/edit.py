"""What passes change a graph with."""

from __future__ import annotations

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


def replace(graph: ir.Graph, old: ir.Node, *new: ir.Node) -> None:
    """Put nodes where another was; the last one gives what it gave, under the same names."""
    graph.insert_before(old, new)
    for before, after in zip(old.outputs, new[-1].outputs, strict=True):
        if before.dtype is not None:
            after.dtype = before.dtype
        after.shape = before.shape
        name = before.name
        before.replace_all_uses_with(after, replace_graph_outputs=True)
        before.name, after.name = None, name
    graph.remove(old, safe=True)
