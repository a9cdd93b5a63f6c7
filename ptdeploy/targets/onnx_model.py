"""A graph as ONNX files, its weights beside it as external data: written, and run once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptdeploy.bundle import MODEL as GRAPH
from ptdeploy.bundle import FileEntry, staged

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

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
    entries = [staged(MODEL, "model", GRAPH)]
    if (folder / WEIGHTS).exists():
        entries.append(staged(WEIGHTS, "weights", GRAPH))
    return tuple(entries)


def run_with_inner(
    path: Path, inner: tuple[str, ...], feed: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Run a graph once, as `open_with_inner` opens it."""
    return open_with_inner(path, inner)(feed)


def open_with_inner(
    path: Path, inner: tuple[str, ...]
) -> Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]:
    """Open a graph on a CPU in ONNX Runtime, with inner values as outputs too.

    What is returned runs it: arrays by input name in, values by name out.
    """
    import numpy as np
    import onnx

    from ptdeploy.backends.ort.open import providers, session_options
    from ptdeploy.backends.telemetry import import_onnxruntime

    model = onnx.load(path, load_external_data=False)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    options = session_options("cpu")
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(path.parent.resolve())
    )
    session = import_onnxruntime().InferenceSession(
        model.SerializeToString(), options, providers=providers("cpu"), enable_fallback=False
    )
    outputs = [output.name for output in session.get_outputs()]

    def run(feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return dict(zip(outputs, map(np.asarray, session.run(outputs, dict(feed))), strict=True))

    return run
