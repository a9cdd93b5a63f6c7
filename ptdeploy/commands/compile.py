"""compile(): the stages in a line, one data type between each two."""

from __future__ import annotations

import gc
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ptdeploy.arguments import (
    MOST,
    checked,
    flag,
    having,
    instance,
    maybe,
    one_of,
    path,
    text,
    whole,
)
from ptdeploy.bundle import (
    Bundle,
    Role,
    check_destination,
    check_room,
    publish,
    stage_bundle,
    staged,
)
from ptdeploy.bundle.quantization import ROUNDING, Rounding, quantization_for, read_texts
from ptdeploy.bundle.task import Task
from ptdeploy.engine_options import ENGINE_OPTIONS, EngineOptions
from ptdeploy.errors import (
    BaseModelError,
    BundleError,
    EngineFault,
    InputError,
    TargetUnavailable,
)
from ptdeploy.parity.cases import check_golden, compared_rows
from ptdeploy.parity.compare import compare
from ptdeploy.parity.graph_check import open_graph_check
from ptdeploy.parity.reference import Reference
from ptdeploy.parity.reference.store import save_reference
from ptdeploy.parity.refusal import Compiled, refuse_mismatch
from ptdeploy.parity.report import ParityReport
from ptdeploy.parity.reports import report_json
from ptdeploy.progress import PENDING, REFERENCE_STAGE, Progress
from ptdeploy.runtime import open_engine
from ptdeploy.source.base import resolve_base
from ptdeploy.source.base_weights import load_model
from ptdeploy.source.checkpoint import read_checkpoint
from ptdeploy.targets import BuildRequest, Target, get_target
from ptdeploy.text_files import library_path

if TYPE_CHECKING:
    from ptdeploy.runtime.engine import Engine


