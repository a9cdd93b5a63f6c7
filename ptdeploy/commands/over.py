"""A checkpoint's prompt over an engine that is there: compile's line without export and build."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ptdeploy.arguments import checked, having, instance
from ptdeploy.bundle import (
    PACK,
    BaseInfo,
    Bundle,
    FileEntry,
    Manifest,
    Pack,
    PackManifest,
    PromptInfo,
    check_destination,
    engine_sha256,
    prompt_folder,
    publish_pack,
    read_bundle,
    stage_bundle,
)
from ptdeploy.bundle.whose import OF_PROMPT
from ptdeploy.commands.draft import Draft, prove, remove_working, told
from ptdeploy.commands.request import OverRequest
from ptdeploy.commands.stages import Source, compute_rows, freeze_stage, save_prompts
from ptdeploy.commands.tasks import is_all, read_named
from ptdeploy.errors import BaseModelError, CheckpointError, InputError
from ptdeploy.parity.cases import check_golden
from ptdeploy.printable import shell_word
from ptdeploy.progress import PENDING_PACK, Progress
from ptdeploy.source.base import resolve_base
from ptdeploy.source.base_weights import load_model
from ptdeploy.source.checkpoint import Checkpoint
from ptdeploy.source.tokenizer_place import NONE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from ptdeploy.program.prompt import Prompt
    from ptdeploy.source.base import BaseModel

_OWN_BUNDLE = "Compile it to a bundle of its own: ptdeploy compile CHECKPOINT --target TARGET"
_OTHER_BASE = (
    "Pass the base model that both were trained on with --base, or compile it to a bundle of its "
    "own."
)
_OTHER_KIND = (
    f"{_OWN_BUNDLE}\nOr compile the bundle again to take both kinds, if it is an encoder's: "
    "--prompt-kinds all"
)


@checked(request=instance(OverRequest), progress=having("stage", "note", "within"))
def compile_over(request: OverRequest, progress: Progress) -> Pack:
    """See ptdeploy.compile_prompt."""
    check_golden(request.golden)
    if is_all(request.task_id):
        raise InputError(
            "--task-id all: a pack is one prompt.",
            "Put all of them into the bundle: "
            f"ptdeploy prompt add {shell_word(request.over)} {shell_word(request.checkpoint)} "
            "--task-id all",
        )
    destination = check_destination(request.place, request.force, kind=PACK)
    with progress.stage("check the bundle's files"):
        bundle = read_bundle(request.over, prompts=())
    with stage_bundle(destination) as folder:
        draft = draft_over(bundle, request, folder, progress, "no pack was written")
        draft = prove(draft, progress)
        remove_working(draft)
        manifest = _pack_manifest(draft, bundle)
        with progress.stage("write the pack"):
            pack = publish_pack(folder, manifest, destination)
    return replace(pack, notes=told(draft, pack.notes, progress, PENDING_PACK))


def draft_over(
    bundle: Bundle,
    request: OverRequest,
    folder: Path,
    progress: Progress,
    refused: str,
    replaces: bool = True,
) -> Draft:
    """The prompt in `folder` with its reference, the bundle's engine beside it as working files;
    where all tasks of a checkpoint are asked for, each one's. `replaces` says whether the bundle
    may have prompts of their names.

    Raises CheckpointError, BaseModelError or InputError where it does not fit the engine.
    """
    source = _read(bundle, request, progress, replaces)
    prompts = _freeze(bundle, source, progress)
    infos = {
        name: _info(bundle.manifest, source, name, one)
        for name, one in prompts.items()
        if name is not None
    }
    draft = alone(bundle, infos, save_prompts(prompts, folder), folder)
    # Generation's notes are about the base, whose bundle has been made.
    notes = () if source.meaning.generation else source.meaning.notes
    draft = replace(draft, notes=notes, told=source.base.notes, refused=refused)
    return compute_rows(source, draft, request.golden, None, progress)


def alone(
    bundle: Bundle, prompts: Mapping[str, PromptInfo], files: Iterable[FileEntry], folder: Path
) -> Draft:
    """A draft of the bundle with these prompts and no other: its engine lies in `folder` too."""
    others = tuple(one for one in bundle.manifest.files if one.role not in OF_PROMPT)
    for entry in others:
        bundle.link(entry, folder / entry.path)
    manifest = msgspec.structs.replace(
        bundle.manifest,
        prompts=dict(prompts),
        default_prompt=next(iter(prompts)),
        files=tuple(files),
    )
    return Draft(folder, manifest, others)


def check_free(bundle: Bundle, names: Iterable[str | None], replaces: bool) -> None:
    """Raises InputError if the bundle has a prompt of such a name, and that may not be replaced."""
    taken = [name for name in names if name in bundle.manifest.prompts]
    if taken and not replaces:
        raise InputError(
            f"{bundle.path}: has a prompt {taken[0]!r} already.",
            "Choose another --name, or replace it with --replace.",
        )


def check_base(bundle: Bundle, where: str | Path, base: BaseInfo, fix: str = _OTHER_BASE) -> None:
    """Raises BaseModelError unless a prompt's base model is the one that the engine was made of."""
    own = bundle.manifest.base
    for found, wanted, what in (
        (base.config_sha256, own.config_sha256, "another configuration"),
        (base.weights_sha256, own.weights_sha256, "other weights"),
    ):
        if found != wanted:
            raise BaseModelError(
                f"{where}: its base model {base.name} has {what} than {own.name}, which the "
                f"engine of {bundle.path} was made of.",
                fix,
            )


