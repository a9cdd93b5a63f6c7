"""TensorRT and TensorRT-RTX: the engine file is a plan, with what it was built for beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ptdeploy.backends.trt import TrtBackend, cuda, engine_info
from ptdeploy.backends.trt.engine_file import INFO, PLAN
from ptdeploy.backends.trt.vendor import choose_builder
from ptdeploy.bundle import Bundle, Limits, staged
from ptdeploy.bundle.signature import Signature
from ptdeploy.bundle.task import Activations
from ptdeploy.engine_options import EngineOptions, check_options, read_compute_capabilities
from ptdeploy.errors import BaseModelError, TargetUnavailable
from ptdeploy.targets import Attention, BuildRequest, Built, Numerics
from ptdeploy.targets.onnx_model import write_model
from ptdeploy.targets.trt.builder import check_flavor
from ptdeploy.targets.trt.make import Job, count_precisions, make_engine
from ptdeploy.targets.trt.plan import bounded, profiles

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray


DEVICES = ("cuda",)
# Where the graph itself can be run without a GPU.
STAND_IN = "ort"


def precisions(device: str) -> tuple[str, ...]:
    return ("fp32", "tf32", "fp16", "bf16", "int8", "int4", "fp8")


def numerics(device: str, precision: str) -> Numerics:
    """Rounded weights multiply float16 activations; TF32 is a way to multiply float32."""
    activations = {"fp32": "float32", "tf32": "float32", "bf16": "bfloat16"}
    return Numerics(
        activations.get(precision, "float16"),  # type: ignore[arg-type]
        operators="standard",
        custom_operators=False,
        fixed_slots=True,
        # The first with TensorScatter, and with DequantizeLinear in blocks.
        opset=24,
        block_size=64 if precision == "int4" else 0,
    )


def refuses(device: str, activations: Activations, attention: Attention) -> str:
    """Nothing: its attention is products and a softmax, which take any shape."""
    return ""


def unbuildable(device: str, options: EngineOptions) -> tuple[str, str] | None:
    """Why no engine can be built here, or None if one can."""
    if device not in DEVICES:
        return f"The target trt runs on cuda, not on {device!r}.", ""
    check_options(options)
    try:
        check_flavor(choose_builder(options.flavor)[0], options)
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


def unavailable(device: str) -> tuple[str, str] | None:
    return TrtBackend().unavailable(device)


def limit(limits: Limits, options: EngineOptions, causal: bool, max_context: int | None) -> Limits:
    return bounded(limits, options, causal, max_context)


def build(request: BuildRequest) -> Built:
    """Write `engine.plan` and `engine.json`; the ONNX that the parser got is a working file.

    It is kept in the bundle on request, or where the engine gets its weights from it.
    """
    _refuse_unknown_operators(request.model)
    counted = count_precisions(request.model)
    onnx = write_model(request.model, request.folder)
    job = Job(
        request.folder / onnx[0].path,
        tuple(request.folder / entry.path for entry in onnx),
        request.signature,
        profiles(request.signature, request.limits, request.options),
        request.precision == "tf32",
        counted,
        request.options,
    )
    notes = (*make_engine(job, request.folder), *_unrounded(request.model))
    files = (staged(PLAN, "engine"), staged(INFO, "engine_info"))
    if request.options.keep_onnx or request.options.strip_weights:
        return Built((*files, *onnx), (), notes)
    return Built(files, onnx, notes)


def rebuild(bundle: Bundle, flavor: str | None) -> tuple[str, ...]:
    """Write `engine.plan` and `engine.json` again, with the profiles and options they had.

    An engine that was built for the GPU at hand is built for the one that is at hand now.
    """
    manifest, info = bundle.manifest, engine_info(bundle)
    onnx = bundle.file("model")
    assert onnx is not None, "the caller checks it"
    ahead = ",".join(info.compute_capabilities) or None
    options = EngineOptions(
        flavor=flavor or info.flavor,
        strip_weights=info.strip_weights,
        version_compatible=info.version_compatible,
        hardware_compatibility=info.hardware_compatibility,
        workspace=info.workspace,
        optimization_level=info.optimization_level,
        compute_capability="current" if info.gpu and info.flavor == "rtx" else ahead,
    )
    if options.flavor == "tensorrt":
        options = replace(options, compute_capability=None)
    notes: tuple[str, ...] = ()
    if options.flavor == "rtx" and info.flavor == "tensorrt":
        # What TensorRT-RTX does not have, and for compatibility does not need.
        options = replace(options, version_compatible=False, hardware_compatibility="none")
        notes = ("compatibility options of full TensorRT were left out.",)
    parts = [entry.path for entry in manifest.files if entry.role in ("model", "weights")]
    job = Job(
        onnx,
        tuple(bundle.path / part for part in parts),
        Signature(manifest.inputs, manifest.outputs),
        info.profiles,
        info.tf32,
        info.precisions,
        options,
    )
    return (*make_engine(job, bundle.path), *notes)


def run_graph(
    bundle: Bundle, inner: tuple[str, ...], feed: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Build an engine of the graph, for the shapes of `feed` alone, and run it on the GPU."""
    if problem := unavailable(bundle.manifest.device):
        raise TargetUnavailable(*problem)
    from ptdeploy.targets.trt.exposed import run_exposed

    onnx = bundle.in_folder("model")
    assert onnx is not None, "the caller read it"
    manifest = bundle.manifest
    narrow = frozenset(spec.name for spec in manifest.inputs if spec.dtype == "bfloat16")
    outputs = tuple(spec.name for spec in manifest.outputs)
    info = engine_info(bundle)
    return run_exposed(info, onnx, inner, outputs, feed, narrow)


def _unrounded(model: ir.Model) -> list[str]:
    """A note where some weight matrices of a rounded engine are not rounded."""
    from ptdeploy.passes.dequantize import constant_matrix

    nodes = list(model.graph.all_nodes())
    left = [found for node in nodes if (found := constant_matrix(node)) is not None]
    rounded = sum(node.op_type == "DequantizeLinear" for node in nodes)
    if not rounded or not left:
        return []
    dtype = left[0][1].dtype.name.lower()
    return [
        f"{len(left)} of {len(left) + rounded} weight matrices stay in {dtype}: their columns are "
        "no whole number of blocks (--block-size)."
    ]


def _refuse_unknown_operators(model: ir.Model) -> None:
    """Raises BaseModelError on an operator that is not ONNX's own: no parser would know it."""
    import onnx

    for node in model.graph.all_nodes():
        if node.domain or not onnx.defs.has(node.op_type, ""):
            raise BaseModelError(
                f"The graph has {node.domain or 'ONNX Runtime'}'s operator {node.op_type} at "
                f"{node.name}, which TensorRT does not have.",
                "Compile with --target ort, or report this with the model's name.",
            )
