"""A bundle's plan to a session, or why it cannot run here and how to make one that can."""

from __future__ import annotations

import mmap
import re
import shlex
from collections.abc import Callable
from typing import Any, TypeVar

from ptdeploy.backends.trt import cache, cuda
from ptdeploy.backends.trt.engine_file import TYPES, EngineInfo, read_info
from ptdeploy.backends.trt.session import TrtSession
from ptdeploy.backends.trt.vendor import NAMES, Vendor, open_vendor
from ptdeploy.backends.trt.words import every_gpu_but
from ptdeploy.bundle import Bundle
from ptdeploy.errors import BundleError, TargetUnavailable
from ptdeploy.files import sha256_of
from ptdeploy.memory import out_of_memory, ran_out_of_memory

Opened = TypeVar("Opened", bound=TrtSession)


def open_session(bundle: Bundle, allow_host_code: bool, kind: type[Opened]) -> Opened:
    """Deserialize a bundle's engine on the current GPU, as a session of this kind.

    A version compatible engine brings code that runs on the host: only with `allow_host_code`.
    Raises TargetUnavailable if the flavor is not installed, there is no GPU, or the engine was
    built for another version or GPU; BundleError if the plan cannot be read.
    """
    plan, opened = bundle.file("engine"), bundle.opened("engine")
    if plan is None or opened is None:
        raise BundleError(f"{bundle.path}: lists no file with the role 'engine'.")
    with bundle.reading("engine_info") as path:
        info = read_info(path)
    vendor = open_vendor(info.flavor)
    if problem := cuda.unavailable():
        raise TargetUnavailable(
            f"An engine of {NAMES[info.flavor]} needs an NVIDIA GPU ({problem})."
        )
    device = cuda.device()
    if wrong := why_not_here(info, vendor.version, device):
        raise TargetUnavailable(wrong, how_to_fit(info, device, bundle))
    runtime = vendor.module.Runtime(vendor.logger)
    if info.version_compatible:
        if not allow_host_code:
            raise TargetUnavailable(
                f"{bundle.path}: a version compatible engine holds code that runs on the host.",
                "If you trust whoever made the bundle, set PTDEPLOY_ALLOW_HOST_CODE=1.",
            )
        runtime.engine_host_code_allowed = True
    vendor.errors.clear()
    if not opened.stat().st_size:
        raise BundleError(f"{plan}: is empty.", "Compile the checkpoint again.")
    # Mapped: what is copied to the GPU need not be copied on the host first.
    with opened.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        engine = runtime.deserialize_cuda_engine(content)
        reason = "" if engine is not None else _reason(vendor, runtime, content)
    if engine is None:
        refuse_too_large(vendor, reason, f"the engine {plan}")
        raise TargetUnavailable(
            f"{plan}: {vendor.name} cannot load it on {device.name} ({reason}).",
            how_to_rebuild(bundle),
        )
    if info.strip_weights:
        _refit(vendor, engine, bundle)
    if engine.num_optimization_profiles != len(info.profiles):
        raise BundleError(
            f"{bundle.path}: its engine has {engine.num_optimization_profiles} optimization "
            f"profiles, engine.json {len(info.profiles)}.",
            "Compile the checkpoint again.",
        )
    _check_tensors(vendor, engine, bundle, info)
    contexts, keep = _contexts(vendor, engine, info, _digest(bundle), device)
    return kind(vendor, engine, info.profiles, contexts, keep)


def why_not_here(info: EngineInfo, version: str, device: cuda.Device) -> str | None:
    """Why an engine cannot run with this version on this GPU, or None if it may."""
    name = NAMES[info.flavor]
    built = f"The engine was built by {name} {info.version}"
    if info.version != version:
        same_major = _numbers(info.version)[0] == _numbers(version)[0]
        newer = _numbers(version) > _numbers(info.version)
        if not (info.version_compatible and same_major and newer):
            return f"{built}; {name} {version} is installed here."
    wanted = info.compute_capabilities
    here = device.compute_capability
    if here in info.left_out:
        return f"{built} for {every_gpu_but(info.left_out)}; here is {here} ({device.name})."
    major = here.split(".")[0]
    fits = {
        "none": here in wanted,
        "same_compute_capability": here in wanted,
        "ampere_plus": int(major) >= 8,
    }[info.hardware_compatibility]
    if wanted and not fits:
        return (
            f"{built} for compute capability {', '.join(wanted)}"
            + (f" ({info.gpu})" if info.gpu else "")
            + f"; here is {here} ({device.name})."
        )
    return None


def _digest(bundle: Bundle) -> str:
    """The plan's SHA-256; a bundle that is still being made does not say it."""
    (entry,) = (one for one in bundle.manifest.files if one.role == "engine")
    if entry.sha256:
        return entry.sha256
    return sha256_of(bundle.path / entry.path)


def how_to_fit(info: EngineInfo, device: cuda.Device, bundle: Bundle) -> str:
    """How to make an engine that can run on a GPU, for one that cannot."""
    here = device.compute_capability
    # Made anew as it was, it would leave this GPU out again.
    if here in info.left_out:
        return (
            f"Compile the checkpoint for it: --compute-capability {here}, with a --precision that "
            "it has."
        )
    return how_to_rebuild(bundle)


