"""An ONNX file to engine.plan and engine.json, or the same from the cache."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec

from ptdeploy.backends.trt import cache, cuda
from ptdeploy.backends.trt.engine_file import PLAN, Compatibility, EngineInfo, Profile, write_info
from ptdeploy.backends.trt.vendor import Vendor, choose_builder
from ptdeploy.backends.trt.words import every_gpu_but
from ptdeploy.files import sha256_of
from ptdeploy.targets.trt.builder import Request, build_plan, check_flavor
from ptdeploy.targets.trt.options import TrtOptions, read_compute_capabilities

if TYPE_CHECKING:
    import onnx_ir as ir

    from ptdeploy.bundle.signature import Signature

# One more when plans of the same description are configured otherwise than those in the cache.
_CONFIGURED = 2
# Beside a plan in the cache.
_LEFT_OUT = "left-out"
# Without --compute-capability TensorRT-RTX builds for Ampere and what came later.
_NOT_UNLESS_ASKED = ("7.5",)
_FLOATS = {"FLOAT": "float32", "FLOAT16": "float16", "BFLOAT16": "bfloat16"}


@dataclass(frozen=True)
class Job:
    """An engine to make: the ONNX file and all its parts, what it must be, and how to build it."""

    onnx: Path
    parts: tuple[Path, ...]
    signature: Signature
    profiles: tuple[Profile, ...]
    tf32: bool
    precisions: dict[str, dict[str, int]]
    options: TrtOptions


def make_engine(job: Job, folder: Path) -> tuple[str, ...]:
    """Write `engine.plan` and `engine.json` into `folder`; gives what the user should know.

    Raises what `choose_builder`, `check_flavor` and `build_plan` raise.
    """
    options = job.options
    vendor, why = choose_builder(options.flavor)
    check_flavor(vendor, options)
    info = _describe(job, vendor)
    name = cache.key({"info": msgspec.to_builtins(info), "configured": _CONFIGURED})
    notes = [f"built with {vendor.name} ({why})."]
    plan, left_out = _cached(name) if options.cache else (None, ())
    if plan is not None:
        notes.append(f"engine cache hit {name[:12]}: the same engine was built before.")
    else:
        timing = None
        if options.cache and vendor.flavor == "tensorrt":
            timing = cache.key({"version": vendor.version, "gpu": info.gpu})
        request = Request(job.onnx, job.signature, info.profiles, job.tf32, options)
        plan = build_plan(vendor, request, timing)
        left_out = tuple(vendor.left_out)
        if options.cache:
            try:
                cache.keep(name, _LEFT_OUT, msgspec.json.encode(left_out))
                cache.keep(name, "plan", bytes(plan))
            except OSError as error:
                notes.append(f"the engine was not cached: {cache.folder()} ({error.strerror}).")
    (folder / PLAN).write_bytes(plan)
    if vendor.flavor == "rtx" and not info.compute_capabilities:
        info = msgspec.structs.replace(info, left_out=(*_NOT_UNLESS_ASKED, *left_out))
        if left_out:
            notes.append(f"the engine is for {every_gpu_but(info.left_out)}.")
    write_info(info, folder)
    return tuple(notes)


def _cached(name: str) -> tuple[bytes | None, tuple[str, ...]]:
    """A plan, and the compute capabilities that its builder left out; None unless both are kept."""
    found = cache.find(name, _LEFT_OUT)
    if found is None:
        return None, ()
    return cache.find(name, "plan"), msgspec.json.decode(found, type=tuple[str, ...])


def _describe(job: Job, vendor: Vendor) -> EngineInfo:
    options = job.options
    capabilities = read_compute_capabilities(options.compute_capability)
    gpu = ""
    if vendor.flavor == "tensorrt" or capabilities == ("current",):
        device = cuda.device()
        gpu, capabilities = device.name, (device.compute_capability,)
    return EngineInfo(
        flavor=vendor.flavor,
        version=vendor.version,
        gpu=gpu,
        compute_capabilities=capabilities,
        profiles=job.profiles,
        tf32=job.tf32,
        strip_weights=options.strip_weights,
        version_compatible=options.version_compatible,
        hardware_compatibility=cast("Compatibility", options.hardware_compatibility),
        workspace=options.workspace,
        optimization_level=options.optimization_level,
        precisions=job.precisions,
        onnx_sha256=_hash(job.parts),
    )


def count_precisions(model: ir.Model) -> dict[str, dict[str, int]]:
    """How many operators of each kind give each floating type, Cast left out."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for node in model.graph.all_nodes():
        given = {out.dtype.name for out in node.outputs if out.dtype is not None}
        for dtype in given & _FLOATS.keys():
            if node.op_type != "Cast":
                found[_FLOATS[dtype]][node.op_type] += 1
    return {dtype: dict(sorted(found[dtype].items())) for dtype in sorted(found)}


def _hash(paths: tuple[Path, ...]) -> str:
    return hashlib.sha256("".join(map(sha256_of, paths)).encode()).hexdigest()
