"""TensorRT and TensorRT-RTX: the engine file is a plan, with what it was built for beside it."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ptdeploy.backends import of_another_target
from ptdeploy.bundle import Bundle, RequestLimits
from ptdeploy.bundle.signature import Signature
from ptdeploy.bundle.task import Activations
from ptdeploy.errors import TargetUnavailable
from ptdeploy.targets import Attention, BuildRequest, Built, Numerics
from ptdeploy.targets.options import TargetOptions, own_options
from ptdeploy.targets.trt import options as trt_options
from ptdeploy.targets.trt.options import TrtOptions, checked_options, read_compute_capabilities

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ptdeploy.bundle import Quantization


class TrtTarget:
    """Builds with either flavor; without a GPU ONNX Runtime runs the graph that it builds from."""

    graph_check = "ort"

    def no_kv_buffer(self, device: str) -> tuple[str, str] | None:
        return None

    def add_options(self, parser: ArgumentParser) -> None:
        trt_options.add_options(parser)

    def add_rebuild_options(self, parser: ArgumentParser) -> None:
        trt_options.add_rebuild_options(parser)

    def read_options(self, arguments: Namespace) -> TrtOptions:
        return trt_options.read_options(arguments)

    def read_rebuild_options(self, arguments: Namespace) -> TrtOptions | None:
        return trt_options.read_rebuild_options(arguments)

    def options(self, asked: TargetOptions | None) -> TrtOptions:
        return checked_options(own_options("trt", TrtOptions, asked))

    def precisions(self, device: str) -> tuple[str, ...]:
        return ("fp32", "tf32", "fp16", "bf16", "int8", "int4", "fp8")

    def numerics(self, device: str, precision: str) -> Numerics:
        """Quantized weights multiply float16 activations; TF32 is a way to multiply float32."""
        activations: dict[str, Activations] = {
            "fp32": "float32",
            "tf32": "float32",
            "bf16": "bfloat16",
        }
        return Numerics(
            activations.get(precision, "float16"),
            operators="standard",
            custom_operators=False,
            fixed_slots=True,
            # The first with TensorScatter, and with DequantizeLinear in blocks.
            opset=24,
            weights="DequantizeLinear",
            block_size=64 if precision == "int4" else 0,
        )

    def refuses(self, device: str, activations: Activations, attention: Attention) -> str:
        """Nothing: its attention is products and a softmax, which take any shape."""
        return ""

    def joins(self, device: str, precision: str, attention: Attention) -> bool:
        """No: its attention is products of whole rows."""
        return False

    def unbuildable(
        self, device: str, precision: str, options: TrtOptions, quantization: Quantization | None
    ) -> tuple[str, str] | None:
        """Why no engine can be built here, or None if one can."""
        from ptdeploy.backends.trt import TrtBackend, cuda
        from ptdeploy.backends.trt.vendor import choose_builder
        from ptdeploy.targets.trt.builder import (
            check_blocks,
            check_capabilities,
            check_flavor,
        )

        if device not in TrtBackend.devices:
            return of_another_target("trt", device)
        try:
            vendor, _ = choose_builder(options.flavor)
            check_flavor(vendor, options)
            check_capabilities(precision, options)
            check_blocks(vendor, quantization)
        except TargetUnavailable as error:
            return error.problem, error.fix
        if read_compute_capabilities(options.compute_capability) == ("current",) and (
            problem := cuda.unavailable()
        ):
            return (
                f"--compute-capability current needs a GPU ({problem}).",
                "Name the GPUs instead, such as 8.9, or leave it out.",
            )
        return None

    def limit(
        self, limits: RequestLimits, options: TrtOptions, causal: bool, max_context: int | None
    ) -> RequestLimits:
        from ptdeploy.targets.trt.plan import bounded

        return bounded(limits, options, causal, max_context)

    def build(self, request: BuildRequest[TrtOptions]) -> Built:
        from ptdeploy.targets.trt.engine import build_engine

        return build_engine(request)

    def rebuild(self, bundle: Bundle, asked: TargetOptions | None) -> tuple[str, ...]:
        from ptdeploy.targets.trt.engine import rebuild_engine

        return rebuild_engine(bundle, None if asked is None else self.options(asked))

    def run_graph(
        self, bundle: Bundle, inner: tuple[str, ...], feed: Mapping[str, NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        """Build an engine of the graph, for the shapes of `feed` alone, and run it on the GPU."""
        from ptdeploy.backends.trt import TrtBackend, engine_info

        if problem := TrtBackend().unavailable(bundle.manifest.device):
            raise TargetUnavailable(*problem)
        from ptdeploy.targets.trt.exposed import run_exposed

        onnx = bundle.in_folder("model")
        assert onnx is not None, "the caller read it"
        signature = Signature(bundle.manifest.graph.inputs, bundle.manifest.graph.outputs)
        return run_exposed(engine_info(bundle), onnx, signature, inner, feed)
