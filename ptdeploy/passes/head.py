"""Read large weights the way round they lie, instead of transposing them when an engine loads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptdeploy.passes.edit import add_constant, replace

if TYPE_CHECKING:
    import onnx_ir as ir

    from ptdeploy.passes import PassContext


def run(model: ir.Model, context: PassContext) -> ir.Model:
    """Rewrite MatMul(x, Transpose(weight)).

    A weight that nothing else reads is stored transposed. One that something else reads too, such
    as an output layer tied to the embeddings, stays as it is under a second name, for
    FusedMatMul: engines keep an initializer that two kinds of operators share twice.
    """
    import numpy as np
    import onnx_ir as ir

    graph = model.graph
    for node in list(graph):
        found = transposed_weight(node)
        if found is None:
            continue
        transpose, weight, constant = found
        if len(weight.uses()) == 1:
            tensor = np.ascontiguousarray(constant.numpy().T)
            name = f"{weight.name}.transposed"
            # All that reads it: a layer that runs twice is two products of one Transpose.
            transpose.outputs[0].replace_all_uses_with(add_constant(graph, name, tensor))
            del graph.initializers[str(weight.name)]
        elif context.custom_operators:
            name = f"{weight.name}.tied"
            tied = ir.Value(name=name, const_value=constant)
            graph.register_initializer(tied)
            fused = ir.node(
                "FusedMatMul",
                [node.inputs[0], tied],
                attributes={"transB": 1},
                domain="com.microsoft",
                name=node.name,
            )
            replace(graph, node, fused)
            model.opset_imports["com.microsoft"] = 1
        else:
            continue
        if not transpose.outputs[0].uses():
            graph.remove(transpose, safe=True)
    return model


def transposed_weight(node: ir.Node) -> tuple[ir.Node, ir.Value, ir.TensorProtocol] | None:
    """The Transpose of a weight's two axes that a MatMul reads, the weight, its tensor; or None."""
    if node.op_type != "MatMul" or node.inputs[1] is None:
        return None
    transpose = node.inputs[1].producer()
    if transpose is None or transpose.op_type != "Transpose":
        return None
    weight = transpose.inputs[0]
    if weight is None or not weight.is_initializer() or weight.const_value is None:
        return None
    perm = transpose.attributes.get("perm")
    if len(weight.const_value.shape) != 2 or (perm and tuple(perm.as_ints()) != (1, 0)):
        return None
    return transpose, weight, weight.const_value