@checked(
    checkpoint=path,
    target=text,
    base=maybe(path),
    output=maybe(path),
    device=maybe(text),
    precision=maybe(text),
    adapter=maybe(text),
    tokenizer=maybe(path),
    task=maybe(one_of(Task)),
    labels=maybe(text),
    force=flag,
    freeze_kv=flag,
    max_batch=maybe(whole(most=MOST)),
    max_context=maybe(whole(most=MOST)),
    rounding=maybe(instance(Rounding, **ROUNDING)),
    golden=maybe(whole()),
    engine=maybe(instance(EngineOptions, **ENGINE_OPTIONS)),
    progress=having("stage", "note"),
)
def compile_checkpoint(
    checkpoint: str | Path,
    *,
    target: str,
    base: str | None = None,
    output: str | Path | None = None,
    device: str | None = None,
    precision: str | None = None,
    adapter: str | None = None,
    tokenizer: str | None = None,
    task: Task | None = None,
    labels: str | None = None,
    head: str | None = None,
    force: bool = False,
    freeze_kv: bool = True,
    max_batch: int | None = None,
    max_context: int | None = None,
    rounding: Rounding | None = None,
    golden: int | None = None,
    engine: EngineOptions | None = None,
    progress: Progress,
) -> Bundle:
    """See ptdeploy.compile."""
    check_golden(golden)
    engine_options = engine or EngineOptions()
    engine_target = get_target(target)
    device = device or engine_target.DEVICES[0]
    precision = _check_target(target, device, precision, engine_options)
    numerics = engine_target.numerics(device, precision)
    quantization = quantization_for(
        precision, rounding or Rounding(), numerics.block_size, numerics.custom_operators
    )
    texts = read_texts(rounding.quality_text) if rounding and rounding.quality_text else None
    place = Path(output) if output else default_destination(checkpoint, target)
    for given in (checkpoint, base or "", place):
        library_path(given)
    destination = check_destination(place, force)

    with progress.stage("read the checkpoint"):
        source = read_checkpoint(checkpoint, adapter, task, labels)
        _check_causal(source.task, freeze_kv, max_batch, max_context)
        from ptdeploy.parity.reference.peft import compute_reference
        from ptdeploy.parity.reference.texts import (
            evaluation_text,
            reference_texts,
            save_text_files,
            with_texts,
        )
        from ptdeploy.passes import PassContext, run_passes
        from ptdeploy.program.build import build_program, needs_prefix_kv
        from ptdeploy.program.export import to_onnx
        from ptdeploy.program.manifest import build_manifest, limits
        from ptdeploy.program.prompt import freeze, save_prompt
        from ptdeploy.source.meaning import read_meaning
        from ptdeploy.source.tokenizer_choice import choose_tokenizer

        found = resolve_base(source, base)
        meaning = read_meaning(source, found, head)
        chosen = choose_tokenizer(source, found, tokenizer)
    for note in found.notes:
        progress.note(note)
    with progress.stage(f"load the base model {found.name}"):
        model = load_model(source, found)
        width = (
            quantization.bits if quantization else 32 if numerics.activations == "float32" else 16
        )
        # Not every weight need come into the graph.
        weights = sum(weight.numel() for weight in model.parameters())
        check_room(destination, weights * width // 10)
    with progress.stage(f"freeze {source.num_virtual_tokens} virtual tokens"):
        prompt = freeze(source, model, needs_prefix_kv(source.task, found))
    with progress.stage("export to ONNX"):
        program, route = build_program(
            source.task,
            model,
            found,
            prompt,
            freeze_kv,
            numerics.operators,
            partial(engine_target.refuses, device, numerics.activations),
        )
        bounds = limits(
            found,
            route,
            source.num_virtual_tokens,
            max_batch,
            max_context,
        )
        causal = source.task is Task.CAUSAL_LM
        bounds = engine_target.limit(bounds, engine_options, causal, max_context)
        signature = program.signature.computed_in(numerics.activations)
        if numerics.fixed_slots and route.route == "fused":
            signature = signature.with_slots(bounds.max_context)
        graph = to_onnx(program, numerics.opset)
    with progress.stage("optimise the graph"):
        context = PassContext(
            signature, quantization, numerics.activations, numerics.custom_operators
        )
        graph = run_passes(graph, context)
    with stage_bundle(destination) as staging:
        with progress.stage(f"build the {target} engine"):
            built = engine_target.build(
                BuildRequest(graph, signature, bounds, precision, staging, engine_options)
            )
            files = built.files
            files += (staged(save_prompt(prompt, staging), "prompt"),)
            if chosen.tokenizer is not None:
                files += save_text_files(chosen.tokenizer, staging)
        manifest = build_manifest(
            checkpoint=source,
            base=found,
            prompt=prompt,
            signature=signature,
            meaning=meaning,
            target=target,
            device=device,
            precision=precision,
            graph=route,
            quantization=quantization,
            freeze_kv=freeze_kv,
            limits=bounds,
            tokenizer=chosen.info,
            files=files,
        )
        # The reference loads the model a second time, its own way; two at once would be one too
        # many for a large model.
        del graph, program, model
        gc.collect()
        with progress.stage(REFERENCE_STAGE):
            judged = None
            if quantization is not None:
                judged = evaluation_text(chosen.tokenizer, manifest.limits, texts, source.task)
            compared = compared_rows(bounds, reference_texts(chosen.tokenizer, bounds), golden)
            computed = compute_reference(source, found, bounds, judged, compared)
            reference = with_texts(computed, chosen, source.task)
            files += (staged(save_reference(reference, staging, golden), "reference"),)
        gc.collect()
        new = Bundle(staging, msgspec.structs.replace(manifest, files=(*files, *built.working)))
        compiled = Compiled(
            found.config.model_type, numerics.activations, engine_target.precisions(device)
        )
        reports = _check_parity(new, compiled, reference, engine_target.STAND_IN, progress)
        for role, report in reports.items():
            name = f"{role.replace('_', '-')}.json"
            (staging / name).write_bytes(report_json(report))
            files += (staged(name, role),)
        for entry in built.working:
            (staging / entry.path).unlink()
        with progress.stage("write the bundle"):
            summaries = {role: report.summary() for role, report in reports.items()}
            manifest = msgspec.structs.replace(manifest, files=files, **summaries)
            bundle = publish(staging, manifest, destination)
    notes = [
        *meaning.notes,
        *built.notes,
        *(note for report in reports.values() for note in report.notes),
    ]
    for note in dict.fromkeys(notes):
        progress.note(note)
    if "parity" not in reports:
        progress.note(PENDING)
    for note in chosen.notes:
        progress.note(note)
    return bundle


def default_destination(checkpoint: str | Path, target: str) -> Path:
    """Where compile writes unless told: `<checkpoint's name>.<target>.bundle`, in this folder."""
    path = Path(checkpoint).resolve()
    return Path(f"{path.stem if path.is_file() else path.name}.{target}.bundle")


def _check_target(target: str, device: str, precision: str | None, options: EngineOptions) -> str:
    """The precision, if the target can do what is asked; nothing is replaced by something near."""
    engine_target = get_target(target)
    if problem := engine_target.unbuildable(device, options):
        raise TargetUnavailable(*problem)
    if problem := _unprovable(engine_target, device):
        raise TargetUnavailable(*problem)
    precisions = engine_target.precisions(device)
    precision = precision or precisions[0]
    if precision not in precisions:
        raise InputError(
            f"Target {target} has no precision {precision!r} on {device}; "
            f"there is {', '.join(precisions)}."
        )
    return precision


def _unprovable(target: Target, device: str) -> tuple[str, str] | None:
    """Why neither the engine nor its graph can be compared with PEFT here, or None."""
    problem = target.unavailable(device)
    if problem is None or not target.STAND_IN:
        return problem
    if _runs_on_default(target.STAND_IN):
        return None
    return f"Nothing here could show parity: {problem[0]}", "pip install 'ptdeploy[cpu]'"


def _runs_on_default(name: str) -> bool:
    target = get_target(name)
    return target.unavailable(target.DEVICES[0]) is None


def _check_parity(
    new: Bundle, compiled: Compiled, reference: Reference, stand_in: str, progress: Progress
) -> dict[Role, ParityReport]:
    """Compare what can run here with the reference: the engine, and the graph that it is built of.

    Raises ParityError if either departs, EngineFault if one fails.
    """
    reports: dict[Role, ParityReport] = {}
    manifest = new.manifest
    if stand_in and _runs_on_default(stand_in):
        with (
            progress.stage(f"check parity of the graph, with {stand_in}"),
            open_graph_check(new, stand_in) as engine,
        ):
            reports["graph_parity"] = compare(engine, reference)
        refuse_mismatch(reports["graph_parity"], compiled)
    if get_target(manifest.target).unavailable(manifest.device) is None:
        with progress.stage("check parity"):
            try:
                engine = _open_new(new, compiled)
            except TargetUnavailable as error:
                # Built for another GPU than the one that is here.
                if not reports:
                    raise
                progress.note(f"the engine cannot run here: {error.problem}")
                return reports
            reports["parity"] = compare(engine, reference)
        refuse_mismatch(reports["parity"], compiled)
    return reports


def _check_causal(
    task: Task, freeze_kv: bool, max_batch: int | None, max_context: int | None
) -> None:
    if task is Task.CAUSAL_LM:
        return
    for option, given in (
        ("--no-freeze-kv", not freeze_kv),
        ("--max-batch", max_batch is not None),
        ("--max-context", max_context is not None),
    ):
        if given:
            raise InputError(f"{option} is about a KV buffer, and a {task.value} model keeps none.")


def _open_new(bundle: Bundle, compiled: Compiled) -> Engine:
    try:
        return open_engine(bundle)
    except BundleError as error:
        # ONNX Runtime's word for an operator that it has no kernel for, in that type.
        if "find an implementation" in error.problem:
            raise BaseModelError(
                f"{compiled.architecture}: its graph has operators that the target cannot run "
                f"({error.problem}).",
                "Only the architectures in the README's support table are tested.",
            ) from None
        raise EngineFault(
            f"{compiled.architecture}: the target cannot open the engine that was built of its "
            f"graph ({error.problem}).",
            "Compile for another target or device, or report this with the base model's name.",
        ) from None
