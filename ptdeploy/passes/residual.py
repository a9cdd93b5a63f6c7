"""A residual sum and the RMSNorm after it as one node."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptdeploy.passes.edit import take_over
from ptdeploy.passes.layout import same_shape
from ptdeploy.passes.name import MODULE_KEY, SUM_KEY

if TYPE_CHECKING:
    import onnx_ir as ir

    from ptdeploy.passes import PassContext


def run(model: ir.Model, context: PassContext) -> ir.Model:
    """Rewrite SimplifiedLayerNormalization(a + b) as SkipSimplifiedLayerNormalization(a, b).

    The new node gives the sum too, to all that reads it.
    """
    import onnx_ir as ir

    if not context.custom_operators:
        return model
    graph = model.graph
    for node in list(graph):
        if node.op_type != "SimplifiedLayerNormalization" or node.inputs[0] is None:
            continue
        total = node.inputs[0]
        add = total.producer()
        if add is None or add.op_type != "Add" or total.is_graph_output():
            continue
        a, b = add.inputs
        if a is None or b is None or not _is_residual(a, b):
            continue
        skip = ir.node(
            "SkipSimplifiedLayerNormalization",
            [a, b, node.inputs[1]],
            attributes={"epsilon": node.attributes["epsilon"].as_float()},
            domain="com.microsoft",
            num_outputs=4,
            name=node.name,
        )
        for key, source in ((MODULE_KEY, node), (SUM_KEY, add)):
            if MODULE_KEY in source.metadata_props:
                skip.metadata_props[key] = source.metadata_props[MODULE_KEY]
        normed, _, _, added = skip.outputs
        # Its statistics are for training; an output without a name is not computed.
        for unused in skip.outputs[1:3]:
            unused.name = ""
        graph.insert_before(add, skip)
        for old, new in ((total, added), (node.outputs[0], normed)):
            take_over(old, new)
        graph.remove(node, safe=True)
        graph.remove(add, safe=True)
        model.opset_imports["com.microsoft"] = 1
    return model


def _is_residual(a: ir.Value, b: ir.Value) -> bool:
    """Whether both are (batch, sequence, width): the operator adds no bias and broadcasts none."""
    return a.shape is not None and len(a.shape) == 3 and same_shape(a, b)
