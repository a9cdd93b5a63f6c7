"""One order and one naming of a graph's nodes, whatever order its program was traced in.

transformers' models walk through sets of strings, whose order differs from process to process: two
traces of one model have the same nodes in another order, under other names. Passes keep the first
of two equal nodes or weights, and number what they make, so the order comes before all of them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

    from ptdeploy.passes import PassContext

# torch numbers the constants that it finds as it traces, and puts them in the module it is in.
_LIFTED = re.compile(r"(?:.*\.)?(lifted_tensor|lifted_custom)_\d+")


def run(model: ir.Model, context: PassContext) -> ir.Model:
    """Put nodes after what they need, weights in the order they are read, and name the rest anew.

    Nodes are in depth-first order from the outputs: each right after its inputs, first input first.
    Inputs, outputs, parameters and buffers keep their names. A value is named after the operator
    that gives it, and numbered: `matmul`, `matmul_1`. What no output needs is dropped.
    """
    import onnx_ir.passes.common as common

    common.RemoveUnusedNodesPass()(model)
    _sort(model.graph)
    _name(model.graph)
    return model


def _sort(graph: ir.Graph) -> None:
    for node in graph:
        for inner in _subgraphs(node):
            _sort(inner)
    # Nodes that a graph has already move to its end.
    graph.extend(_needed(graph))


def _needed(graph: ir.Graph) -> list[ir.Node]:
    """The nodes that a graph's outputs need, depth first; a loop, for deep models."""
    ordered: dict[ir.Node, None] = {}
    waiting = _producers(graph, reversed(graph.outputs))
    while waiting:
        node = waiting[-1]
        missing = []
        if node not in ordered:
            givers = _producers(graph, _read(node))
            missing = [giver for giver in reversed(givers) if giver not in ordered]
        if missing:
            waiting += missing
        else:
            ordered[waiting.pop()] = None
    return list(ordered)


def _producers(graph: ir.Graph, values: Iterable[ir.Value | None]) -> list[ir.Node]:
    """The graph's own nodes that give values, in the values' order."""
    nodes = [value.producer() for value in values if value is not None]
    return [node for node in nodes if node is not None and node.graph is graph]


def _read(node: ir.Node) -> Iterator[ir.Value | None]:
    """What a node reads: its inputs, and what the graphs in it take from around them."""
    yield from node.inputs
    for graph in _subgraphs(node):
        for inner in graph:
            yield from _read(inner)
        yield from graph.outputs


def _subgraphs(node: ir.Node) -> list[ir.Graph]:
    """The graphs of an operator such as If or Loop, by attribute."""
    import onnx_ir as ir

    found: list[ir.Graph] = []
    for _, attribute in sorted(node.attributes.items()):
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            found += attribute.as_graphs()
    return found


def _name(graph: ir.Graph) -> None:
    """Name what the exporter named, in the order of the nodes, inner graphs' among it."""
    graphs = [graph, *(inner for node in graph for inner in _inner_graphs(node))]
    weights = {one: _in_order(one, graphs) for one in graphs}
    kept = {str(value.name) for value in (*graph.inputs, *graph.outputs)}
    kept |= {str(v.name) for held in weights.values() for v in held if not _lifted(v)}
    names = _Names(kept)
    for one, held in weights.items():
        # Two that swap their names must not meet.
        one.initializers.clear()
        for value in held:
            if lifted := _lifted(value):
                value.name = names.new(lifted)
            one.initializers.add(value)
    outputs = set(graph.outputs)
    for one in graphs:
        for value in one.inputs if one is not graph else ():
            value.name = names.new("given")
        for node in one:
            for value in node.outputs:
                if value.name and value not in outputs:
                    value.name = names.new(node.op_type.lower())
            node.name = f"node_{next(filter(None, (value.name for value in node.outputs)))}"


def _inner_graphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs in a node, and in their nodes."""
    for graph in _subgraphs(node):
        yield graph
        for inner in graph:
            yield from _inner_graphs(inner)


def _in_order(graph: ir.Graph, graphs: list[ir.Graph]) -> list[ir.Value]:
    """A graph's initializers as nodes read them; then those that are outputs or inputs alone."""
    mine = set(graph.initializers.values())
    read = [value for one in graphs for node in one for value in node.inputs if value in mine]
    rest = sorted(mine, key=lambda value: str(value.name))
    return [value for value in dict.fromkeys((*read, *rest)) if value is not None]


def _lifted(value: ir.Value) -> str:
    """What torch calls a constant that it found while it traced; "" for all others."""
    found = _LIFTED.fullmatch(str(value.name))
    return found[1] if found else ""


class _Names:
    """Names that are not taken."""

    def __init__(self, taken: set[str]) -> None:
        self._taken = taken
        self._count: Counter[str] = Counter()

    def new(self, stem: str) -> str:
        """The stem, or the stem with its next number."""
        while True:
            count = self._count[stem]
            self._count[stem] += 1
            name = f"{stem}_{count}" if count else stem
            if name not in self._taken:
                self._taken.add(name)
                return name
