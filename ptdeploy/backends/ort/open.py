"""A bundle's graph to ONNX Runtime's own session: its options, its files, and its signature."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ptdeploy.backends import NoKernel, of_another_target
from ptdeploy.backends.cores import default_threads, spin_us
from ptdeploy.backends.onnx_bundle import check_onnx
from ptdeploy.backends.ort.errors import lacks_kernel, reason
from ptdeploy.backends.telemetry import import_onnxruntime
from ptdeploy.backends.ties import Seat, tied_cpus
from ptdeploy.bundle import Bundle
from ptdeploy.bundle.signature import Found, check_signature
from ptdeploy.errors import BundleError, PtdeployError, TargetUnavailable
from ptdeploy.memory import out_of_memory, ran_out_of_memory
from ptdeploy.text_files import library_path
from ptdeploy.threads import lacks_threads, no_threads

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# By default CUDA multiplies float32 in TF32, which is no precision of this target.
_PROVIDER_OPTIONS: dict[str, dict[str, str]] = {"cpu": {}, "cuda": {"use_tf32": "0"}}
_EXTRAS = {"cpu": "pip install 'ptdeploy[cpu]'", "cuda": "pip install 'ptdeploy[cuda]'"}


def providers(device: str) -> list[tuple[str, dict[str, str]]]:
    """What runs a graph on `device`, as InferenceSession takes it.

    To CUDA ONNX Runtime adds its CPU provider, for nodes that CUDA has no kernel for.
    """
    return [(PROVIDERS[device], _PROVIDER_OPTIONS[device])]


def unavailable(device: str) -> tuple[str, str] | None:
    """Why ONNX Runtime cannot run on `device` here and what to do, or None if it can."""
    if device not in PROVIDERS:
        return of_another_target("ort", device)
    try:
        onnxruntime = import_onnxruntime()
    except ImportError:
        return "ONNX Runtime is not installed here.", _EXTRAS[device]
    provider = PROVIDERS[device]
    if provider not in onnxruntime.get_available_providers():
        return (
            f"The installed onnxruntime {onnxruntime.__version__} has no {provider}.",
            f"pip uninstall onnxruntime && {_EXTRAS[device]}" if device == "cuda" else "",
        )
    return None


def session_options(device: str, threads: int | None = None, map_weights: bool = False) -> Any:
    """The options that every session has. Raises TargetUnavailable where none can be opened."""
    if problem := unavailable(device):
        raise TargetUnavailable(*problem)
    onnxruntime = import_onnxruntime()

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Products with dequantized weights would round the other side too, by default.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if map_weights:
        options.add_session_config_entry("session.disable_prepacking", "1")
    # ONNX Runtime's own default counts the machine's cores, and ties a thread to each of them.
    options.intra_op_num_threads = threads or default_threads()
    cpus = tied_cpus(options.intra_op_num_threads) if device == "cpu" else None
    if cpus and len(cpus) > 1:
        # It counts CPUs from one, and leaves out the caller, which is the first thread.
        others = ";".join(str(cpu + 1) for cpu in cpus[1:])
        options.add_session_config_entry("session.intra_op_thread_affinities", others)
    microseconds = spin_us()
    if microseconds is not None:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(microseconds))
        # No request runs: no thread waits for one.
        options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry(
        "session.intra_op.allow_spinning", "0" if microseconds == 0 else "1"
    )
    return options


def seat_of(device: str, threads: int | None) -> Seat | None:
    """Where whoever calls an engine computes, if its threads are tied to cores."""
    cpus = tied_cpus(threads) if device == "cpu" else None
    return Seat(cpus[0]) if cpus else None


def start(bundle: Bundle, device: str, options: Any) -> Any:
    """An InferenceSession over a bundle's model, on `device`: see `providers`. Where its provider
    does not start, none is opened."""
    onnxruntime = import_onnxruntime()

    model, path = bundle.file("model"), bundle.in_folder("model")
    check_onnx(bundle)
    assert model is not None, "check_onnx says so"
    assert path is not None
    try:
        session = onnxruntime.InferenceSession(
            library_path(path),
            sess_options=options,
            providers=providers(device),
            # It would say on standard output, which is for answers, that it tries the CPU.
            enable_fallback=False,
        )
        # Nor may a run go on elsewhere.
        session.disable_fallback()
    except Exception as error:  # onnxruntime's own errors share no public base class
        raise _refusal(model, path, device, error) from error
    # It found the weights by their name.
    bundle.check_unchanged()
    # onnxruntime logs a provider whose libraries are missing and goes on with the CPU; we do not.
    if session.get_providers()[0] != PROVIDERS[device]:
        raise _not_started(device)
    for side, found in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
        check_signature(str(model), bundle.manifest, side, [_spec(one) for one in found])
    return session


def _refusal(model: Path, path: Path, device: str, error: Exception) -> PtdeployError:
    """What a session that was not made says of the model, its device or this process.

    `path` is where it was opened, which messages call `model`.
    """
    why = reason(error).replace(str(path.parent), str(model.parent))
    # Before memory: a thread's stack is what a system may say it lacks.
    if lacks_threads(error):
        return no_threads(
            "Give the engine fewer: threads=1, or PTDEPLOY_THREADS=1 in its environment."
        )
    if ran_out_of_memory(error):
        return out_of_memory(f"the engine {model} does not fit", error, "", device)
    if lacks_kernel(why):
        kind: type[PtdeployError] = NoKernel
    elif device != "cpu" and _opens_on_cpu(path):
        return _not_started(device, why)
    else:
        kind = BundleError
    return kind(
        f"{model}: ONNX Runtime cannot load it ({why}).",
        "Compile the checkpoint again with the versions installed here.",
    )


def _opens_on_cpu(path: Path) -> bool:
    """Whether a model is sound: then it is its device that failed."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    try:
        onnxruntime.InferenceSession(
            library_path(path), options, providers=providers("cpu"), enable_fallback=False
        )
    except Exception:  # as above
        return False
    return True


def _not_started(device: str, why: str = "") -> TargetUnavailable:
    return TargetUnavailable(
        f"{PROVIDERS[device]} did not start on this machine{f' ({why})' if why else ''}.",
        "Check the GPU driver and the CUDA and cuDNN versions that onnxruntime-gpu needs.",
    )


def _spec(argument: Any) -> Found:
    """One of a session's own inputs or outputs; an axis without a name is ''."""
    kind = str(argument.type)
    name = kind[7:-1] if kind.startswith("tensor(") else "no tensor"
    shape = tuple(axis if isinstance(axis, (int, str)) else "" for axis in argument.shape)
    dtype = "float32" if name == "float" else name
    return Found(str(argument.name), dtype, shape)
