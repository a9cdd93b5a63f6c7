"""Fold constants, and drop nodes that repeat others or feed nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptdeploy.base import quiet_libraries

if TYPE_CHECKING:
    import onnx_ir as ir

    from ptdeploy.passes import PassContext


def run(model: ir.Model, context: PassContext) -> ir.Model:
    """Run onnxscript's optimizer (constant folding, inlining) and drop repeated subexpressions."""
    import onnx_ir.passes.common as common
    import onnxscript.optimizer

    with quiet_libraries():
        onnxscript.optimizer.optimize_ir(model)
        common.CommonSubexpressionEliminationPass()(model)
        common.RemoveUnusedNodesPass()(model)
    return model
