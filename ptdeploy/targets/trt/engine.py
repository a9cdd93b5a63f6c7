"""A graph to an engine's files, and a bundle's engine made anew from its ONNX."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ptdeploy.backends.trt import engine_info
from ptdeploy.backends.trt.engine_file import INFO, PLAN
from ptdeploy.backends.trt.vendor import choose_builder
from ptdeploy.bundle import MODEL, Bundle, staged
from ptdeploy.bundle.signature import Signature
from ptdeploy.errors import BaseModelError, InputError
from ptdeploy.targets import BuildRequest, Built
from ptdeploy.targets.onnx_model import write_model
from ptdeploy.targets.trt.builder import check_blocks
from ptdeploy.targets.trt.make import Job, count_precisions, make_engine
from ptdeploy.targets.trt.options import TrtOptions
from ptdeploy.targets.trt.plan import profiles, refuse_split_rows

if TYPE_CHECKING:
    import onnx_ir as ir


def build_engine(request: BuildRequest[TrtOptions]) -> Built:
    """Write `engine.plan` and `engine.json`; the ONNX that the parser got is a working file.

    It is kept in the bundle on request, or where the engine gets its weights from it.
    """
    _refuse_unknown_operators(request.model)
    refuse_split_rows(request.signature, request.limits)
    counted = count_precisions(request.model)
    onnx = write_model(request.model, request.folder)
    job = Job(
        request.folder / onnx[0].path,
        tuple(request.folder / entry.path for entry in onnx),
        request.signature,
        profiles(request.signature, request.limits, request.options, request.own_sizes),
        request.precision == "tf32",
        counted,
        request.options,
    )
    notes = make_engine(job, request.folder)
    files = (staged(PLAN, "engine", MODEL), staged(INFO, "engine_info", MODEL))
    if request.options.keep_onnx or request.options.strip_weights:
        return Built((*files, *onnx), (), notes)
    return Built(files, onnx, notes)


def rebuild_engine(bundle: Bundle, asked: TrtOptions | None) -> tuple[str, ...]:
    """Write `engine.plan` and `engine.json` again, with the profiles and options they had.

    Only another flavor can be asked for, and no cache. An engine that was built for the GPU at hand
    is built for the one that is at hand now. Raises what `choose_builder`, `check_blocks` and
    `make_engine` raise.
    """
    if other := [] if asked is None else replace(asked, flavor="auto", cache=True).given():
        raise InputError(
            f"{other[0]}: an engine is rebuilt with the options that it was built with.",
            "Compile the checkpoint again to change them.",
        )
    manifest, info = bundle.manifest, engine_info(bundle)
    onnx = bundle.file("model")
    assert onnx is not None, "the caller checks it"
    asked = asked or TrtOptions(flavor=info.flavor)
    vendor, _ = choose_builder(asked.flavor)
    check_blocks(vendor, manifest.quantization)
    # TensorRT-RTX alone is told which GPUs to build for, and full TensorRT alone has compatibility.
    of_rtx = vendor.flavor == "rtx"
    ahead = ",".join(info.compute_capabilities) or None
    capability = "current" if info.gpu else ahead
    options = TrtOptions(
        flavor=asked.flavor,
        cache=asked.cache,
        strip_weights=info.strip_weights,
        version_compatible=info.version_compatible and not of_rtx,
        hardware_compatibility="none" if of_rtx else info.hardware_compatibility,
        workspace=info.workspace,
        optimization_level=info.optimization_level,
        compute_capability=capability if of_rtx and info.flavor == "rtx" else None,
    )
    notes: tuple[str, ...] = ()
    if of_rtx and (info.version_compatible or info.hardware_compatibility != "none"):
        notes = ("compatibility options of full TensorRT were left out.",)
    parts = [entry.path for entry in manifest.files if entry.role in ("model", "weights")]
    job = Job(
        onnx,
        tuple(bundle.path / part for part in parts),
        Signature(manifest.graph.inputs, manifest.graph.outputs),
        info.profiles,
        info.tf32,
        info.precisions,
        options,
    )
    return (*make_engine(job, bundle.path), *notes)


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
