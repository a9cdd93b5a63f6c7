"""prompt_add() and its like: the prompts of a bundle that is there, put in and taken out.

The bundle is the old one or the new one at every instant: a folder takes another's place, with the
engine's files in both. An engine that is running keeps the files it opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec

from ptdeploy import arguments
from ptdeploy.arguments import checked, having, instance
from ptdeploy.backends import get_backend
from ptdeploy.bundle import (
    MAX_MANIFEST_BYTES,
    Bundle,
    FileEntry,
    Pack,
    PromptInfo,
    check_destination,
    is_bundle,
    locked,
    manifest_format,
    prompt_folder,
    publish,
    read_bundle,
    read_pack,
    stage_bundle,
    staged,
)
from ptdeploy.bundle.contents import COMPLETED
from ptdeploy.bundle.publish import Destination
from ptdeploy.bundle.schema import FORMAT
from ptdeploy.bundle.whose import OF_PROMPT, in_words
from ptdeploy.commands.draft import Draft, prompt_place, prove, staged_of_prompt, told
from ptdeploy.commands.over import alone, check_base, check_free, check_leaves_room, draft_over
from ptdeploy.commands.request import PromptAddRequest, PromptChange
from ptdeploy.errors import BundleError, InputError
from ptdeploy.files import json_document
from ptdeploy.parity.cases import check_golden
from ptdeploy.parity.completed import read_completed
from ptdeploy.parity.reference import Reference
from ptdeploy.parity.reference.store import load_reference, referred, save_reference
from ptdeploy.parity.reports import report_json
from ptdeploy.parity.thresholds import thresholds_for
from ptdeploy.progress import Progress
from ptdeploy.runtime import ENGINES
from ptdeploy.runtime.layout import check_manifest
from ptdeploy.runtime.prompt_store import PromptPlace
from ptdeploy.runtime.prompts import check_prefix

_OF_ITS_BASE = "Add it to a bundle of the base model that it was trained on."


@checked(request=instance(PromptAddRequest), progress=having("stage", "note", "within"))
def add_prompt(request: PromptAddRequest, progress: Progress) -> Bundle:
    """See ptdeploy.prompt_add."""
    check_golden(request.golden)
    path = Path(request.bundle)
    with locked(path):
        with progress.stage("check the bundle's files"):
            # Of the prompts that are there no byte is read: their files go over as they are.
            bundle = read_bundle(path, prompts=())
        destination = _in_place(bundle)
        with stage_bundle(destination) as folder:
            draft = prove(_draft(bundle, request, folder, progress), progress)
            prompts = {**bundle.manifest.prompts, **draft.manifest.prompts}
            with progress.stage("write the bundle"):
                added, default = draft.manifest.files, bundle.manifest.default_prompt
                done = _put(bundle, destination, folder, prompts, default, added)
    return replace(done, notes=told(draft, done.notes, progress))


@checked(request=instance(PromptChange))
def remove_prompt(request: PromptChange) -> Bundle:
    """See ptdeploy.prompt_remove."""
    name = arguments.text("name", request.name)
    with locked(Path(request.bundle)):
        bundle = read_bundle(request.bundle, hashes=False)
        prompts = dict(bundle.manifest.prompts)
        _check_there(bundle, name)
        if name == bundle.manifest.default_prompt:
            raise InputError(
                f"{bundle.path}: {name!r} is its default prompt.", _another_default(bundle)
            )
        del prompts[name]
        return _rewritten(bundle, prompts, bundle.manifest.default_prompt)


@checked(request=instance(PromptChange))
def set_default_prompt(request: PromptChange) -> Bundle:
    """See ptdeploy.prompt_default."""
    with locked(Path(request.bundle)):
        bundle = read_bundle(request.bundle, hashes=False)
        if request.name is None:
            if refused := _no_base_alone(bundle):
                raise refused
        else:
            _check_there(bundle, request.name)
            # A damaged one would leave a bundle that cannot be opened.
            PromptPlace(bundle.path, bundle.manifest, request.name, bundle.held).read()
        return _rewritten(bundle, bundle.manifest.prompts, request.name)


@checked(bundle=arguments.path)
def list_prompts(bundle: str | Path) -> dict[str, PromptInfo]:
    """See ptdeploy.prompt_list."""
    return dict(read_bundle(bundle, hashes=False).manifest.prompts)


def _draft(bundle: Bundle, request: PromptAddRequest, folder: Path, progress: Progress) -> Draft:
    """The prompt beside the bundle's engine, not yet proven."""
    left = f"{bundle.path} is as it was"
    if not is_bundle(Path(request.prompt)):
        over = request.of_checkpoint()
        return draft_over(bundle, over, folder, progress, left, request.replace)
    if manifest_format(Path(request.prompt)) == FORMAT:
        raise InputError(
            f"{request.prompt}: is a bundle, and a prompt is added from a pack or a checkpoint.",
            "Give the checkpoint that the prompt was compiled from, or a pack of it: ptdeploy "
            "compile CHECKPOINT --over BUNDLE -o PACK",
        )
    request.refuse_of_checkpoint()
    with progress.stage("check the pack's files"):
        pack = read_pack(request.prompt)
    return _of_pack(bundle, pack, request, folder, left)


