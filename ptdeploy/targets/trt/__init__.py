"""TensorRT and TensorRT-RTX: the engine file is a plan, with what it was built for beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from ptdeploy.backends.layers import EngineLayers, Profiled
from ptdeploy.bundle import Bundle, Limits, staged
from ptdeploy.bundle.signature import Signature
from ptdeploy.bundle.task import Activations
from ptdeploy.engine_options import EngineOptions, check_options, read_compute_capabilities
from ptdeploy.errors import BaseModelError, InputError, TargetUnavailable
from ptdeploy.targets import Attention, BuildRequest, Built, Numerics
from ptdeploy.targets.ort import write_model
from ptdeploy.targets.trt import cuda
from ptdeploy.targets.trt.builder import check_flavor
from ptdeploy.targets.trt.engine_file import INFO, PLAN, EngineInfo, read_info
from ptdeploy.targets.trt.make import Job, count_precisions, make_engine
from ptdeploy.targets.trt.plan import bounded, profiles
from ptdeploy.targets.trt.vendor import INSTALL, MODULES, NAMES, choose_builder, is_installed

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from ptdeploy.targets.trt.deserialize import Opened
    from ptdeploy.targets.trt.session import TrtSession

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
    """Why no engine can run on `device` here, or None if one can."""
    if device not in DEVICES:
        return f"The target trt runs on cuda, not on {device!r}.", ""
    if not any(is_installed(flavor) for flavor in MODULES):
        return (
            f"Neither {' nor '.join(NAMES.values())} is installed here.",
            " or ".join(INSTALL.values()),
        )
    if problem := cuda.unavailable():
        return f"The target trt needs an NVIDIA GPU to run ({problem}).", ""
    return None


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
    manifest, info = bundle.manifest, _info(bundle)
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
    info = _info(bundle)
    return run_exposed(info, onnx, inner, outputs, feed, narrow)


def facts(bundle: Bundle) -> dict[str, Any]:
    """What `engine.json` says."""
    found: dict[str, Any] = msgspec.to_builtins(_info(bundle))
    return found


def load(bundle: Bundle, device: str, threads: int | None, map_weights: bool) -> TrtSession:
    """Open a bundle's engine on the current GPU. Raises TargetUnavailable where it cannot run."""
    from ptdeploy.targets.trt.session import TrtSession

    return _open(bundle, device, threads, map_weights, TrtSession)


def layers(bundle: Bundle, device: str) -> EngineLayers:
    """What the engine inspector says of a bundle's engine; it reads engines only on a GPU."""
    return load(bundle, device, None, False).layers()


@contextmanager
def profiled(bundle: Bundle, device: str, threads: int | None) -> Iterator[Profiled]:
    """Open the engine with a profiler on each of its execution contexts."""
    from ptdeploy.targets.trt.profile import ProfiledSession

    session = _open(bundle, device, threads, False, ProfiledSession)
    yield Profiled(session, session.runs, session.NOTES)


def _info(bundle: Bundle) -> EngineInfo:
    with bundle.reading("engine_info") as path:
        return read_info(path)


def _open(
    bundle: Bundle, device: str, threads: int | None, map_weights: bool, kind: type[Opened]
) -> Opened:
    if threads is not None or map_weights:
        option = "map_weights" if map_weights else "threads"
        raise InputError(f"{option} is about a CPU; this engine runs on a GPU.")
    if problem := unavailable(device):
        raise TargetUnavailable(*problem)
    from ptdeploy.targets.trt.deserialize import open_session

    allowed = os.environ.get("PTDEPLOY_ALLOW_HOST_CODE") == "1"
    return open_session(bundle, allowed, kind)


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
