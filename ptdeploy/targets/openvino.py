"""OpenVINO: the engine file is the ONNX model, its weights beside it as external data."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ptdeploy.backends.openvino import OpenVinoBackend
from ptdeploy.bundle import MODEL, Bundle, RequestLimits, staged
from ptdeploy.bundle.task import Activations
from ptdeploy.errors import InputError
from ptdeploy.targets import Attention, BuildRequest, Built, Numerics
from ptdeploy.targets.openvino_group import IN_FLOAT32, IN_INT8, LEAST_GROUP, activation_group
from ptdeploy.targets.openvino_options import (
    OpenVinoOptions,
    add_options,
    check_kept,
    checked_options,
)
from ptdeploy.targets.options import TargetOptions, own_options

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ptdeploy.bundle import Quantization

_PRECISIONS = {"cpu": ("fp32", "bf16", "int8", "int4"), "gpu": ("fp32", "fp16"), "npu": ("fp16",)}
_HALVES = {"bf16": "bfloat16", "fp16": "float16"}


class OpenVinoTarget:
    """Its engine is its graph, in float32: OpenVINO computes it in what the precision says."""

    graph_check = ""

    def no_kv_buffer(self, device: str) -> tuple[str, str] | None:
        from ptdeploy.backends.openvino.open import no_kv_buffer

        return no_kv_buffer(device)

    def add_options(self, parser: ArgumentParser) -> None:
        add_options(parser)

    def add_rebuild_options(self, parser: ArgumentParser) -> None:
        """There are none."""

    def read_options(self, arguments: Namespace) -> OpenVinoOptions:
        return OpenVinoOptions(arguments.kv_precision)

    def read_rebuild_options(self, arguments: Namespace) -> OpenVinoOptions | None:
        return None

    def options(self, asked: TargetOptions | None) -> OpenVinoOptions:
        return checked_options(own_options("openvino", OpenVinoOptions, asked))

    def precisions(self, device: str) -> tuple[str, ...]:
        return _PRECISIONS.get(device, ("fp32",))

    def numerics(self, device: str, precision: str) -> Numerics:
        """The graph's activations are float32 in every precision."""
        return Numerics(
            "float32",
            "onnxruntime",
            # The first with DequantizeLinear in blocks.
            opset=21 if precision in ("int8", "int4") else None,
            weights="DequantizeLinear",
            block_size=64 if precision == "int4" else 0,
            quantizes_embeddings=True,
            plain=False,
            group=LEAST_GROUP,
            fixed_scales=device == "cpu" and precision == "int8",
        )

    def refuses(self, device: str, activations: Activations, attention: Attention) -> str:
        """What OpenVINO's paged attention leaves out of GroupQueryAttention."""
        if attention.softcap:
            return "OpenVINO's paged attention has no soft cap"
        if attention.sinks:
            return "its sinks are not carried over to OpenVINO's paged attention"
        return ""

    def joins(self, device: str, precision: str, attention: Attention) -> bool:
        """No: paged attention runs rows of any length together as it is."""
        return False

    def unbuildable(
        self,
        device: str,
        precision: str,
        options: OpenVinoOptions,
        quantization: Quantization | None,
    ) -> tuple[str, str] | None:
        """Why its engine could not run here: it is shown to be right before it is written."""
        from ptdeploy.backends.openvino.open import uncomputable

        check_kept(options, precision)
        return OpenVinoBackend().unavailable(device) or uncomputable(device, precision)

    def limit(
        self, limits: RequestLimits, options: OpenVinoOptions, causal: bool, max_context: int | None
    ) -> RequestLimits:
        """Its graphs take any size that the model does."""
        if options.given() and not causal:
            raise InputError(
                "--kv-precision is about a KV buffer, and this model keeps none.",
                "Leave --kv-precision out.",
            )
        return limits

    def build(self, request: BuildRequest[OpenVinoOptions]) -> Built:
        """Write `model.onnx`, its data and, where the graph does not say it all, `engine.json`."""
        from ptdeploy.backends.openvino.engine_file import INFO, EngineInfo, write_info
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
        group = activation_group(request.model, request.quantization)
        if request.quantization is not None and request.quantization.accuracy_level == IN_INT8:
            notes += () if group else (IN_FLOAT32,)
        files = write_model(request.model, request.folder)
        kept = request.options.keeps(request.precision)
        if group or any(spec.role == "past" for spec in request.signature.inputs):
            write_info(EngineInfo(kept, group), request.folder)
            files += (staged(INFO, "engine_info", MODEL),)
        return Built(files, notes=notes)

    def rebuild(self, bundle: Bundle, asked: TargetOptions | None) -> tuple[str, ...]:
        raise AssertionError("its engine is its graph")

    def run_graph(
        self, bundle: Bundle, inner: tuple[str, ...], feed: Mapping[str, NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        """Run it on the bundle's device in its precision; values it folded away are left out."""
        from ptdeploy.targets.openvino_exposed import run_exposed

        return run_exposed(bundle, inner, feed)