def _of_pack(
    bundle: Bundle, pack: Pack, request: PromptAddRequest, folder: Path, left: str
) -> Draft:
    found, manifest = pack.manifest, bundle.manifest
    if found.task != manifest.task:
        raise InputError(
            f"{pack.path}: is a prompt for {found.task.value}, and the engine of {bundle.path} is "
            f"for {manifest.task.value}.",
            f"Add it to a bundle for {found.task.value}.",
        )
    if found.precision != manifest.precision:
        raise InputError(
            f"{pack.path}: was proven over an engine in {found.precision}, and that of "
            f"{bundle.path} is in {manifest.precision}.",
            "Compile its checkpoint over this bundle: ptdeploy compile CHECKPOINT --over BUNDLE",
        )
    check_base(bundle, pack.path, found.base, _OF_ITS_BASE)
    if found.prompt.num_virtual_tokens <= arguments.MOST:  # else the pack is damaged: see below
        check_leaves_room(bundle, pack.path, found.prompt.num_virtual_tokens)
    check_prefix(pack.path, found.prompt, manifest.prompts.values())
    name = request.name or pack.name
    check_free(bundle, [name], request.replace)
    info = msgspec.structs.replace(
        found.prompt, labels=_labels(found.prompt, request), parity=None, graph_parity=None
    )
    placed = pack.over(manifest, name)
    check_manifest(placed, ENGINES[manifest.task].manifest_problems(placed.manifest))
    reference = _held_as_here(load_reference(placed, cut=True), bundle, info)
    (entry,) = (one for one in placed.manifest.files if one.role == "prompt")
    path = f"{prompt_folder(name)}/prompt.safetensors"
    placed.copy(entry, folder / path)
    saved = save_reference(reference, prompt_place(folder, name))
    files = [
        msgspec.structs.replace(entry, path=path),
        staged_of_prompt(name, saved, "reference"),
    ]
    draft = alone(bundle, {name: info}, files, folder)
    return replace(draft, refused=left, references={name: reference})


def _held_as_here(reference: Reference, bundle: Bundle, prompt: PromptInfo) -> Reference:
    """A pack's reference with the thresholds of the bundle's engine.

    Its own are of the engine that it was proven over, and are not believed.
    """
    manifest = bundle.manifest
    held_as = get_backend(manifest.target).held_as(bundle)
    thresholds = thresholds_for(held_as, manifest.quantization, prompt.head)
    return replace(reference, thresholds=thresholds)


def _labels(prompt: PromptInfo, request: PromptAddRequest) -> tuple[str, ...]:
    if request.labels is None:
        return prompt.labels
    from ptdeploy.source.checkpoint.labels import read_labels

    labels = read_labels(request.labels)
    if len(labels) != len(prompt.labels):
        raise InputError(
            f"--labels names {len(labels)} classes, but the head has {len(prompt.labels)}."
        )
    return labels


def _check_there(bundle: Bundle, name: str) -> None:
    prompts = bundle.manifest.prompts
    if name not in prompts:
        raise InputError(f"{bundle.path}: has no prompt {name!r}; there is {in_words(prompts)}.")


