"""ONNX to a plan: parsed, checked against the signature, and built."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptdeploy.backends.trt import cache
from ptdeploy.backends.trt.engine_file import TYPES, Profile
from ptdeploy.backends.trt.vendor import Vendor, decimals
from ptdeploy.errors import BaseModelError, InputError, TargetUnavailable
from ptdeploy.targets.trt.options import TrtOptions, read_compute_capabilities

if TYPE_CHECKING:
    from ptdeploy.bundle import Quantization
    from ptdeploy.bundle.signature import Signature

# The sizes of int4's blocks in full TensorRT's documentation.
_BLOCKS = (64, 128)
# The first compute capability with each type, where that is not every one; builds of 1.7.1 say so.
_LEAST = {"bf16": (8, 0), "int4": (8, 0), "fp8": (8, 9)}
_LACKS_TYPE = re.compile(
    r"Cannot compile for target\(s\) (sm\d+(?:, sm\d+)*), .*?datatypes: ([\w, ]+)"
)
# What the libraries say where they look for a driver in a build that needs one.
_WANTS_GPU = ("cudaError", "CUDA_SUCCESS", "myelinSuccess")


@dataclass(frozen=True)
class Request:
    """A build: the ONNX file, what it must be, and how to build it.

    `inner` are values of the graph that become outputs too.
    """

    onnx: Path
    signature: Signature
    profiles: tuple[Profile, ...]
    tf32: bool
    options: TrtOptions
    inner: tuple[str, ...] = ()


def build_plan(vendor: Vendor, request: Request, timing: str | None) -> Any:
    """The serialized engine, as a buffer. `timing` names the timing cache; None for no cache.

    Raises BaseModelError if the parser refuses the graph, with the node and the module it came
    from; InputError if an option cannot be had with this flavor; TargetUnavailable if it needs a
    GPU and there is none.
    """
    trt = vendor.module
    vendor.errors.clear()
    vendor.left_out.clear()
    builder = trt.Builder(vendor.logger)
    network, parser = _parse(vendor, builder, request.onnx)
    check_network(vendor, network, request.signature)
    _expose(vendor, network, request.inner)
    config = builder.create_builder_config()
    _configure(vendor, config, request.options, request.tf32)
    if vendor.flavor == "rtx" and any(spec.role == "past" for spec in request.signature.inputs):
        _let_steps_be_recorded(vendor, config)
    for profile in request.profiles:
        shapes = builder.create_optimization_profile()
        for name, (least, usual, most) in profile.shapes.items():
            shapes.set_shape(name, least, usual, most)
        if config.add_optimization_profile(shapes) < 0:
            raise BaseModelError(f"{vendor.name} refuses the profile {profile}: {_first(vendor)}.")
    kept = _timing_cache(config, timing)
    with _interruptible():
        plan = builder.build_serialized_network(network, config)
    # The network's weights lie in the parser.
    del parser
    if plan is None:
        raise _failed(vendor, request.options)
    if kept is not None and timing is not None:
        _keep_timing(timing, bytes(kept.serialize()))
    return plan


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C end a build: raised inside TensorRT's calls to our logger, it would be dropped.

    It takes effect when the builder returns.
    """
    of_python = signal.getsignal(signal.SIGINT) is not None
    if threading.current_thread() is not threading.main_thread() or not of_python:
        yield
        return
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


def _parse(vendor: Vendor, builder: Any, onnx: Path) -> tuple[Any, Any]:
    trt = vendor.module
    flags = trt.NetworkDefinitionCreationFlag
    # TensorRT 11 knows no other kind of network and may drop the flag.
    typed = getattr(flags, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, vendor.logger)
    if not parser.parse_from_file(str(onnx)):
        raise BaseModelError(
            f"{vendor.name} cannot parse the graph:\n  "
            + "\n  ".join(_parser_errors(parser) or vendor.errors[:3]),
            "A node is named after the model's module that it came from. Compile with "
            "--target ort, which runs more operators, or report this with the model's name.",
        )
    return network, parser


