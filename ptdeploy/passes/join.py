"""Attention that keeps apart rows that come as one sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptdeploy.passes.edit import add_constant, like, replace
from ptdeploy.passes.name import MODULE_KEY

if TYPE_CHECKING:
    import onnx_ir as ir

    from ptdeploy.passes import PassContext

# Where GroupQueryAttention takes how many tokens there are with the past, each token's position
# and what is added to the scores. Source: ONNX Runtime's group_query_attention.cc.
_TOTAL, _POSITIONS, _BIAS = 6, 9, 10
# Of a hidden token; a score is added to it.
_HIDDEN = np.float32(np.finfo(np.float32).min / 2)


def run(model: ir.Model, context: PassContext) -> ir.Model:
    """Let attention see of the new tokens and of the past only what is a token's own row's.

    Where the signature has offsets, a sequence may be several rows: each begins at a place of 0,
    behind those slots of the past that its offsets leave. What hides the others is worked out once
    for all layers. Attention that turns queries and keys itself is given each token's position;
    else the model numbers them. Without a past the operator takes the first token's position and
    counts on from it: several rows need a slot of it, if only one that none sees.
    """
    names = {one.role: one.name for one in context.signature.inputs}
    attention = [n for n in model.graph if n.op_type == "GroupQueryAttention"]
    if "offsets" not in names or not attention:
        return model
    values = {value.name: value for value in model.graph.inputs}
    first = _Made(model.graph, attention[0])
    parts = first.parts(values[names["offsets"]])
    positions = None
    if any("do_rotary" in node.attributes for node in attention):
        positions = first.positions(values[names["lengths"]], parts)
    biases: dict[ir.Value, ir.Value] = {}
    for node in attention:
        total = node.inputs[_TOTAL]
        assert total is not None, "attention over a buffer has it"
        if total not in biases:
            biases[total] = _Made(model.graph, node).bias(parts, total)
        inputs = [*node.inputs, *[None] * (_BIAS + 1 - len(node.inputs))]
        inputs[_POSITIONS] = positions if "do_rotary" in node.attributes else None
        inputs[_BIAS] = biases[total]
        replace(model.graph, node, like(node, inputs))
    return model


class _Made:
    """New nodes, all before the first one that reads what they give."""

    def __init__(self, graph: ir.Graph, first: ir.Node) -> None:
        self._graph, self._first = graph, first

    def parts(self, offsets: ir.Value) -> list[ir.Value]:
        """Of each token its place, and what of the past is hidden before and behind its own."""
        return [self.add("Gather", offsets, self.ints(f"part_{part}", part)) for part in range(3)]

    def positions(self, lengths: ir.Value, parts: Sequence[ir.Value]) -> ir.Value:
        """(batch, sequence): each token's own."""
        place, before, behind = parts
        own = self.add("Sub", self.add("Sub", place, before), behind)
        return self.add("Add", self._column(lengths), own)

    def bias(self, parts: Sequence[ir.Value], total: ir.Value) -> ir.Value:
        """(1, 1, sequence, total): 0 for what is of a token's own row, else what hides."""
        place, before, behind = parts
        begins = self._integer(self.add("Equal", place, self.ints("zero", 0)))
        row = self.add("CumSum", begins, self.ints("zero", 0))
        new = self._hiding(self.add("Equal", self._column(row), row))
        past = self.add("Sub", self._integer(total), self.add("Size", place))
        slots = self.add("Range", self.ints("zero", 0), past, self.ints("one", 1))
        last = self.add("Sub", past, behind)
        own = self.add(
            "And",
            self.add("GreaterOrEqual", slots, self._column(before)),
            self.add("Less", slots, self._column(last)),
        )
        whole = self.add("Concat", self._hiding(own), new, axis=1)
        return self.add("Unsqueeze", whole, self.ints("outer", [0, 1]))

    def _column(self, values: ir.Value) -> ir.Value:
        return self.add("Unsqueeze", values, self.ints("rows", [1]))

    def _integer(self, value: ir.Value) -> ir.Value:
        import onnx_ir as ir

        return self.add("Cast", value, to=ir.DataType.INT64)

    def _hiding(self, seen: ir.Value) -> ir.Value:
        nothing = self._constant("seen", np.zeros((), np.float32))
        return self.add("Where", seen, nothing, self._constant("hidden", np.array(_HIDDEN)))

    def ints(self, name: str, values: int | Sequence[int]) -> ir.Value:
        return self._constant(name, np.array(values, np.int64))

    def _constant(self, name: str, array: NDArray[Any]) -> ir.Value:
        """Made once."""
        name = f"joined.{name}"
        made = self._graph.initializers.get(name)
        return add_constant(self._graph, name, array) if made is None else made

    def add(self, operator: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        import onnx_ir as ir

        kinds = [ir.AttrInt64(name, int(value)) for name, value in attributes.items()]
        node = ir.Node("", operator, inputs, attributes=kinds, num_outputs=1)
        node.metadata_props[MODULE_KEY] = ""
        self._graph.insert_before(self._first, node)
        return node.outputs[0]
