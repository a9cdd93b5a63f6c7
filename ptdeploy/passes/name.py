"""Name each node after the module it came from, so that a mismatch can be traced to it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ptdeploy.backends.modules import common_module

if TYPE_CHECKING:
    import onnx_ir as ir

    from ptdeploy.passes import PassContext

# Where `export` leaves a module's path in the transformers model, "" for our own code around it.
MODULE_KEY = "ptdeploy.module"
PROGRAM = "program"
# The module of the sum that a fused node gives as its last output, beside what it is named after.
SUM_KEY = "ptdeploy.sum_module"


def run(model: ir.Model, context: PassContext) -> ir.Model:
    """Name nodes `<module path>/<operator>`, numbered where a module has several of a kind.

    Nodes that passes made get the innermost module that all their neighbours with one are in. A
    value that another module would give than its node's is named `<module path>/sum`.
    """
    modules: dict[ir.Node, str] = {}
    for node in model.graph:
        if MODULE_KEY in node.metadata_props:
            modules[node] = node.metadata_props[MODULE_KEY]
    for node in model.graph:
        if node not in modules:
            modules[node] = common_module(
                [modules[one] for one in _neighbours(node) if one in modules]
            )
    count: Counter[str] = Counter()
    for node in model.graph:
        name = f"{modules[node] or PROGRAM}/{node.op_type}"
        node.name = name if not count[name] else f"{name}_{count[name]}"
        count[name] += 1
        if total := node.metadata_props.get(SUM_KEY):
            name = f"{total}/sum"
            node.outputs[-1].name = name if not count[name] else f"{name}_{count[name]}"
            count[name] += 1
    return model


def module_of(name: str) -> str:
    """The module path in a node's or a value's name, "" for the program's around the model."""
    module = name.rpartition("/")[0]
    return "" if module == PROGRAM else module


def _neighbours(node: ir.Node) -> list[ir.Node]:
    before = [value.producer() for value in node.inputs if value is not None]
    after = [use.node for output in node.outputs for use in output.uses()]
    return [one for one in (*before, *after) if one is not None]
