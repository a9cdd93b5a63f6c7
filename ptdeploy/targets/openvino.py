"""OpenVINO: the engine file is the ONNX model, its weights beside it as external data."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ptdeploy.backends.openvino import OpenVinoBackend
from ptdeploy.bundle import Bundle, RequestLimits
from ptdeploy.bundle.task import Activations
from ptdeploy.targets import Attention, BuildRequest, Built, Numerics
from ptdeploy.targets.options import NoOptions, TargetOptions, own_options

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PRECISIONS = {"cpu": ("fp32", "bf16"), "gpu": ("fp32", "fp16"), "npu": ("fp16",)}
_HALVES = {"bf16": "bfloat16", "fp16": "float16"}


class OpenVinoTarget:
    """Its engine is its graph, in float32: OpenVINO computes it in what the precision says."""

    graph_check = ""
    no_kv_buffer = (
        "The target openvino keeps no KV buffer yet, and a model that writes needs one.",
        "Compile it with --target ort.",
    )

    def add_options(self, parser: ArgumentParser) -> None:
        """There are none."""

    def add_rebuild_options(self, parser: ArgumentParser) -> None:
        """There are none."""

    def read_options(self, arguments: Namespace) -> NoOptions:
        return NoOptions()

    def read_rebuild_options(self, arguments: Namespace) -> NoOptions | None:
        return None

    def options(self, asked: TargetOptions | None) -> NoOptions:
        return own_options("openvino", NoOptions, asked)

    def precisions(self, device: str) -> tuple[str, ...]:
        return _PRECISIONS.get(device, ("fp32",))

    def numerics(self, device: str, precision: str) -> Numerics:
        """The graph is float32 in every precision, and has no KV buffer."""
        return Numerics("float32", None)

    def refuses(self, device: str, activations: Activations, attention: Attention) -> str:
        raise AssertionError("it has no fused attention over a KV buffer")

    def unbuildable(
        self, device: str, precision: str, options: NoOptions
    ) -> tuple[str, str] | None:
        """Why its engine could not run here: it is shown to be right before it is written."""
        from ptdeploy.backends.openvino.open import uncomputable

        return OpenVinoBackend().unavailable(device) or uncomputable(device, precision)

    def limit(
        self, limits: RequestLimits, options: NoOptions, causal: bool, max_context: int | None
    ) -> RequestLimits:
        """Its graphs take any size that the model does."""
        return limits

    def build(self, request: BuildRequest[NoOptions]) -> Built:
        """Write `model.onnx` and its external data."""
        from ptdeploy.targets.onnx_model import write_model

        notes: tuple[str, ...] = ()
        if request.precision in _HALVES:
            kind = _HALVES[request.precision]
            notes += (
                f"{request.precision}: the weights in the bundle are float32; OpenVINO computes "
                f"with {kind} products where it is faster.",
            )
        if request.device != "cpu":
            notes += (f"ptdeploy was never tried on OpenVINO's {request.device}.",)
        return Built(write_model(request.model, request.folder), notes=notes)

    def rebuild(self, bundle: Bundle, asked: TargetOptions | None) -> tuple[str, ...]:
        raise AssertionError("its engine is its graph")

    def run_graph(
        self, bundle: Bundle, inner: tuple[str, ...], feed: Mapping[str, NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        """Run it on the bundle's device in its precision; values it folded away are left out."""
        import numpy as np

        from ptdeploy.backends.openvino.errors import run_error
        from ptdeploy.backends.openvino.open import Opening, compile_graph, read_graph
        from ptdeploy.backends.openvino.session import shared

        path, manifest = bundle.in_folder("model"), bundle.manifest
        assert path is not None, "the caller read it"
        try:
            graph = read_graph(path)
            _expose(graph, inner)
            opening = Opening(manifest.device)
            request = compile_graph(graph, manifest.precision, opening).create_infer_request()
            for name, array in feed.items():
                request.set_tensor(name, shared(array))
            request.infer()
            ports = request.model_outputs
            arrays = [np.array(request.get_tensor(port).data) for port in ports]
        except Exception as error:  # openvino's own errors share no public base class
            raise run_error(error) from error
        return {
            name: array
            for port, array in zip(ports, arrays, strict=True)
            for name in port.get_names()
        }


def _expose(graph: Any, inner: tuple[str, ...]) -> None:
    """Make outputs of those inner values that the graph still has; a value may have more names."""
    wanted = set(inner)
    ports = [port for node in graph.get_ordered_ops() for port in node.outputs()]
    graph.add_outputs([port for port in ports if port.get_names() & wanted])
