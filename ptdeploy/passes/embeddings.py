"""Embeddings in 8 bits: token ids look up codes and each row's scale."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ptdeploy.passes.edit import add_constant, replace

if TYPE_CHECKING:
    import onnx_ir as ir

    from ptdeploy.passes import PassContext

_LARGEST = 127
# What keeps ids within a table: where virtual tokens have ids too, those are none of its rows.
_BOUNDS = ("Clip", "Min", "Max")


def run(model: ir.Model, context: PassContext) -> ir.Model:
    """Store the table that token ids look up as int8, a scale for each row, rounded to nearest.

    Of 8 bits whatever the weights have: a lookup reads one row, so that fewer gain no speed. Does
    nothing without a quantization, or where embeddings stay as they are.
    """
    import onnx_ir as ir

    if context.quantization is None or not context.quantizes_embeddings:
        return model
    graph = model.graph
    ids = {one.name for one in context.signature.inputs if one.role == "ids"}
    for node in list(graph):
        table = _looked_up(node, ids)
        if table is None:
            continue
        assert table.const_value is not None
        rows = table.const_value.numpy()
        codes, scales = quantize_rows(rows)
        number = ir.DataType.from_numpy(rows.dtype)
        parts = {"q": codes, "scale": scales.astype(rows.dtype)}
        stored = [_stored(graph, f"{table.name}.{name}", part) for name, part in parts.items()]
        found = [ir.node("Gather", [one, node.inputs[1]]) for one in stored]
        wide = ir.node("Cast", [found[0].outputs[0]], attributes={"to": number.value})
        product = ir.node("Mul", [wide.outputs[0], found[1].outputs[0]], name=node.name)
        for new in (*found, wide, product):
            new.metadata_props.update(node.metadata_props)
        replace(graph, node, *found, wide, product)
        if not table.uses():
            del graph.initializers[str(table.name)]
    return model


def quantize_rows(rows: NDArray[np.floating]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes (rows, width) as int8 and scales (rows, 1): a value is its code times its scale."""
    wide = rows.astype(np.float32)
    scales = (np.abs(wide).max(-1, keepdims=True) / _LARGEST).astype(rows.dtype).astype(np.float32)
    # A row of zeros has codes of zero whatever its scale.
    scales[scales == 0] = 1
    codes = np.clip(np.rint(wide / scales), -_LARGEST, _LARGEST)
    return codes.astype(np.int8), scales


def _looked_up(node: ir.Node, names: Collection[str | None]) -> ir.Value | None:
    """The constant table (words, width) that token ids look up, as they are or within bounds."""
    if node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 0:
        return None
    table, ids = node.inputs
    while ids is not None and (bound := ids.producer()) is not None and bound.op_type in _BOUNDS:
        ids = bound.inputs[0]
    if table is None or not table.is_initializer():
        return None
    if ids is None or not ids.is_graph_input() or ids.name not in names:
        return None
    tensor = table.const_value
    if tensor is None or len(tensor.shape) != 2 or not tensor.dtype.is_floating_point():
        return None
    return table


def _stored(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    """A new constant, or one that is the same: a head's that is tied to the embeddings."""
    for value in graph.initializers.values():
        other = value.const_value
        if other is None or tuple(other.shape) != array.shape or other.dtype.numpy() != array.dtype:
            continue
        if np.array_equal(other.numpy(), array):
            return value
    return add_constant(graph, name, array)