def _read(bundle: Bundle, request: OverRequest, progress: Progress, replaces: bool) -> Source:
    """`stages.read` for an engine that is there. No weight is loaded."""
    from ptdeploy.program.manifest import config_sha256
    from ptdeploy.source.meaning import read_meaning
    from ptdeploy.source.tokenizer_choice import ChosenTokenizer, choose_tokenizer

    manifest = bundle.manifest
    with progress.stage("read the checkpoint"):
        how = request.adapter, request.task, request.labels, request.task_id
        checkpoints = read_named(request.checkpoint, *how, request.prompt_name)
        checkpoint = next(iter(checkpoints.values()))
        if checkpoint.task != manifest.task:
            raise CheckpointError(
                f"{request.checkpoint}: was trained for {checkpoint.task.value}, and the engine of "
                f"{bundle.path} is for {manifest.task.value}.",
                _OWN_BUNDLE,
            )
        base = resolve_base(checkpoint, request.base)
        # The weights' hash is known once they are loaded.
        named = msgspec.structs.replace(
            manifest.base, name=base.name, config_sha256=config_sha256(base)
        )
        check_base(bundle, request.checkpoint, named)
        _check_kind(bundle, checkpoint, base)
        meaning = read_meaning(checkpoint, base, request.head)
        tokenizer = ChosenTokenizer()
        if manifest.tokenizer is not None:
            tokenizer = choose_tokenizer(checkpoint, base, request.tokenizer)
        elif request.tokenizer not in (None, NONE):
            raise InputError(
                f"--tokenizer: {bundle.path} takes token ids only.", "Leave --tokenizer out."
            )
    check_free(bundle, checkpoints, replaces)
    for note in base.notes:
        progress.note(note)
    return Source(dict(checkpoints), base, meaning, tokenizer)


def _check_kind(bundle: Bundle, checkpoint: Checkpoint, base: BaseModel) -> None:
    """Raises CheckpointError if the engine has no inputs for such a prompt, or no room for it."""
    roles = {spec.role for spec in bundle.manifest.graph.inputs}
    where, engine = checkpoint.weights_file, f"the engine of {bundle.path}"
    kinds = roles & {"table", "prefix"}
    if checkpoint.prefix_kv is not None and kinds == {"table"}:
        raise CheckpointError(
            f"{where}: holds a prefix KV alone, and {engine} runs virtual tokens.", _OTHER_KIND
        )
    if checkpoint.prefix_kv is None and kinds == {"prefix"} and not base.kind.needs_prefix_kv:
        raise CheckpointError(
            f"{where}: holds virtual tokens, and {engine} takes a prefix KV.", _OTHER_KIND
        )
    check_leaves_room(bundle, where, checkpoint.num_virtual_tokens)


def check_leaves_room(bundle: Bundle, where: str | Path, tokens: int) -> None:
    """Raises CheckpointError if a prompt of so many tokens leaves no room for text."""
    most = bundle.manifest.limits.max_context
    if tokens >= most:
        raise CheckpointError(
            f"{where}: {tokens} virtual tokens leave no room for text in the {most} positions of "
            f"the engine of {bundle.path}.",
            _OWN_BUNDLE,
        )


