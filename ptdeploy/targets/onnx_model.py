"""A graph as ONNX files: the model, and its weights beside it as external data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ptdeploy.bundle import FileEntry, staged

if TYPE_CHECKING:
    import onnx_ir as ir

MODEL, WEIGHTS = "model.onnx", "model.onnx.data"
# Smaller constants stay inside the model file.
_INLINE = 256


def write_model(model: ir.Model, folder: Path) -> tuple[FileEntry, ...]:
    """Write a graph, with all but its smallest constants as external data beside it."""
    import onnx_ir as ir

    large = [
        value
        for value in model.graph.initializers.values()
        if value.const_value is not None and value.const_value.nbytes > _INLINE
    ]
    # Two names may have one tensor: then both point at the same bytes of the file.
    tensors = {id(value.const_value): value.const_value for value in large}
    if tensors:
        written = ir.external_data.convert_tensors_to_external(
            [tensor for tensor in tensors.values() if tensor is not None], folder, WEIGHTS
        )
        places = dict(zip(tensors, written, strict=True))
        for value in large:
            place = places[id(value.const_value)]
            value.const_value = ir.ExternalTensor(
                place.location,
                place.offset,
                place.length,
                place.dtype,
                shape=place.shape,
                name=value.name or "",
                base_dir=folder,
            )
    ir.save(model, folder / MODEL)
    entries = [staged(MODEL, "model")]
    if (folder / WEIGHTS).exists():
        entries.append(staged(WEIGHTS, "weights"))
    return tuple(entries)
