"""The stages of compile between its plan and its proof: each takes one dataclass and gives one."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ptdeploy.backends import get_backend
from ptdeploy.bundle import FileEntry, Quantization, RequestLimits, Route, check_room
from ptdeploy.bundle.signature import Signature
from ptdeploy.bundle.task import Task
from ptdeploy.commands.draft import Draft, in_stages, prompt_place, staged_of_prompt
from ptdeploy.commands.plan import Plan
from ptdeploy.commands.request import CompileRequest
from ptdeploy.commands.tasks import read_named
from ptdeploy.errors import InputError, TargetUnavailable
from ptdeploy.printable import number_of
from ptdeploy.program.kinds import BuildOptions, kind_of
from ptdeploy.progress import Progress, reference_stage
from ptdeploy.source.base import BaseModel, resolve_base
from ptdeploy.source.base_weights import load_model
from ptdeploy.source.checkpoint import Checkpoint
from ptdeploy.source.checkpoint.no_prompt import no_prompt
from ptdeploy.targets import BuildRequest

if TYPE_CHECKING:
    import onnx_ir as ir
    from transformers import PreTrainedModel

    from ptdeploy.passes.fixed_scales import Calibration
    from ptdeploy.program.prompt import Prompt
    from ptdeploy.source.meaning import Meaning
    from ptdeploy.source.tokenizer_choice import ChosenTokenizer


@dataclass(frozen=True)
class Source:
    """What was trained: checkpoints, the base model they fit, what they mean, a tokenizer.

    `checkpoints` are prompts by name, None of a base model alone: one, or a multitask prompt's all
    tasks, which differ in their virtual tokens alone. The first is the default.
    """

    checkpoints: Mapping[str | None, Checkpoint]
    base: BaseModel
    meaning: Meaning
    tokenizer: ChosenTokenizer

    @property
    def checkpoint(self) -> Checkpoint:
        """The default prompt's."""
        return next(iter(self.checkpoints.values()))


@dataclass(frozen=True)
class Frozen:
    """The base model with its weights and trained head, float32, and prompts, evaluated, by name.

    `weights_sha256` is of the weights that are no prompt's.
    """

    source: Source
    model: PreTrainedModel = field(repr=False)
    prompts: Mapping[str | None, Prompt]
    weights_sha256: str


@dataclass(frozen=True)
class Traced:
    """The model as an ONNX graph, what goes in and out of it, what it is limited to; prompts.

    `quantization` is how its weights are stored, and which share of them; `calibration` is what
    activations have fixed scales, where texts were given to find them on.
    """

    source: Source
    prompts: Mapping[str | None, Prompt]
    weights_sha256: str
    graph: ir.Model = field(repr=False)
    route: Route
    signature: Signature
    limits: RequestLimits
    quantization: Quantization | None = None
    calibration: Calibration | None = None
    notes: tuple[str, ...] = ()


def read(plan: Plan, progress: Progress) -> Source:
    """Read all that was trained, and refuse what does not fit together. No weight is loaded."""
    request = plan.request
    with progress.stage("read the checkpoint"):
        checkpoints = _checkpoints(request)
        checkpoint = next(iter(checkpoints.values()))
        _check_kv_buffer(checkpoint.task, plan)
        from ptdeploy.source.meaning import read_meaning
        from ptdeploy.source.tokenizer_choice import choose_tokenizer

        if checkpoint.prefix_kv is not None and not request.freeze_kv:
            raise InputError(
                f"--no-freeze-kv runs virtual tokens, and {checkpoint.kind} has a prefix KV alone.",
                "Leave --no-freeze-kv out.",
            )
        base = resolve_base(checkpoint, request.base)
        meaning = read_meaning(checkpoint, base, request.head)
        tokenizer = choose_tokenizer(checkpoint, base, request.tokenizer)
    for note in base.notes:
        progress.note(note)
    return Source(checkpoints, base, meaning, tokenizer)


def _checkpoints(request: CompileRequest) -> Mapping[str | None, Checkpoint]:
    if request.checkpoint is None:
        assert request.base is not None, "a request without a checkpoint has one"
        return {None: no_prompt(request.base, request.task)}
    how = request.adapter, request.task, request.labels, request.task_id
    return dict(read_named(request.checkpoint, *how, request.prompt_name))