def _freeze(bundle: Bundle, source: Source, progress: Progress) -> dict[str | None, Prompt]:
    """The prompts, evaluated over the base model, whose weights must be the engine's."""
    from ptdeploy.program.head import PREFIX
    from ptdeploy.program.prompt import freeze
    from ptdeploy.source.weights_hash import weights_sha256

    checkpoint, base = source.checkpoint, source.base
    with progress.stage(f"load the base model {base.name}"):
        model = load_model(checkpoint, base)
    with progress.stage(freeze_stage(source)):
        kind = base.kind
        prompts = {
            name: freeze(one, model, kind.needs_prefix_kv, kind.has_trained_head)
            for name, one in source.checkpoints.items()
        }
        trained = next(iter(prompts.values())).head
        head = _head(bundle, checkpoint, model, trained)
        own = {name.removeprefix(PREFIX) for name in head}
        hashed = msgspec.structs.replace(
            bundle.manifest.base, name=base.name, weights_sha256=weights_sha256(model, own)
        )
        check_base(bundle, checkpoint.path, hashed, _base_fix(checkpoint, own))
    return {name: replace(prompt, head=head) for name, prompt in prompts.items()}


def _base_fix(checkpoint: Checkpoint, head: Collection[str]) -> str:
    """What to do where the weights are not the engine's, of which `head` is no part.

    Either the base model is another one, or the checkpoint brings weights of its own.
    """
    brought = sorted(set(checkpoint.copied) - set(head))
    if not brought:
        return _OTHER_BASE
    shown = ", ".join(brought[:3]) + (f" and {len(brought) - 3} more" if len(brought) > 3 else "")
    return f"The checkpoint brings its own {shown}, which no prompt of an engine has. {_OWN_BUNDLE}"


def _head(
    bundle: Bundle,
    checkpoint: Checkpoint,
    model: PreTrainedModel,
    trained: Mapping[str, NDArray[np.float32]],
) -> dict[str, NDArray[np.float32]]:
    """The head's parameters that the engine takes; of those that were not trained, the base's."""
    from ptdeploy.program.head import PREFIX

    wanted = [spec.name for spec in bundle.manifest.graph.inputs if spec.role == "head"]
    state = model.state_dict()
    beyond = sorted(set(trained) - set(wanted))
    lacking = [name for name in wanted if name.removeprefix(PREFIX) not in state]
    if beyond or lacking:
        name = (beyond or lacking)[0].removeprefix(PREFIX)
        how = "brings a trained" if beyond else "has no"
        takes = ", ".join(one.removeprefix(PREFIX) for one in wanted) or "none"
        raise CheckpointError(
            f"{checkpoint.weights_file}: {how} {name}, and of a head the engine of {bundle.path} "
            f"takes {takes}.",
            _OWN_BUNDLE,
        )
    return {name: state[name.removeprefix(PREFIX)].float().numpy() for name in wanted}


def _info(manifest: Manifest, source: Source, name: str, prompt: Prompt) -> PromptInfo:
    from ptdeploy.program.manifest import prompt_info

    roles = {spec.role for spec in manifest.graph.inputs}
    freeze_kv = "table" not in roles or "prefix" in roles
    return prompt_info(source.checkpoints[name], prompt, source.meaning, freeze_kv)


def _pack_manifest(draft: Draft, bundle: Bundle) -> PackManifest:
    """What the pack is, its files moved to where they lie in it."""
    from ptdeploy.program.manifest import versions

    folder, files = draft.folder, []
    (name,) = draft.manifest.prompts
    for entry in draft.manifest.files:
        file = Path(entry.path).name
        (folder / entry.path).rename(folder / file)
        files.append(msgspec.structs.replace(entry, path=file))
    own = folder / prompt_folder(name)
    own.rmdir()
    own.parent.rmdir()
    manifest = bundle.manifest
    return PackManifest(
        versions=versions(),
        name=name,
        task=manifest.task,
        target=manifest.target,
        device=manifest.device,
        precision=manifest.precision,
        engine_sha256=engine_sha256(manifest),
        base=msgspec.structs.replace(manifest.base, parity=None, graph_parity=None),
        prompt=draft.manifest.prompt,
        files=tuple(files),
    )
