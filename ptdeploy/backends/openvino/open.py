"""A bundle's graph to OpenVINO's compiled model: its options, its files, and its signature."""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ptdeploy.backends import NoKernel, of_another_target
from ptdeploy.backends.cores import default_threads
from ptdeploy.backends.onnx_bundle import check_onnx
from ptdeploy.backends.openvino.core import PASSES, core
from ptdeploy.backends.openvino.engine_file import EngineInfo, engine_info
from ptdeploy.backends.openvino.errors import lacks_kernel, reason
from ptdeploy.backends.openvino.kv_cache import BlockCache
from ptdeploy.backends.openvino.paged import StepNames, read_paged
from ptdeploy.backends.openvino.session import name_of
from ptdeploy.backends.telemetry import import_openvino
from ptdeploy.backends.ties import tied_cpus
from ptdeploy.bundle import Bundle, Manifest
from ptdeploy.bundle.signature import Found, check_signature
from ptdeploy.errors import BundleError, InputError, PtdeployError, TargetUnavailable
from ptdeploy.memory import out_of_memory, ran_out_of_memory
from ptdeploy.text_files import library_path
from ptdeploy.threads import lacks_threads, no_threads

# OpenVINO's names of what we call devices, and what computes a precision. Left to itself it takes
# bfloat16 or float16 wherever the device is faster with it.
DEVICES = {"cpu": "CPU", "gpu": "GPU", "npu": "NPU"}
HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32", "int4": "f32"}
_INSTALL = "pip install 'ptdeploy[openvino]'"


@dataclass(frozen=True)
class Opening:
    """How a graph is compiled; `timed` says whether its layers count their time."""

    device: str
    threads: int | None = None
    map_weights: bool = False
    timed: bool = False


@dataclass(frozen=True)
class Computing:
    """What an engine computes in: its precision, and what its engine.json says."""

    precision: str
    info: EngineInfo = field(default_factory=EngineInfo)

    @classmethod
    def of(cls, bundle: Bundle) -> Computing:
        """As a bundle has it. Raises BundleError if its engine.json is none of OpenVINO's."""
        return cls(bundle.manifest.precision, engine_info(bundle))


def unavailable(device: str) -> tuple[str, str] | None:
    """Why OpenVINO cannot run on `device` here and what to do, or None if it can."""
    if device not in DEVICES:
        return of_another_target("openvino", device)
    try:
        one = core()
    except ImportError:
        return "OpenVINO is not installed here.", _INSTALL
    found = one.available_devices
    # One of several GPUs is GPU.0.
    if all(name.partition(".")[0] != DEVICES[device] for name in found):
        if (none := _no_threads(device)) is not None:
            return none.problem, none.fix
        listed = ", ".join(found) or "none"
        return (
            f"OpenVINO finds no {DEVICES[device]} here; the devices it finds are: {listed}.",
            "Check the device's driver, or choose another --device.",
        )
    return None


def _no_threads(device: str) -> TargetUnavailable | None:
    """That OpenVINO leaves out a device for want of threads, which it says nowhere else."""
    try:
        core().get_property(DEVICES[device], "FULL_DEVICE_NAME")
    except Exception as error:  # openvino's own errors share no public base class
        return no_threads() if lacks_threads(error) else None
    return None


def no_kv_buffer(device: str) -> tuple[str, str] | None:
    """Why an engine keeps no KV cache on `device`: blocks of it have other shapes on each."""
    if device == "cpu":
        return None
    return (
        f"The target openvino keeps a KV buffer on cpu only, not on {device}, and a model that "
        "writes needs one.",
        "Leave out --device, or compile it with --target ort.",
    )


def uncomputable(device: str, precision: str) -> tuple[str, str] | None:
    """Why a device that is here cannot compute in a precision, or None if it can.

    A CPU without bfloat16 would convert each number to float32 and back.
    """
    can = core().get_property(DEVICES[device], "OPTIMIZATION_CAPABILITIES")
    if precision != "bf16" or "BF16" in can:
        return None
    return (
        f"This machine's {DEVICES[device]} does not compute in bfloat16, says OpenVINO.",
        "Compile with --precision fp32, or run it on a machine that does.",
    )


