"""Program to ONNX, through torch's exporter."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ptdeploy.bundle import RequestLimits
from ptdeploy.errors import BaseModelError
from ptdeploy.memory import ran_out_of_memory
from ptdeploy.passes.name import MODULE_KEY
from ptdeploy.program.program import Program
from ptdeploy.program.sizes import check_sizes
from ptdeploy.source.base import quiet_libraries

if TYPE_CHECKING:
    import onnx_ir as ir


@contextlib.contextmanager
def _without_stack_traces() -> Iterator[None]:
    """Have torch not note for each operation which lines of code called it, which no pass reads.

    To collect those is a sixth of an export. A torch without the switch collects them.
    """
    from torch.fx import config

    before = getattr(config, "do_not_emit_stack_traces", None)
    if before is None:
        yield
        return
    config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        config.do_not_emit_stack_traces = before


def to_onnx(program: Program, limits: RequestLimits, opset: int | None = None) -> ir.Model:
    """Export a program to an ONNX model whose inputs and outputs are its signature.

    `limits` are what its engine takes; `opset` is the version of ONNX's operators, None for what
    the program needs.

    Raises BaseModelError if torch cannot trace the architecture, with torch's reason, or if the
    trace does not hold within the limits.
    """
    import torch
    import torch._dynamo

    from ptdeploy.program.decompose import decomposed_in_place
    from ptdeploy.program.promotion import promoted_by_trace
    from ptdeploy.program.registry import one_registry

    inputs, outputs = program.signature.inputs, program.signature.outputs
    shapes = tuple(
        {i: torch.export.Dim.DYNAMIC for i, axis in enumerate(spec.shape) if isinstance(axis, str)}
        for spec in inputs
    )
    # What a program takes as *rest, torch.export sees as one tuple.
    named = inspect.signature(program.module.forward).parameters.values()
    fixed = sum(one.kind is not inspect.Parameter.VAR_POSITIONAL for one in named)
    lowering = program.lowered
    if lowering is not None:
        opset = max(opset or 0, lowering.opset)
    # Shapes are symbols here, and to look a result of such up costs more than to work it out.
    uncached = torch._dynamo.config.patch(fake_tensor_cache_enabled=False)
    lowered = contextlib.nullcontext() if lowering is None else lowering.traced()
    try:
        with (
            torch.no_grad(),
            decomposed_in_place(),
            promoted_by_trace(),
            one_registry(),
            uncached,
            _without_stack_traces(),
            lowered,
            quiet_libraries(),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            exported = torch.onnx.export(
                program.module,
                program.example_inputs(),
                dynamo=True,
                dynamic_shapes=(*shapes[:fixed], shapes[fixed:]) if fixed < len(inputs) else shapes,
                input_names=[spec.name for spec in inputs],
                output_names=[spec.name for spec in outputs],
                verbose=False,
                optimize=False,
                opset_version=opset,
            )
    except Exception as error:  # torch wraps whatever the model's own code raised
        if ran_out_of_memory(error):
            raise
        reason = str(error.__cause__ or error).strip().splitlines()
        raise BaseModelError(
            f"torch cannot export this architecture: {reason[0] if reason else type(error)}.",
            "Only the architectures in the README's support table are tested.",
        ) from error
    assert exported is not None
    assert exported.exported_program is not None
    check_sizes(exported.exported_program, program, limits)
    _keep_modules(exported.model, program)
    return exported.model


def _keep_modules(model: ir.Model, program: Program) -> None:
    """Note each node's module, by its path in the transformers model, under our own key.

    torch writes the program's nested scopes as a list, the operation itself last.
    """
    prefix = str(getattr(program.module, "prefix", ""))
    for node in model.graph.all_nodes():
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
        if scopes is None:
            continue
        path = [*ast.literal_eval(scopes)][-2:][0]
        if path == "model" or path.startswith("model."):
            path = ".".join(part for part in (prefix, path.removeprefix("model")[1:]) if part)
        elif path.startswith("_"):
            path = ""
        node.metadata_props[MODULE_KEY] = path
