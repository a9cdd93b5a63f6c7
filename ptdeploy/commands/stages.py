"""The stages of compile between its plan and its proof: each takes one dataclass and gives one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ptdeploy.backends import get_backend
from ptdeploy.bundle import FileEntry, RequestLimits, Route, check_room
from ptdeploy.bundle.signature import Signature
from ptdeploy.bundle.task import Task
from ptdeploy.commands.draft import Draft, prompt_place, staged_of_prompt
from ptdeploy.commands.plan import Plan
from ptdeploy.commands.request import CompileRequest
from ptdeploy.errors import InputError, TargetUnavailable
from ptdeploy.program.kinds import BuildOptions, kind_of
from ptdeploy.progress import Progress, reference_stage
from ptdeploy.source.base import BaseModel, resolve_base
from ptdeploy.source.base_weights import load_model
from ptdeploy.source.checkpoint import Checkpoint, read_checkpoint
from ptdeploy.source.checkpoint.no_prompt import no_prompt
from ptdeploy.targets import BuildRequest

if TYPE_CHECKING:
    import onnx_ir as ir
    from transformers import PreTrainedModel

    from ptdeploy.program.prompt import Prompt
    from ptdeploy.source.meaning import Meaning
    from ptdeploy.source.tokenizer_choice import ChosenTokenizer


@dataclass(frozen=True)
class Source:
    """What was trained: the checkpoint, the base model it fits, what they mean, a tokenizer."""

    checkpoint: Checkpoint
    base: BaseModel
    meaning: Meaning
    tokenizer: ChosenTokenizer


@dataclass(frozen=True)
class Frozen:
    """The base model with its weights and trained head, float32, and the prompt, evaluated.

    `weights_sha256` is of the weights that are no prompt's.
    """

    source: Source
    model: PreTrainedModel = field(repr=False)
    prompt: Prompt
    weights_sha256: str


@dataclass(frozen=True)
class Traced:
    """Model and prompt as an ONNX graph, what goes in and out of it, and what it is limited to."""

    source: Source
    prompt: Prompt
    weights_sha256: str
    graph: ir.Model = field(repr=False)
    route: Route
    signature: Signature
    limits: RequestLimits


def read(plan: Plan, progress: Progress) -> Source:
    """Read all that was trained, and refuse what does not fit together. No weight is loaded."""
    request = plan.request
    with progress.stage("read the checkpoint"):
        checkpoint = _checkpoint(request)
        _check_kv_buffer(checkpoint.task, plan)
        from ptdeploy.source.meaning import read_meaning
        from ptdeploy.source.tokenizer_choice import choose_tokenizer

        if checkpoint.prefix_kv is not None and not request.freeze_kv:
            raise InputError(
                f"--no-freeze-kv runs virtual tokens, and {checkpoint.kind} has a prefix KV alone."
            )
        base = resolve_base(checkpoint, request.base)
        meaning = read_meaning(checkpoint, base, request.head)
        tokenizer = choose_tokenizer(checkpoint, base, request.tokenizer)
    for note in base.notes:
        progress.note(note)
    return Source(checkpoint, base, meaning, tokenizer)


def _checkpoint(request: CompileRequest) -> Checkpoint:
    if request.checkpoint is not None:
        return read_checkpoint(
            request.checkpoint, request.adapter, request.task, request.labels, request.task_id
        )
    assert request.base is not None, "a request without a checkpoint has one"
    return no_prompt(request.base, request.task)


def freeze(plan: Plan, source: Source, progress: Progress) -> Frozen:
    """Load the base model, and evaluate the prompt encoder over it once."""
    from ptdeploy.program.head import PREFIX
    from ptdeploy.program.prompt import freeze as freeze_prompt
    from ptdeploy.source.weights_hash import weights_sha256

    checkpoint, base = source.checkpoint, source.base
    with progress.stage(f"load the base model {base.name}"):
        model = load_model(checkpoint, base)
        # Not every weight need come into the graph.
        weights = sum(weight.numel() for weight in model.parameters())
        check_room(plan.destination, weights * plan.weight_bits // 10)
    with progress.stage(f"freeze {checkpoint.num_virtual_tokens} virtual tokens"):
        kind = base.kind
        prompt = freeze_prompt(checkpoint, model, kind.needs_prefix_kv, kind.has_trained_head)
        own = {name.removeprefix(PREFIX) for name in prompt.head}
        hashed = weights_sha256(model, own)
    return Frozen(source, model, prompt, hashed)


def trace(plan: Plan, frozen: Frozen, progress: Progress) -> Traced:
    """Trace the model with its prompt, and export it to ONNX as its target computes it."""
    from ptdeploy.program.export import to_onnx
    from ptdeploy.program.manifest import limits

    request, numerics, source = plan.request, plan.numerics, frozen.source
    checkpoint = source.checkpoint
    with progress.stage("export to ONNX"):
        refuses = partial(plan.target.refuses, plan.device, numerics.activations)
        options = BuildOptions(request.freeze_kv, numerics.operators, refuses, numerics.plain)
        program, route = source.base.kind.build(frozen.model, source.base, frozen.prompt, options)
        asked = request.max_context
        bounds = limits(source.base, route, checkpoint.num_virtual_tokens, request.max_batch, asked)
        keeps_kv = source.base.kind.keeps_kv_buffer
        bounds = plan.target.limit(bounds, plan.options, keeps_kv, asked)
        signature = program.signature.computed_in(numerics.activations)
        if numerics.fixed_slots and route.route == "fused":
            signature = signature.with_slots(bounds.max_context)
        graph = to_onnx(program, numerics.opset)
    return Traced(source, frozen.prompt, frozen.weights_sha256, graph, route, signature, bounds)


def optimise(plan: Plan, traced: Traced, progress: Progress) -> Traced:
    """Run every pass over the graph."""
    from ptdeploy.passes import PassContext, run_passes

    numerics = plan.numerics
    with progress.stage("optimise the graph"):
        context = PassContext(
            traced.signature,
            plan.quantization,
            numerics.activations,
            numerics.custom_operators,
            numerics.weights,
            numerics.quantizes_embeddings,
        )
        return replace(traced, graph=run_passes(traced.graph, context))


def build(plan: Plan, traced: Traced, folder: Path, progress: Progress) -> Draft:
    """Build the engine, and put it into `folder` with its prompt and its tokenizer."""
    from ptdeploy.parity.reference.texts import save_text_files
    from ptdeploy.program.manifest import build_manifest
    from ptdeploy.program.prompt import save_prompt

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
                plan.quantization,
            )
        )
        files: tuple[FileEntry, ...] = built.files
        name = request.prompt_name
        if name is not None:
            saved = save_prompt(traced.prompt, prompt_place(folder, name))
            files += (staged_of_prompt(name, saved, "prompt"),)
        if tokenizer.tokenizer is not None:
            files += save_text_files(tokenizer.tokenizer, folder)
    manifest = build_manifest(
        name=name,
        checkpoint=source.checkpoint,
        base=source.base,
        prompt=traced.prompt,
        weights_sha256=traced.weights_sha256,
        signature=traced.signature,
        meaning=source.meaning,
        target=request.target,
        device=plan.device,
        precision=plan.precision,
        route=traced.route,
        quantization=plan.quantization,
        freeze_kv=request.freeze_kv,
        limits=traced.limits,
        tokenizer=tokenizer.info,
        files=files,
    )
    notes = (*source.meaning.notes, *built.notes, *tokenizer.notes)
    return Draft(folder, manifest, built.working, notes, told=source.base.notes)


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
    """The draft with the reference of its default prompt, of which `golden` rows are stored.

    `texts` are what a quantized engine is evaluated on, None for our own.
    """
    from ptdeploy.parity.cases import compared_rows, comparison
    from ptdeploy.parity.reference.peft import compute_reference
    from ptdeploy.parity.reference.store import save_reference
    from ptdeploy.parity.reference.texts import evaluation_text, reference_texts, with_texts

    checkpoint, chosen = source.checkpoint, source.tokenizer
    bounds, name = draft.manifest.request_limits, draft.manifest.default_prompt
    with progress.stage(reference_stage(checkpoint.of_peft)):
        evaluation = None
        if draft.manifest.quantization is not None:
            evaluation = evaluation_text(chosen.tokenizer, bounds, texts, checkpoint.task)
        rows = compared_rows(bounds, reference_texts(chosen.tokenizer, bounds), golden)
        held_as = get_backend(draft.manifest.target).held_as(draft.opened())
        asked = comparison(rows, draft.manifest, held_as)
        computed = compute_reference(checkpoint, source.base, bounds, asked, evaluation)
        reference = with_texts(computed, chosen, checkpoint.task)
        stored = reference.first(golden, bounds.max_batch)
        saved = save_reference(stored, prompt_place(draft.folder, name))
        entry = staged_of_prompt(name, saved, "reference")
    files = (*draft.manifest.files, entry)
    manifest = msgspec.structs.replace(draft.manifest, files=files)
    return replace(draft, manifest=manifest, references={name: reference})


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
            raise InputError(f"{option} is about a KV buffer, and a {task.value} model keeps none.")
