"""Attention that turns queries and keys itself, by a table of angles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ptdeploy.passes.edit import add_constant, like, replace
from ptdeploy.runtime.joined import offsets_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from ptdeploy.bundle.signature import Signature
    from ptdeploy.passes import PassContext

_Table = NDArray[np.float32]

# The operator takes heads and angles in whole vectors. Source: ONNX Runtime's
# group_query_attention_helper.h.
_HEAD, _ANGLES = 16, 8
# A table larger than that must be small beside the weights.
_ALWAYS, _SHARE = 16 << 20, 20
_TOLERANCE = 1e-6


def run(model: ir.Model, context: PassContext) -> ir.Model:
    """Give GroupQueryAttention a table of cosines and sines instead of turned queries and keys.

    The angles become constants, for as many positions as the context has: no step computes them,
    and two nodes of each layer go. It is done for heads of a multiple of 16 that are turned whole
    or from their start on, by angles that depend on a token's position alone: those of all
    positions are worked out from a row's start on, and must be the same behind a past. Tables that
    would take much beside the weights are not made.
    """
    import onnx_ir.passes.common as common

    if not context.rotary_positions:
        return model
    maker = _Maker(model, context, {})
    for node in list(model.graph):
        turns = _turns(node)
        if turns is None:
            continue
        tables = maker.tables(turns[0])
        if tables is not None and _takes(node, tables[0]):
            _fuse(model.graph, node, turns, tables)
    if any(maker.made.values()):
        common.RemoveUnusedNodesPass()(model)
    return model


def _turns(node: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """What rotates an attention's queries and its keys by the same angles, read by nothing else."""
    if node.op_type != "GroupQueryAttention" or len(node.inputs) > 7:
        return None
    found = [value.producer() for value in node.inputs[:2] if value is not None]
    if len(found) < 2 or any(
        one is None
        or one.op_type != "RotaryEmbedding"
        or len(one.inputs) != 3
        or "interleaved" in one.attributes
        or len(one.outputs[0].uses()) != 1
        for one in found
    ):
        return None
    queries, keys = found
    assert queries is not None
    assert keys is not None
    return (queries, keys) if queries.inputs[1:] == keys.inputs[1:] else None


def _takes(node: ir.Node, table: ir.Value) -> bool:
    """Whether the operator takes heads that are turned by such angles."""
    past = node.inputs[3]
    head = past.shape[3] if past is not None and past.shape is not None else 0
    assert table.shape is not None
    angles = table.shape.numpy()[1]
    return isinstance(head, int) and head % _HEAD == 0 and angles % _ANGLES == 0


def _fuse(
    graph: ir.Graph,
    node: ir.Node,
    turns: tuple[ir.Node, ir.Node],
    tables: tuple[ir.Value, ir.Value],
) -> None:
    import onnx_ir as ir

    inputs = [*(one.inputs[0] for one in turns), *node.inputs[2:]]
    inputs += [None] * (7 - len(inputs))
    replace(graph, node, like(node, [*inputs, *tables], ir.AttrInt64("do_rotary", 1)))


@dataclass
class _Maker:
    """Makes each pair of tables once, and keeps None for angles that are no table's."""

    model: ir.Model
    context: PassContext
    made: dict[tuple[ir.Value, ir.Value], tuple[ir.Value, ir.Value] | None]

    def tables(self, turn: ir.Node) -> tuple[ir.Value, ir.Value] | None:
        """The cosines and the sines that a rotary embedding reads, (positions, angles) each."""
        cos, sin = turn.inputs[1:]
        assert cos is not None
        assert sin is not None
        if (cos, sin) not in self.made:
            self.made[cos, sin] = self._made(cos, sin)
        return self.made[cos, sin]

    def _made(self, cos: ir.Value, sin: ir.Value) -> tuple[ir.Value, ir.Value] | None:
        angles = _angles(self.model, self.context.signature, (cos, sin))
        positions = self.context.rotary_positions
        if angles is None:
            return None
        width = angles([0], 1)[0].shape[-1]
        if 2 * 4 * width * positions > max(_ALWAYS, _bytes(self.model.graph) // _SHARE):
            return None
        tables = [array[0] for array in angles([0], positions)]
        if not all(_agree(tables, past, angles(past, new)) for past, new in _probes(positions)):
            return None
        number = sum(one is not None for one in self.made.values())
        name = f"rotary_{number}" if number else "rotary"
        cosines, sines = tables
        return (
            add_constant(self.model.graph, f"{name}.cos", cosines),
            add_constant(self.model.graph, f"{name}.sin", sines),
        )


_Angles = Callable[[list[int], int], list[_Table]]


def _angles(
    model: ir.Model, signature: Signature, outputs: tuple[ir.Value, ir.Value]
) -> _Angles | None:
    """What computes angles (rows, new, width) of `new` tokens behind rows' pasts.

    None if they depend on more than how many tokens there are.
    """
    import onnx_ir as ir

    from ptdeploy.backends.ort.open import providers, session_options
    from ptdeploy.backends.telemetry import import_onnxruntime

    roles = ("ids", "lengths", "offsets")
    names = {one.role: one.name for one in signature.inputs if one.role in roles}
    given = [one for one in model.graph.inputs if one.name in names.values()]
    try:
        part = ir.convenience.extract(model.graph, given, outputs)
    except ValueError:
        return None
    part.opset_imports.update(model.opset_imports)
    proto = ir.to_proto(ir.Model(part, ir_version=model.ir_version))
    session = import_onnxruntime().InferenceSession(
        proto.SerializeToString(),
        session_options("cpu"),
        providers=providers("cpu"),
        enable_fallback=False,
    )

    def evaluate(past: list[int], new: int) -> list[_Table]:
        feed = {
            names["ids"]: np.zeros((len(past), new), np.int64),
            names["lengths"]: np.array(past, np.int64),
        }
        if "offsets" in names:
            feed[names["offsets"]] = offsets_of([new])
        return list(map(np.asarray, session.run(None, feed)))

    return evaluate


def _probes(positions: int) -> Iterator[tuple[list[int], int]]:
    """Rows' pasts, and how many tokens come behind them, up to the end of the context."""
    last = positions - 1
    yield [last], 1
    yield [1], min(2, last)
    yield [0, last // 2], min(3, last - last // 2)


def _agree(tables: list[_Table], past: list[int], found: list[_Table]) -> bool:
    """Whether those angles are the tables' at the tokens' positions."""
    positions = np.add.outer(past, np.arange(found[0].shape[1]))
    return all(
        one.shape == (len(past), *positions.shape[1:], table.shape[1])
        and np.allclose(one, table[positions], rtol=0, atol=_TOLERANCE)
        for table, one in zip(tables, found, strict=True)
    )


def _bytes(graph: ir.Graph) -> int:
    constants = (one.const_value for one in graph.initializers.values())
    return sum(one.nbytes for one in constants if one is not None)
