"""Keep one copy of equal weights, such as embeddings tied to the output layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

    from ptdeploy.passes import PassContext


def run(model: ir.Model, context: PassContext) -> ir.Model:
    """Merge initializers of equal type, shape and bytes."""
    import numpy as np
    import onnx_ir as ir
    import onnx_ir.passes.common as common

    # Transposed weights are views, and onnx-ir hashes contiguous memory only.
    for value in model.graph.initializers.values():
        array = None if value.const_value is None else value.const_value.numpy()
        if array is not None and not array.flags.c_contiguous:
            value.const_value = ir.tensor(np.ascontiguousarray(array), name=value.name)
    common.DeduplicateHashedInitializersPass()(model)
    return model
