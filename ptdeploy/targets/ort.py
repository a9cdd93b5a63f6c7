"""ONNX Runtime: the engine file is the ONNX model, its weights beside it as external data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptdeploy.backends.ort.open import PROVIDERS, session_options, unavailable
from ptdeploy.backends.telemetry import import_onnxruntime
from ptdeploy.bundle import Bundle, Limits
from ptdeploy.bundle.task import Activations
from ptdeploy.engine_options import EngineOptions
from ptdeploy.errors import InputError
from ptdeploy.targets import Attention, BuildRequest, Built, Numerics
from ptdeploy.targets.onnx_model import write_model

__all__ = ["unavailable"]

DEVICES = ("cpu", "cuda")
STAND_IN = ""


def precisions(device: str) -> tuple[str, ...]:
    # A CPU has no kernels in half precision: it would compute in fp32 and convert.
    return ("fp32", "int8", "int4") if device == "cpu" else ("fp32", "fp16", "int8", "int4")


def numerics(device: str, precision: str) -> Numerics:
    """In fp32 on a CPU; on CUDA in fp16, or in fp32 without fused attention, which has none."""
    if device == "cpu":
        return Numerics("float32", "onnxruntime")
    if precision == "fp32":
        return Numerics("float32", None)
    return Numerics("float16", "onnxruntime")


def refuses(device: str, activations: Activations, attention: Attention) -> str:
    """Why GroupQueryAttention cannot compute that on `device`, found by running it."""
    from ptdeploy.targets.ort_attention import try_attention

    return try_attention(session_options(device), PROVIDERS[device], activations, attention)


def unbuildable(device: str, options: EngineOptions) -> tuple[str, str] | None:
    """Its engine file is the graph, and it is shown to be right before it is written."""
    if given := options.given():
        raise InputError(f"{given[0]} is about TensorRT's engines; the target ort has none.")
    return unavailable(device)


def limit(limits: Limits, options: EngineOptions, causal: bool, max_context: int | None) -> Limits:
    """Its graphs take any size that the model does."""
    return limits


def build(request: BuildRequest) -> Built:
    """Write `model.onnx` and its external data."""
    return Built(write_model(request.model, request.folder))


def rebuild(bundle: Bundle, flavor: str | None) -> tuple[str, ...]:
    raise AssertionError("its engine is its graph")


def run_graph(
    bundle: Bundle, inner: tuple[str, ...], feed: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Run it on a CPU, whatever the bundle's device; its weights stay in their file."""
    import onnx

    onnxruntime = import_onnxruntime()

    path = bundle.in_folder("model")
    assert path is not None, "the caller read it"
    model = onnx.load(path, load_external_data=False)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    options = session_options("cpu")
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(path.parent.resolve())
    )
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=[PROVIDERS["cpu"]]
    )
    outputs = [output.name for output in session.get_outputs()]
    return dict(zip(outputs, map(np.asarray, session.run(outputs, dict(feed))), strict=True))
