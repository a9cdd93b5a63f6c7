"""Fold constants, and drop nodes that repeat others or feed nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptdeploy.source.base import quiet_libraries

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
    _forget_graphs()
    return model


def _forget_graphs() -> None:
    """Let go of what onnxscript's rewrite rules, which live as long as the process, looked at last.

    Through it each keeps a whole graph and its weights: gigabytes that nothing else could free.
    They set all of this anew before each use.
    """
    import gc

    from onnxscript.rewriter.pattern import RewriteRule

    for rule in gc.get_objects():
        # By its type: asking some objects for their class imports, or warns.
        if issubclass(type(rule), RewriteRule) and hasattr(rule, "_matcher"):
            for name in ("_graph", "_match", "_current_node"):
                vars(rule._matcher).pop(name, None)
