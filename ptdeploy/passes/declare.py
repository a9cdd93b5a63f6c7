"""Give the graph the signature's names, types and symbolic axes, and nothing else's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptdeploy.bundle.task import TensorSpec

if TYPE_CHECKING:
    import onnx_ir as ir

    from ptdeploy.passes import PassContext


def run(model: ir.Model, context: PassContext) -> ir.Model:
    """Check the graph's inputs and outputs against the signature and write its axis names.

    Raises ValueError if the exporter lost, added or retyped one: that is a fault of ours.
    """
    graph = model.graph
    for values, specs in (
        (graph.inputs, context.signature.inputs),
        (graph.outputs, context.signature.outputs),
    ):
        if [value.name for value in values] != [spec.name for spec in specs]:
            raise ValueError(
                f"the export has {[v.name for v in values]}, not {[s.name for s in specs]}"
            )
        for value, spec in zip(values, specs, strict=True):
            _declare(value, spec)
    # Shapes inside the graph carry the tracer's own symbols; every engine infers them again.
    outside = {*graph.inputs, *graph.outputs}
    for node in graph.all_nodes():
        for value in node.outputs:
            if value not in outside:
                value.shape = None
    return model


def _declare(value: ir.Value, spec: TensorSpec) -> None:
    import onnx_ir as ir

    dtype = ir.DataType[{"float32": "FLOAT"}.get(spec.dtype, spec.dtype.upper())]
    if value.dtype not in (None, dtype):
        raise ValueError(f"the export gives {spec.name} as {value.dtype}, not {spec.dtype}")
    value.dtype = dtype
    value.shape = ir.Shape(spec.shape)