def _parser_errors(parser: Any) -> list[str]:
    found = [parser.get_error(i) for i in range(parser.num_errors)]
    lines = []
    for error in found:
        name, operator = error.node_name(), error.node_operator()
        module, _, _ = name.rpartition("/")
        node = f"node {name} ({operator})" + (f" of module {module}" if module else "")
        lines.append(f"{node}: {error.desc().strip()}")
    return lines


def check_network(vendor: Vendor, network: Any, signature: Signature) -> None:
    """Hold the parsed network against the signature: names, types, shapes, what is in place.

    Raises BaseModelError on the first difference; that is a fault of ours or of the parser's.
    """
    trt = vendor.module
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    for side, tensors, specs in (
        ("inputs", inputs, signature.inputs),
        ("outputs", outputs, signature.outputs),
    ):
        names = [tensor.name for tensor in tensors]
        if sorted(names) != sorted(spec.name for spec in specs):
            raise BaseModelError(
                f"{vendor.name} parsed the {side} {names}, which are not declared."
            )
        by_name = {tensor.name: tensor for tensor in tensors}
        for spec in specs:
            tensor = by_name[spec.name]
            wanted = getattr(trt.DataType, TYPES[spec.dtype])
            if tensor.dtype != wanted:
                raise BaseModelError(
                    f"{vendor.name} parsed {spec.name} as {tensor.dtype}, not {spec.dtype}."
                )
            shape = tuple(tensor.shape)
            if len(shape) != len(spec.shape) or any(
                size != axis and not (size == -1 and (isinstance(axis, str) or side == "outputs"))
                for size, axis in zip(shape, spec.shape, strict=True)
            ):
                raise BaseModelError(
                    f"{vendor.name} parsed {spec.name} as {list(shape)}, not {list(spec.shape)}."
                )
            if side == "inputs" and tensor.is_shape_tensor:
                raise BaseModelError(
                    f"{vendor.name} needs the values of {spec.name} on the host, as shapes."
                )
    updated = {
        layer.get_output(0).name
        for layer in (network.get_layer(i) for i in range(network.num_layers))
        if layer.type == getattr(trt.LayerType, "KV_CACHE_UPDATE", None)
    }
    in_place = {spec.name for spec in signature.outputs if _is_buffer(spec.shape, spec.name)}
    if missing := sorted(in_place - updated):
        raise BaseModelError(f"{vendor.name} does not update {missing[0]} in place.")


def _expose(vendor: Vendor, network: Any, inner: tuple[str, ...]) -> None:
    """Make inner values outputs. Raises BaseModelError if the network does not have one."""
    if not inner:
        return
    layers = (network.get_layer(i) for i in range(network.num_layers))
    given = (layer.get_output(i) for layer in layers for i in range(layer.num_outputs))
    values = {value.name: value for value in given if value is not None}
    for name in inner:
        if name not in values:
            raise BaseModelError(f"{vendor.name} parsed no value {name}.")
        network.mark_output(values[name])


def _is_buffer(shape: tuple[int | str, ...], name: str) -> bool:
    """Whether an output is the KV buffer itself: a fixed number of slots, not the new tokens."""
    return name.startswith("present.") and isinstance(shape[2], int)


def _configure(vendor: Vendor, config: Any, options: TrtOptions, tf32: bool) -> None:
    trt = vendor.module
    # Layer names are the modules'; details are what `inspect --layers` shows.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    (config.set_flag if tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace << 20)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.strip_weights:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
        # The weights come back from the bundle's own ONNX, so they are the same ones.
        same = vendor.flavor == "tensorrt"
        config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL if same else trt.BuilderFlag.REFIT)
    if vendor.flavor == "tensorrt":
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        level = trt.HardwareCompatibilityLevel
        config.hardware_compatibility_level = getattr(level, options.hardware_compatibility.upper())
    capabilities = read_compute_capabilities(options.compute_capability)
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        name = "CURRENT" if capability == "current" else f"SM{capability.replace('.', '')}"
        known = trt.ComputeCapability.__members__
        if name not in known:
            raise InputError(
                f"--compute-capability {capability}: {vendor.name} builds for "
                f"{', '.join(decimals(' '.join(known)))} or current."
            )
        config.set_compute_capability(known[name], index)


