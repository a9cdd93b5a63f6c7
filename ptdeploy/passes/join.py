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
    """Let attention see of the new tokens only those of a token's own row.

    Where the signature has offsets, a sequence may be several rows that share a past: each begins
    at an offset of 0. What hides the other rows is worked out once for all layers. Attention that
    turns queries and keys itself is given each token's position; else the model numbers them.
    Without a past the operator takes the first token's position and counts on from it: several rows
    need one.
    """
    names = {one.role: one.name for one in context.signature.inputs}
    attention = [n for n in model.graph if n.op_type == "GroupQueryAttention"]
    if "offsets" not in names or not attention:
        return model
    values = {value.name: value for value in model.graph.inputs}
    offsets, lengths = values[names["offsets"]], values[names["lengths"]]
    positions = None
    if any("do_rotary" in node.attributes for node in attention):
        positions = _Made(model.graph, attention[0]).positions(lengths, offsets)
    biases: dict[ir.Value, ir.Value] = {}
    for node in attention:
        total = node.inputs[_TOTAL]
        assert total is not None, "attention over a buffer has it"
        if total not in biases:
            biases[total] = _Made(model.graph, node).bias(offsets, total)
        inputs = [*node.inputs, *[None] * (_BIAS + 1 - len(node.inputs))]
        inputs[_POSITIONS] = positions if "do_rotary" in node.attributes else None
        inputs[_BIAS] = biases[total]
        replace(model.graph, node, like(node, inputs))
    return model


class _Made:
    """New nodes, all before the first one that reads what they give."""

    def __init__(self, graph: ir.Graph, first: ir.Node) -> None:
        self._graph, self._first = graph, first

    def positions(self, lengths: ir.Value, offsets: ir.Value) -> ir.Value:
        """(batch, sequence): each token's own."""
        return self.add("Add", self.add("Unsqueeze", lengths, self.ints("rows", [1])), offsets)

    def bias(self, offsets: ir.Value, total: ir.Value) -> ir.Value:
        """(1, 1, sequence, total): 0 for the past and a token's own row, else what hides."""
        import onnx_ir as ir

        zero = self.ints("zero", 0)
        begins = self.add("Cast", self.add("Equal", offsets, zero), to=ir.DataType.INT64)
        row = self.add("CumSum", begins, zero)
        column = self.add("Unsqueeze", row, self.ints("rows", [1]))
        own = self.add("Equal", column, row)
        nothing = self._constant("seen", np.zeros((), np.float32))
        hidden = self._constant("hidden", np.array(_HIDDEN))
        new = self.add("Where", own, nothing, hidden)
        whole = self.add("Cast", total, to=ir.DataType.INT64)
        past = self.add("Sub", whole, self.add("Size", offsets))
        before = self.add("Reshape", past, self.ints("rows", [1]))
        none = self.ints("none", [0])
        pads = self.add("Concat", none, before, none, none, axis=0)
        return self.add("Unsqueeze", self.add("Pad", new, pads), self.ints("outer", [0, 1]))

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
