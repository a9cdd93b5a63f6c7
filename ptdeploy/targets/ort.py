"""ONNX Runtime: the engine file is the ONNX model, its weights beside it as external data."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ptdeploy.backends.ort import OrtBackend
from ptdeploy.bundle import Bundle, RequestLimits
from ptdeploy.bundle.task import Activations
from ptdeploy.targets import Attention, BuildRequest, Built, Numerics
from ptdeploy.targets.options import NoOptions, TargetOptions, own_options

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ptdeploy.bundle import Quantization


class OrtTarget:
    """Its engine is its graph, so that there is nothing to ask of it and nothing to rebuild."""

    graph_check = ""

    def no_kv_buffer(self, device: str) -> tuple[str, str] | None:
        return None

    def add_options(self, parser: ArgumentParser) -> None:
        """There are none."""

    def add_rebuild_options(self, parser: ArgumentParser) -> None:
        """There are none."""

    def read_options(self, arguments: Namespace) -> NoOptions:
        return NoOptions()

    def read_rebuild_options(self, arguments: Namespace) -> NoOptions | None:
        return None

    def options(self, asked: TargetOptions | None) -> NoOptions:
        return own_options("ort", NoOptions, asked)

    def precisions(self, device: str) -> tuple[str, ...]:
        # A CPU has no kernels in half precision: it would compute in fp32 and convert.
        return ("fp32", "int8", "int4") if device == "cpu" else ("fp32", "fp16", "int8", "int4")

    def numerics(self, device: str, precision: str) -> Numerics:
        """In fp32 on a CPU; on CUDA in fp16, or in fp32 without fused attention, which has none."""
        if device == "cpu":
            int8 = precision == "int8"
            # The first whose QuantizeLinear takes blocks: a token's activations are one.
            opset = 21 if int8 else None
            return Numerics(
                "float32",
                "onnxruntime",
                opset=opset,
                int8_products=int8,
                turns=True,
                fixed_scales=int8,
            )
        if precision == "fp32":
            return Numerics("float32", None)
        return Numerics("float16", "onnxruntime")

    def refuses(self, device: str, activations: Activations, attention: Attention) -> str:
        """Why GroupQueryAttention cannot compute that on `device`, found by running it."""
        from ptdeploy.backends.ort.open import session_options
        from ptdeploy.targets.ort_attention import try_attention

        return try_attention(session_options(device), device, activations, attention)

    def joins(self, device: str, precision: str, attention: Attention) -> bool:
        """Its CPU kernel takes a mask; but a window it counts in slots, over the rows between.

        With quantized weights products gain little, and the last bits of a row's activations, which
        may differ beside others, decide how they are rounded.
        """
        return device == "cpu" and precision == "fp32" and not attention.window

    def unbuildable(
        self, device: str, precision: str, options: NoOptions, quantization: Quantization | None
    ) -> tuple[str, str] | None:
        """Its engine file is the graph, and it is shown to be right before it is written."""
        return OrtBackend().unavailable(device)

    def limit(
        self, limits: RequestLimits, options: NoOptions, causal: bool, max_context: int | None
    ) -> RequestLimits:
        """Its graphs take any size that the model does."""
        return limits

    def build(self, request: BuildRequest[NoOptions]) -> Built:
        """Write `model.onnx` and its external data."""
        from ptdeploy.targets.onnx_model import write_model

        return Built(write_model(request.model, request.folder))

    def rebuild(self, bundle: Bundle, asked: TargetOptions | None) -> tuple[str, ...]:
        raise AssertionError("its engine is its graph")

    def run_graph(
        self, bundle: Bundle, inner: tuple[str, ...], feed: Mapping[str, NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        """Run it on a CPU, whatever the bundle's device; its weights stay in their file."""
        from ptdeploy.targets.onnx_model import run_with_inner

        path = bundle.in_folder("model")
        assert path is not None, "the caller read it"
        return run_with_inner(path, inner, feed)
