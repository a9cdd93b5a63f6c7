"""The sizes that an export holds for, against those that an engine is promised to take.

Where a model's code asks how long a text is, a trace has the answer of its examples alone; torch
notes for which sizes that is the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ptdeploy.bundle import RequestLimits
from ptdeploy.bundle.signature import BATCH, KEPT, PREFIX, SEQUENCE, SLOTS
from ptdeploy.bundle.task import TensorSpec
from ptdeploy.errors import BaseModelError

if TYPE_CHECKING:
    import torch

    from ptdeploy.program.program import Program

# Axes that are as long as a context at most, a prefix and the text behind it together; a buffer
# has free slots besides. All others may be of any size.
_CONTEXT = (SEQUENCE, SLOTS, KEPT)
_ANY = 1 << 20
# Smaller sizes are compared with the reference anyway.
_FIRST, _FEW = 16, 2
_TESTED = "Only the architectures in the README's support table are tested."


def check_sizes(
    exported: torch.export.ExportedProgram, program: Program, limits: RequestLimits
) -> None:
    """Raises BaseModelError, with the largest context that holds, if not all promised sizes do."""
    inputs = program.signature.inputs
    conditions, axes = _conditions(exported), _axes(exported, inputs)

    def holds(context: int, rows: int) -> bool:
        lengths = dict.fromkeys(_CONTEXT, context)
        if PREFIX in axes.values():
            lengths |= {PREFIX: _FEW, SEQUENCE: context - _FEW}
        largest = {BATCH: rows, **lengths}
        sizes = {symbol: largest.get(axis, _ANY) for symbol, axis in axes.items()}
        return all(condition.xreplace(sizes) != False for condition in conditions)  # noqa: E712

    most = limits.max_context
    keeps_kv = any(SLOTS in spec.shape for spec in inputs)
    good = _largest(lambda context: holds(context, _FEW), most)
    if good < most:
        room = limits.max_context - limits.max_sequence
        raise BaseModelError(
            f"{program.architecture}: its code computes long texts another way than short ones, "
            f"and a graph cannot: it holds up to a context of {good} tokens, and the engine would "
            f"take {most}.",
            f"Compile it with --max-context {good}." if keeps_kv and good > room else _TESTED,
        )
    good = _largest(lambda rows: holds(most, rows), limits.max_batch or _ANY)
    if good < (limits.max_batch or _ANY):
        raise BaseModelError(
            f"{program.architecture}: its code computes many rows another way than few, and a "
            f"graph cannot: it holds up to {good} rows.",
            f"Compile it with --max-batch {good}." if keeps_kv and good else _TESTED,
        )


def _largest(holds: Callable[[int], bool], most: int) -> int:
    """The size up to which all that are tried hold."""
    good = 0
    for size in (*(1 << n for n in range(most.bit_length()) if _FIRST <= 1 << n < most), most):
        if holds(size):
            good = size
            continue
        while size - good > 1:
            middle = (good + size) // 2
            good, size = (middle, size) if holds(middle) else (good, middle)
        break
    return good


def _axes(
    exported: torch.export.ExportedProgram, inputs: Sequence[TensorSpec]
) -> Mapping[Any, str]:
    """The axis that each of torch's symbols is the size of."""
    given = set(exported.graph_signature.user_inputs)
    places = [node for node in exported.graph.nodes if node.op == "placeholder"]
    values = [node.meta["val"] for node in places if node.name in given]
    return {
        size.node.expr: axis
        for value, spec in zip(values, inputs, strict=True)
        for size, axis in zip(value.shape, spec.shape, strict=True)
        if isinstance(axis, str) and not isinstance(size, int)
    }


def _conditions(exported: torch.export.ExportedProgram) -> list[Any]:
    """What the trace holds for, as expressions of sympy's over the sizes of its inputs."""
    found = [
        symbol <= bounds.upper
        for symbol, bounds in exported.range_constraints.items()
        if bounds.upper.is_Integer
    ]
    environments = {
        id(size.node.shape_env): size.node.shape_env
        for node in exported.graph.nodes
        if node.op == "placeholder"
        for size in getattr(node.meta.get("val"), "shape", ())
        if not isinstance(size, int)
    }
    for one in environments.values():
        for asserts in one.deferred_runtime_asserts.values():
            found += [one.replace(each.expr) for each in asserts]
    return found
