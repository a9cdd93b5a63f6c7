"""Program to ONNX, through torch's exporter."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING

from ptdeploy.base import quiet_libraries
from ptdeploy.errors import BaseModelError
from ptdeploy.program import Program

if TYPE_CHECKING:
    import onnx_ir as ir


def to_onnx(program: Program) -> ir.Model:
    """Export a program to an ONNX model whose inputs and outputs are its signature.

    Raises BaseModelError if torch cannot trace the architecture, with torch's reason.
    """
    import torch

    inputs, outputs = program.signature.inputs, program.signature.outputs
    shapes = tuple(
        {i: torch.export.Dim.DYNAMIC for i, axis in enumerate(spec.shape) if isinstance(axis, str)}
        for spec in inputs
    )
    # The decoder takes its past as *past, which torch.export sees as one tuple.
    fixed = 2 if any(spec.name.startswith("past_key_values.") for spec in inputs) else len(inputs)
    try:
        with quiet_libraries(), contextlib.redirect_stdout(io.StringIO()):
            exported = torch.onnx.export(
                program.module,
                program.example_inputs(),
                dynamo=True,
                dynamic_shapes=(*shapes[:fixed], shapes[fixed:]) if fixed < len(inputs) else shapes,
                input_names=[spec.name for spec in inputs],
                output_names=[spec.name for spec in outputs],
                verbose=False,
                optimize=False,
            )
    except Exception as error:  # torch wraps whatever the model's own code raised
        reason = str(error.__cause__ or error).strip().splitlines()
        raise BaseModelError(
            f"torch cannot export this architecture: {reason[0] if reason else type(error)}.",
            "Only the architectures in the README's support table are tested.",
        ) from error
    assert exported is not None
    return exported.model