def freeze(plan: Plan, source: Source, progress: Progress) -> Frozen:
    """Load the base model, and evaluate each prompt over it once."""
    from ptdeploy.program.head import PREFIX
    from ptdeploy.program.prompt import freeze as freeze_prompt
    from ptdeploy.program.tracing import unchanged
    from ptdeploy.source.weights_hash import weights_sha256

    checkpoint, base = source.checkpoint, source.base
    with progress.stage(f"load the base model {base.name}"):
        model = load_model(checkpoint, base)
        # Not every weight need come into the graph.
        weights = sum(weight.numel() for weight in model.parameters())
        check_room(plan.destination, weights * plan.weight_bits // 10)
    with progress.stage(freeze_stage(source)):
        kind = base.kind
        with unchanged(model):
            prompts = {
                name: freeze_prompt(one, model, kind.needs_prefix_kv, kind.has_trained_head)
                for name, one in source.checkpoints.items()
            }
        own = {name.removeprefix(PREFIX) for name in next(iter(prompts.values())).head}
        hashed = weights_sha256(model, own)
    return Frozen(source, model, prompts, hashed)


def freeze_stage(source: Source) -> str:
    """The title of evaluating prompts."""
    of = f"{len(source.checkpoints)} prompts of " if len(source.checkpoints) > 1 else ""
    return f"freeze {of}{number_of(source.checkpoint.num_virtual_tokens, 'virtual token')}"


def trace(plan: Plan, frozen: Frozen, progress: Progress) -> Traced:
    """Trace the model with its prompt, and export it to ONNX as its target computes it."""
    from ptdeploy.program.export import to_onnx
    from ptdeploy.program.manifest import limits
    from ptdeploy.program.tracing import unchanged

    request, numerics, source = plan.request, plan.numerics, frozen.source
    checkpoint = source.checkpoint
    with progress.stage("export to ONNX"):
        refuses = partial(plan.target.refuses, plan.device, numerics.activations)
        options = BuildOptions(
            request.freeze_kv,
            numerics.operators,
            refuses,
            partial(plan.target.joins, plan.device, plan.precision),
            numerics.plain,
            request.prompt_kinds == "all",
        )
        # An engine takes any of them.
        prompt = next(iter(frozen.prompts.values()))
        with unchanged(frozen.model):
            program, route = source.base.kind.build(frozen.model, source.base, prompt, options)
        asked = request.max_context
        bounds = limits(source.base, route, checkpoint.num_virtual_tokens, request.max_batch, asked)
        keeps_kv = source.base.kind.keeps_kv_buffer
        bounds = plan.target.limit(bounds, plan.options, keeps_kv, asked)
        signature = program.signature.computed_in(numerics.activations)
        if numerics.fixed_slots and route.route == "fused":
            signature = signature.with_slots(bounds.max_context)
        graph = to_onnx(program, bounds, numerics.opset)
    return Traced(source, frozen.prompts, frozen.weights_sha256, graph, route, signature, bounds)


def optimise(
    plan: Plan,
    traced: Traced,
    progress: Progress,
    look: Callable[[ir.Model], None] = lambda _: None,
) -> Traced:
    """Run every pass over the graph; `look` is shown it before weights are quantized."""
    from ptdeploy.passes import PassContext, run_passes
    from ptdeploy.passes.counted import bytes_of_constants, count_weights, notes_on

    numerics, calibration = plan.numerics, traced.calibration
    with progress.stage("optimise the graph"):
        context = PassContext(
            traced.signature,
            plan.quantization,
            numerics.activations,
            numerics.custom_operators,
            numerics.weights,
            numerics.quantizes_embeddings and traced.source.base.kind.quantizes_embeddings,
            traced.limits.max_context if numerics.turns else 0,
            calibration.scales if calibration else (),
        )
        graph = run_passes(traced.graph, context, look)
    check_room(plan.destination, bytes_of_constants(graph))
    if plan.quantization is None:
        return replace(traced, graph=graph)
    counted = count_weights(graph, plan.quantization)
    found = msgspec.structs.replace(
        plan.quantization,
        share=round(counted.share, 4),
        calibrated=round(calibration.share, 4) if calibration else 0.0,
    )
    notes = notes_on(counted, traced.source.base.config.model_type, plan.precision)
    return replace(traced, graph=graph, quantization=found, notes=(*traced.notes, *notes))


def build(plan: Plan, traced: Traced, folder: Path, progress: Progress) -> Draft:
    """Build the engine, and put it into `folder` with its prompts and its tokenizer."""
    from ptdeploy.parity.reference.texts import save_text_files, text_program_files
    from ptdeploy.program.manifest import build_manifest
    from ptdeploy.program.prompt import own_sizes

    request, source = plan.request, traced.source
    tokenizer = source.tokenizer
    with progress.stage(f"build the {request.target} engine"):
        built = plan.target.build(
            BuildRequest(
                traced.graph,
                traced.signature,
                traced.limits,
                plan.device,
                plan.precision,
                folder,
                plan.options,
                traced.quantization,
                own_sizes(traced.signature, traced.prompts.values()),
            )
        )
        files: tuple[FileEntry, ...] = built.files
        files += save_prompts(traced.prompts, folder)
        if tokenizer.tokenizer is not None:
            files += save_text_files(tokenizer.tokenizer, folder)
    if request.cpp_tokenizer:
        with progress.stage("write the tokenizer's program"):
            files += text_program_files(folder, tokenizer.info, traced.limits.type_vocab_size)
    manifest = build_manifest(
        checkpoints=source.checkpoints,
        base=source.base,
        prompts=traced.prompts,
        weights_sha256=traced.weights_sha256,
        signature=traced.signature,
        meaning=source.meaning,
        target=request.target,
        device=plan.device,
        precision=plan.precision,
        route=traced.route,
        quantization=traced.quantization,
        freeze_kv=request.freeze_kv,
        limits=traced.limits,
        tokenizer=tokenizer.info,
        files=files,
    )
    notes = (*source.meaning.notes, *traced.notes, *built.notes, *tokenizer.notes)
    return Draft(folder, manifest, built.working, notes, told=source.base.notes)


def save_prompts(prompts: Mapping[str | None, Prompt], folder: Path) -> tuple[FileEntry, ...]:
    """Put prompts into the staging folder, each into its own place; the base alone has none."""
    from ptdeploy.program.prompt import save_prompt

    return tuple(
        staged_of_prompt(name, save_prompt(prompt, prompt_place(folder, name)), "prompt")
        for name, prompt in prompts.items()
        if name is not None
    )


def refer(plan: Plan, source: Source, draft: Draft, progress: Progress) -> Draft:
    """Compute what PEFT on PyTorch gives, each row alone, and put some of it into the bundle."""
    return compute_rows(source, draft, plan.request.golden, plan.texts, progress)


def compute_rows(
    source: Source,
    draft: Draft,
    golden: int | None,
    texts: tuple[str, ...] | None,
    progress: Progress,
) -> Draft:
    """The draft with the references of its prompts, of each of which `golden` rows are stored.

    `texts` are what a quantized engine is evaluated on, None for our own.
    """
    for name in source.checkpoints:
        draft = _computed_rows(source, name, draft, golden, texts, progress)
        # Each has loaded a model of its own.
        gc.collect()
    return draft


def _computed_rows(
    source: Source,
    name: str | None,
    draft: Draft,
    golden: int | None,
    texts: tuple[str, ...] | None,
    progress: Progress,
) -> Draft:
    """The draft with the reference of one of its prompts, or of the base model alone."""
    from ptdeploy.parity.cases import compared_rows, comparison
    from ptdeploy.parity.reference.peft import compute_reference
    from ptdeploy.parity.reference.store import save_reference
    from ptdeploy.parity.reference.texts import evaluation_text, reference_texts, with_texts

    checkpoint, chosen = source.checkpoints[name], source.tokenizer
    bundle = draft.opened().by_default(name)
    bounds = bundle.manifest.request_limits
    of = in_stages(name, draft.manifest)
    with progress.stage(f"{reference_stage(checkpoint.of_peft)}{of}"):
        evaluation = None
        if draft.manifest.quantization is not None:
            evaluation = evaluation_text(chosen.tokenizer, bounds, texts, checkpoint.task)
        own, padding = reference_texts(chosen.tokenizer, bounds), bundle.manifest.prompt.padding_id
        rows = compared_rows(bounds, own, golden, padding)
        held_as = get_backend(draft.manifest.target).held_as(bundle)
        asked = comparison(rows, bundle.manifest, held_as)
        computed = compute_reference(
            checkpoint, source.base, bounds, asked, evaluation, progress=progress
        )
        reference = with_texts(computed, chosen, checkpoint.task)
        stored = reference.first(golden, bounds.max_batch)
        saved = save_reference(stored, prompt_place(draft.folder, name))
        entry = staged_of_prompt(name, saved, "reference")
    files = (*draft.manifest.files, entry)
    manifest = msgspec.structs.replace(draft.manifest, files=files)
    return replace(draft, manifest=manifest, references={**draft.references, name: reference})


def _check_kv_buffer(task: Task, plan: Plan) -> None:
    """Whether an engine keeps a KV buffer is what its task needs, and the target can do.

    Raises TargetUnavailable if the target's engines keep none, InputError if the user asks for one
    that the task's do not keep.
    """
    request = plan.request
    if kind_of(task).keeps_kv_buffer:
        if problem := plan.target.no_kv_buffer(plan.device):
            raise TargetUnavailable(*problem)
        return
    for option, given in (
        ("--no-freeze-kv", not request.freeze_kv),
        ("--max-batch", request.max_batch is not None),
        ("--max-context", request.max_context is not None),
    ):
        if given:
            raise InputError(
                f"{option} is about a KV buffer, and a {task.value} model keeps none.",
                f"Leave {option} out.",
            )