def _let_steps_be_recorded(vendor: Vendor, config: Any) -> None:
    """Have a decoder's engine allocate nothing while it runs: a CUDA graph could not hold that."""
    # TensorRT-RTX has it from 1.2 on.
    flag = getattr(vendor.module.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)
    if flag is not None:
        config.set_flag(flag)


def check_flavor(vendor: Vendor, options: TrtOptions) -> None:
    """Raises InputError if this flavor does not have what the options ask for."""
    if vendor.flavor == "tensorrt" and options.compute_capability:
        raise InputError(
            "--compute-capability is TensorRT-RTX's; full TensorRT builds for the GPU at hand.",
            "Leave it out, ask for --hardware-compatibility, or build with --trt-flavor rtx.",
        )
    if vendor.flavor == "rtx":
        if options.hardware_compatibility != "none":
            raise InputError(
                "--hardware-compatibility is full TensorRT's; TensorRT-RTX's engines run on every "
                "GPU that it supports.",
                "Leave it out, or narrow the GPUs with --compute-capability.",
            )
        if options.version_compatible:
            raise InputError(
                "--version-compatible needs the lean runtime, which TensorRT-RTX does not have.",
                "Leave it out, and keep the ONNX with --keep-onnx: ptdeploy rebuild makes the "
                "engine anew for another version.",
            )


def check_capabilities(precision: str, options: TrtOptions) -> None:
    """Raises InputError if a GPU that was asked for has no kernels for the precision."""
    least = _LEAST.get(precision, (0, 0))
    lacking = [
        one
        for one in read_compute_capabilities(options.compute_capability)
        if one != "current" and tuple(map(int, one.split("."))) < least
    ]
    if lacking:
        first = ".".join(map(str, least))
        raise InputError(
            f"--compute-capability {','.join(lacking)}: TensorRT-RTX has kernels for "
            f"--precision {precision} from {first} on.",
            f"Leave {', '.join(lacking)} out, or compile with another --precision.",
        )


def check_blocks(vendor: Vendor, quantization: Quantization | None) -> None:
    """Raises InputError if full TensorRT is to have blocks that it does not document.

    Of TensorRT-RTX no sizes are documented: its builder says what it does not take.
    """
    block = quantization.block_size if quantization else 0
    if vendor.flavor == "tensorrt" and block not in (0, *_BLOCKS):
        raise InputError(
            f"--block-size {block}: {vendor.name} takes blocks of "
            f"{' or '.join(map(str, _BLOCKS))} weights.",
            "Compile with one of these, or with --trt-flavor rtx.",
        )


def _timing_cache(config: Any, timing: str | None) -> Any:
    """TensorRT's own record of kernel timings, from earlier builds on this GPU."""
    if timing is None:
        return None
    found = config.create_timing_cache(cache.find(timing, "timing") or b"")
    return found if config.set_timing_cache(found, ignore_mismatch=False) else None


def _keep_timing(timing: str, content: bytes) -> None:
    try:
        cache.keep(timing, "timing", content)
    except OSError:
        # Only the next build is slower for it.
        return


def _first(vendor: Vendor) -> str:
    return (vendor.errors or ["it gives no reason"])[0].rstrip(".")


def _failed(vendor: Vendor, options: TrtOptions) -> Exception:
    reason = _first(vendor)
    if any(words in error for error in vendor.errors for words in _WANTS_GPU):
        what = "--strip-weights" if options.strip_weights else "this engine"
        return TargetUnavailable(
            f"{vendor.name} needs a GPU to build {what} ({reason}).",
            "Build it on a machine with an NVIDIA GPU, or leave the option out.",
        )
    fix = "Compile with --target ort, or report this with the model's name."
    if lacking := _LACKS_TYPE.search(reason):
        named = options.compute_capability not in (None, "current")
        fix = f"{', '.join(decimals(lacking[1]))}: no kernels for {lacking[2]}. " + (
            "Leave that out of --compute-capability, or compile with another --precision."
            if named
            else "Compile with another --precision."
        )
    elif options.workspace is not None:
        fix = f"Give it more than --workspace {options.workspace}, or leave that out."
    return BaseModelError(f"{vendor.name} cannot build the graph: {reason}.", fix)
