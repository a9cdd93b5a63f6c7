"""Fold constants, and drop nodes that repeat others or feed nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ptdeploy.passes.edit import add_constant
from ptdeploy.source.base import quiet_libraries

if TYPE_CHECKING:
    import onnx_ir as ir
    from onnxscript.rewriter.pattern import RewriteRule

    from ptdeploy.passes import PassContext


def run(model: ir.Model, context: PassContext) -> ir.Model:
    """Run onnxscript's optimizer (constant folding, inlining) and drop repeated subexpressions.

    onnxscript leaves large constants alone. A weight that is only read in another shape, such as
    all experts of a mixture as one matrix, is stored in that shape.
    """
    import onnx_ir.passes.common as common
    import onnxscript.optimizer

    with quiet_libraries(), _rules_tried_by_operator(), _known_shapes_kept():
        onnxscript.optimizer.optimize_ir(model)
        _reshape_weights(model.graph)
        common.CommonSubexpressionEliminationPass()(model)
        common.RemoveUnusedNodesPass()(model)
    return model


def _reshape_weights(graph: ir.Graph) -> None:
    import onnx_ir as ir

    for node in list(graph):
        weight = node.inputs[0] if node.op_type == "Reshape" else None
        if weight is None or not weight.is_initializer() or weight.const_value is None:
            continue
        to = None if node.inputs[1] is None else ir.convenience.get_const_tensor(node.inputs[1])
        if to is None or len(weight.uses()) != 1:
            continue
        shape = to.numpy().tolist()
        # Where attributes say what a 0 means.
        if 0 in shape:
            continue
        array = weight.const_value.numpy().reshape(shape)
        stored = add_constant(graph, f"{weight.name}.reshaped", array)
        node.outputs[0].replace_all_uses_with(stored)
        graph.remove(node, safe=True)
        del graph.initializers[str(weight.name)]


@contextmanager
def _rules_tried_by_operator() -> Iterator[None]:
    """Have onnxscript try a rewrite rule, in this block, only on nodes of the operator it replaces.

    It tries each on every node, and one of several outputs looks through the whole graph each time
    before it says no: a time that grows with the square of the graph, and much of all passes'.

    The rules live as long as the process, and each keeps the whole graph that it looked at last,
    weights and all: gigabytes that nothing else could free. They set it anew before each use.
    Rules of another onnxscript, which do not say their operator, are tried as it does.
    """
    from onnxscript.rewriter.pattern import RewriteRule

    theirs = RewriteRule.try_rewrite
    tried: dict[RewriteRule, Any] = {}

    def ours(rule: RewriteRule, model: Any, graph: Any, node: ir.Node, **options: Any) -> Any:
        operator = tried.get(rule)
        if operator is None:
            operator = tried[rule] = _operator(rule)
        if not operator(node.op_type):
            return None
        return theirs(rule, model, graph, node, **options)

    RewriteRule.try_rewrite = ours
    try:
        yield
    finally:
        RewriteRule.try_rewrite = theirs
        for rule in tried:
            for name in ("_graph", "_match", "_current_node"):
                vars(getattr(rule, "_matcher", rule)).pop(name, None)


@contextmanager
def _known_shapes_kept() -> Iterator[None]:
    """Have onnxscript infer, in this block, only the types and shapes that a graph does not say.

    It works out those of each node by a call of ONNX's, a third of what all passes compute, though
    a traced graph says most. An onnxscript whose insides are others than these works out all.
    """
    try:
        from onnxscript.optimizer import _constant_folding

        folding: Any = _constant_folding.FoldConstantsPass
        theirs = folding._do_inference
    except (ImportError, AttributeError):
        yield
        return

    def ours(folded: Any, node: ir.Node) -> None:
        if any(value.type is None or value.shape is None for value in node.outputs):
            theirs(folded, node)

    folding._do_inference = ours
    try:
        yield
    finally:
        folding._do_inference = theirs


def _operator(rule: RewriteRule) -> Callable[[str], bool]:
    """Whether a rule may replace a node of an operator."""
    try:
        matches: Callable[[str], bool] = rule._target_pattern.output_nodes[0].op.matches
    except AttributeError:
        return lambda operator: True
    return matches