def _another_default(bundle: Bundle) -> str:
    """How to have another default, so that the one that there is may be removed."""
    others, command = len(bundle.manifest.prompts) > 1, "ptdeploy prompt default BUNDLE"
    if _no_base_alone(bundle) is None:
        also = "another one the default first, or with --none the base model alone"
        only = f"the base model alone the default first: {command} --none"
        return f"Make {also}: {command} NAME" if others else f"Make {only}"
    if others:
        return f"Make another one the default first: {command} NAME"
    return (
        "It is the only one. Add another first, ptdeploy prompt add BUNDLE PROMPT, and make that "
        f"the default: {command} NAME"
    )


def _no_base_alone(bundle: Bundle) -> InputError | None:
    """Why the base model alone cannot be the default, if it cannot."""
    if not ENGINES[bundle.manifest.task].takes_base:
        return InputError(
            f"{bundle.path}: a classifier has no base model alone: its head belongs to a prompt.",
            f"Name a prompt: there is {in_words(bundle.manifest.prompts)}.",
        )
    if None in referred(bundle):
        return None
    # A few rows at most show how the engine does without a prompt.
    return InputError(
        f"{bundle.path}: the base model alone was not proven over its engine in all cases: it was "
        "compiled with a prompt.",
        "Compile the base model alone, without a checkpoint, and add the prompts to that. A "
        "request can be without a prompt all the same: ptdeploy run --no-prompt",
    )


def _in_place(bundle: Bundle) -> Destination:
    """Where the bundle is, what a link leads to; and nothing but the very bundle that was read."""
    return check_destination(bundle.path.resolve(), True, bundle.manifest_bytes(), chosen=False)


def _rewritten(bundle: Bundle, prompts: Mapping[str, PromptInfo], default: str | None) -> Bundle:
    """The bundle with some of its own prompts, put into its own place."""
    destination = _in_place(bundle)
    with stage_bundle(destination) as folder:
        return _put(bundle, destination, folder, prompts, default)


def _put(
    bundle: Bundle,
    destination: Destination,
    folder: Path,
    prompts: Mapping[str, PromptInfo],
    default: str | None,
    added: tuple[FileEntry, ...] = (),
) -> Bundle:
    """Publish the bundle with these prompts. `added` files are staged already, of one of them."""
    old = bundle.manifest
    ours = {entry.of for entry in added}
    kept = [
        entry
        for entry in old.files
        if entry.role not in OF_PROMPT or (entry.of in (None, *prompts) and entry.of not in ours)
    ]
    for entry in kept:
        if not (folder / entry.path).exists():
            bundle.link(entry, folder / entry.path)
    _keep_completed(bundle, folder, {*ours, *(set(old.prompts) - set(prompts))})
    # In one order, whatever came first.
    files = sorted((*kept, *added), key=lambda entry: (entry.role in OF_PROMPT, entry.of or ""))
    manifest = msgspec.structs.replace(
        old,
        prompts=dict(sorted(prompts.items())),
        default_prompt=default,
        files=tuple(files),
    )
    if len(json_document(manifest)) > MAX_MANIFEST_BYTES:
        raise InputError(
            f"{bundle.path}: has no room for another prompt: its manifest would be larger than "
            f"{MAX_MANIFEST_BYTES} bytes.",
            "Start another bundle of the same engine.",
        )
    done = publish(folder, manifest, destination)
    # As it was given, but from inside: that leads nowhere now.
    return done if destination.notes else replace(done, path=bundle.path)


def _keep_completed(bundle: Bundle, folder: Path, changed: set[str | None]) -> None:
    """Keep what verify left beside the manifest, but of prompts that are new, others or gone."""
    assert bundle.held is not None, "it was read"
    try:
        bundle.held.look(COMPLETED)
    except OSError:
        return
    try:
        report = read_completed(bundle)
    except BundleError:  # which inspect tells, now as before
        report = None
    every = () if report is None else report.each()
    kept = [one for one in every if one.prompt not in changed]
    if len(kept) == len(every):
        bundle.link(staged(COMPLETED, "parity"), folder / COMPLETED)
    elif kept:
        passed = all(one.passed for one in kept)
        left = msgspec.structs.replace(kept[0], passed=passed, prompts=tuple(kept[1:]))
        (folder / COMPLETED).write_bytes(report_json(left))
