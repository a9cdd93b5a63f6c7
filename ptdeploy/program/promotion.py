"""Types are promoted by what the tracer noted of each value, instead of running the program again.

torch's ONNX exporter writes out the casts that PyTorch makes by itself, where an operation has
inputs of several types. To know the types it runs each program a second time on tensors without
values, the tenth part of what a compilation computes, though the trace has them at each node.
A torch whose insides are others than these runs it again: that costs time only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.fx import Node


@contextmanager
def promoted_by_trace() -> Iterator[None]:
    """Have torch run, in this block, only the operations whose inputs it casts."""
    try:
        from torch.onnx._internal.fx.passes import type_promotion

        interpreters: Any = type_promotion._TypePromotionInterpreter
        _ = interpreters._set_current_node, interpreters._maybe_promote_node
        find_rule = type_promotion.get_type_promotion_rule
    except (ImportError, AttributeError):
        yield
        return
    theirs = interpreters.run_node

    def ours(interpreter: Any, n: Node) -> Any:
        if n.op != "call_function" or "val" not in n.meta:
            return theirs(interpreter, n)
        with interpreter._set_current_node(n):
            rule = find_rule(n, interpreter.type_promotion_table)
            if rule is not None:
                interpreter._maybe_promote_node(n, rule)
        return n.meta["val"]

    interpreters.run_node = ours
    try:
        yield
    finally:
        interpreters.run_node = theirs