def start(bundle: Bundle, opening: Opening) -> Any:
    """A CompiledModel of a bundle's graph, on the opening's device and no other.

    Raises TargetUnavailable, BundleError or NoKernel as `Backend.load` says.
    """
    device, precision = opening.device, bundle.manifest.precision
    if device in DEVICES and keeps_kv(bundle.manifest) and (problem := no_kv_buffer(device)):
        raise TargetUnavailable(*problem)
    if problem := unavailable(device):
        raise TargetUnavailable(*problem)
    if precision not in HINTS:
        raise BundleError(f"{bundle.path}: the target openvino has no precision {precision!r}.")
    if problem := uncomputable(device, precision):
        raise TargetUnavailable(*problem)
    check_onnx(bundle)
    model, path = bundle.file("model"), bundle.in_folder("model")
    assert model is not None, "check_onnx says so"
    assert path is not None

    def check(graph: Any) -> None:
        for side in ("inputs", "outputs"):
            wanted = {spec.name for spec in getattr(bundle.manifest.graph, side)}
            found = [_spec(port, wanted) for port in getattr(graph, side)]
            check_signature(str(model), bundle.manifest, side, found, names_axes=False)

    try:
        graph = read_for(bundle.manifest, path, opening.map_weights, check)
        compiled = compile_graph(graph, Computing.of(bundle), opening)
    except PtdeployError:
        raise
    except Exception as error:  # openvino's own errors share no public base class
        if lacks_threads(error):
            raise no_threads() from error
        if ran_out_of_memory(error):
            doing = f"the engine {model} does not fit"
            raise out_of_memory(doing, error, "", opening.device) from error
        why = reason(error).replace(str(path.parent), str(model.parent))
        kind = NoKernel if lacks_kernel(error) else BundleError
        raise kind(
            f"{model}: OpenVINO cannot load it ({why}).",
            "Compile the checkpoint again with the versions installed here.",
        ) from error
    # It found the weights by their name.
    bundle.check_unchanged()
    return compiled


def cache_of(bundle: Bundle) -> BlockCache | None:
    """How its engine's KV cache lies in memory, None if it keeps none."""
    if not keeps_kv(bundle.manifest):
        return None
    return BlockCache(engine_info(bundle).kv_precision)


def keeps_kv(manifest: Manifest) -> bool:
    """Whether its engine has a KV cache."""
    return any(spec.role == "past" for spec in manifest.graph.inputs)


def read_for(
    manifest: Manifest, path: Path, map_weights: bool, check: Callable[[Any], None]
) -> Any:
    """A bundle's graph as OpenVINO's model, its KV buffer paged if it has one.

    `check` sees the model as the file has it. Raises what it does, what OpenVINO does, and
    ValueError if its attention cannot be paged.
    """
    if not keeps_kv(manifest):
        graph = read_graph(path, map_weights)
        check(graph)
        return graph
    roles = {spec.role: spec.name for spec in manifest.graph.inputs}
    if "offsets" in roles:
        raise ValueError("rows that come as one sequence are not carried over")
    names = StepNames(roles["positions"], manifest.graph.outputs[0].name)
    return read_paged(path, names, map_weights, check)


def read_graph(path: Path, map_weights: bool = False) -> Any:
    """An ONNX file as OpenVINO's model. Raises what OpenVINO does.

    By the one frontend: asked for any file, OpenVINO tries all that it has on it.
    """
    frontend = import_openvino().frontend.FrontEndManager().load_by_framework("onnx")
    return frontend.convert(frontend.load(library_path(path), map_weights))


def compile_graph(graph: Any, computing: Computing, opening: Opening) -> Any:
    """A model of OpenVINO's as one that runs. Raises what OpenVINO does."""
    with PASSES.one():
        return core().compile_model(graph, DEVICES[opening.device], _properties(computing, opening))


def _properties(computing: Computing, opening: Opening) -> dict[str, Any]:
    """What a graph is compiled with.

    Raises InputError if threads are asked of no CPU, and as `default_threads` and `tied_cpus` do.
    """
    found: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": HINTS[computing.precision],
        "PERF_COUNT": opening.timed,
    }
    if opening.device != "cpu":
        if opening.threads:
            raise InputError(f"threads is about a CPU; this engine runs on {opening.device}.")
        return found
    # All threads work on one request. OpenVINO itself would tie each to a core, and of two engines
    # to the same ones.
    return {
        **found,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": computing.info.group,
        "KV_CACHE_PRECISION": computing.info.kv_precision,
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": opening.threads or default_threads(),
        "ENABLE_CPU_PINNING": tied_cpus(opening.threads) is not None,
    }


_TYPES = {"i64": "int64", "i32": "int32", "f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def dtype_name(kind: str) -> str:
    """An element type as the manifest has it; one that it never has stays as OpenVINO says it."""
    return _TYPES.get(kind, kind)


def _spec(port: Any, wanted: Set[str]) -> Found:
    """One of a model's own inputs or outputs; OpenVINO does not name their axes."""
    shape = tuple("" if axis.is_dynamic else axis.get_length() for axis in port.partial_shape)
    return Found(name_of(port, wanted), dtype_name(port.element_type.get_type_name()), shape)