def how_to_rebuild(bundle: Bundle) -> str:
    if bundle.file("model") is not None:
        return f"Build it for this machine: ptdeploy rebuild {shlex.quote(str(bundle.path))}"
    return (
        "Compile the checkpoint here: ptdeploy compile CHECKPOINT --target trt. (With --keep-onnx "
        "a bundle can be rebuilt without the checkpoint.)"
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d{1,6}", version)) or (0,)


def _reason(vendor: Vendor, runtime: Any, content: mmap.mmap) -> str:
    """What the engine's own check says, where this flavor has one, or the first error."""
    check = getattr(runtime, "get_engine_validity", None)
    if check is not None:
        _, found = check(content)
        flags = vendor.module.EngineInvalidityDiagnostics.__members__
        words = [name.lower().replace("_", " ") for name, bit in flags.items() if found & int(bit)]
        if words:
            return ", ".join(words)
    return (vendor.errors or ["it gives no reason"])[0].rstrip(".")


def refuse_too_large(vendor: Vendor, reason: str, what: str) -> None:
    """Raises OutOfMemory if that is why a plan could not be loaded: it is said in words alone."""
    error = RuntimeError(" ".join((reason, *vendor.errors)))
    if ran_out_of_memory(error) or "insufficient gpu memory" in reason:
        raise out_of_memory(f"{what} does not fit", error, "", "cuda")


def _refit(vendor: Vendor, engine: Any, bundle: Bundle) -> None:
    """Give a stripped engine its weights, from the bundle's ONNX."""
    onnx, path = bundle.file("model"), bundle.in_folder("model")
    if onnx is None or path is None:
        raise BundleError(f"{bundle.path}: its engine has no weights, and there is no ONNX.")
    refitter = vendor.module.Refitter(engine, vendor.logger)
    parser = vendor.module.OnnxParserRefitter(refitter, vendor.logger)
    if not parser.refit_from_file(str(path)) or not refitter.refit_cuda_engine():
        reason = (vendor.errors or ["it gives no reason"])[0].rstrip(".")
        raise BundleError(f"{onnx}: {vendor.name} cannot refit the engine from it ({reason}).")
    # It found the weights by their name.
    bundle.check_unchanged()


def _contexts(
    vendor: Vendor, engine: Any, info: EngineInfo, plan: str, device: cuda.Device
) -> tuple[Callable[[int], Any], Callable[[], None]]:
    """How to make a profile's execution context, and how to keep the kernels compiled since.

    Scratch space is that of the context's own profile. TensorRT-RTX compiles kernels when it first
    needs them. A decode step has few shapes and is recorded, so that it waits for the final ones;
    texts have many, and run on general ones until theirs are there.
    """
    trt = vendor.module
    own = trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
    if vendor.flavor == "tensorrt":
        return lambda _: engine.create_execution_context(own), lambda: None
    strategy = trt.DynamicShapesKernelSpecializationStrategy
    configs = []
    for profile in info.profiles:
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(own)
        kind = strategy.EAGER if profile.name == "decode" else strategy.LAZY
        config.dynamic_shapes_kernel_specialization_strategy = kind
        configs.append(config)
    kernels = configs[0].create_runtime_cache()
    name = cache.key(
        {
            "plan": plan,
            "version": vendor.version,
            "gpu": [device.name, device.compute_capability],
        }
    )
    if found := cache.find(name, "kernels"):
        # What does not fit this driver is refused, and compiled anew.
        kernels.deserialize(found)
    for config in configs:
        config.set_runtime_cache(kernels)

    def keep() -> None:
        content = kernels.serialize()
        try:
            if content is not None:
                cache.keep(name, "kernels", bytes(content))
        except OSError:
            # Only the next start is slower for it.
            return

    return lambda index: engine.create_execution_context(configs[index]), keep


def _check_tensors(vendor: Vendor, engine: Any, bundle: Bundle, info: EngineInfo) -> None:
    """Raises BundleError unless the engine's tensors and its profiles' are the manifest's.

    Memory is made by the manifest and written by the engine: they must mean the same sizes.
    """
    dtypes = vendor.module.DataType
    given = {
        name: (engine.get_tensor_dtype(name), len(engine.get_tensor_shape(name)))
        for name in (engine.get_tensor_name(i) for i in range(engine.num_io_tensors))
    }
    inputs, outputs = (
        {
            spec.name: (getattr(dtypes, TYPES.get(spec.dtype, ""), None), len(spec.shape))
            for spec in side
        }
        for side in (bundle.manifest.graph.inputs, bundle.manifest.graph.outputs)
    )
    if given != {**inputs, **outputs}:
        raise BundleError(
            f"{bundle.path}: its engine has other inputs or outputs than its manifest lists.",
            "Compile the checkpoint again.",
        )
    wanted = {name: {rank} for name, (_, rank) in inputs.items()}
    for profile in info.profiles:
        if {name: set(map(len, shapes)) for name, shapes in profile.shapes.items()} != wanted:
            raise BundleError(
                f"{bundle.path}: a profile of its engine.json is not one of its inputs.",
                "Compile the checkpoint again.",
            )
