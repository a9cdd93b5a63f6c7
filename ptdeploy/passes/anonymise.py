"""Drop what the exporter wrote about its own machine: the same input gives the same bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

    from ptdeploy.passes import PassContext


def run(model: ir.Model, context: PassContext) -> ir.Model:
    """Remove doc strings and metadata (stack traces with absolute paths), and name the graph."""
    import onnx_ir.passes.common as common

    common.ClearMetadataAndDocStringPass()(model)
    model.graph.name = "ptdeploy"
    model.producer_name = "ptdeploy"
    model.producer_version = ""
    return model
