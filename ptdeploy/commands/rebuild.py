"""rebuild(): a bundle's engine made anew from its own ONNX, for this machine and its versions.

It is the tail of compile's line: another draft, the same proof, the same end.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ptdeploy.arguments import checked, having, instance
from ptdeploy.bundle import (
    Bundle,
    check_destination,
    locked,
    read_bundle,
    stage_bundle,
    staged,
)
from ptdeploy.bundle.publish import Destination
from ptdeploy.commands.draft import Draft, finish, prove
from ptdeploy.commands.request import RebuildRequest
from ptdeploy.errors import InputError
from ptdeploy.parity.reference import Reference
from ptdeploy.parity.reference.store import load_reference, referred
from ptdeploy.progress import Progress
from ptdeploy.targets import get_target
from ptdeploy.targets.options import TargetOptions


@dataclass(frozen=True)
class Rebuilding:
    """A bundle whose engine can be built again, and where the new one is to lie.

    `references` are those of its prompts, by name, the default one's first; None is the base
    model alone.
    """

    bundle: Bundle
    destination: Destination
    references: Mapping[str | None, Reference]


@checked(request=instance(RebuildRequest), progress=having("stage", "note", "within"))
def rebuild_bundle(request: RebuildRequest, progress: Progress) -> Bundle:
    """See ptdeploy.rebuild."""
    with locked(Path(request.bundle)) if _in_place(request) else nullcontext():
        old = _read(request, progress)
        with stage_bundle(old.destination) as folder:
            draft = _build(old, request.engine, folder, progress)
            return finish(prove(draft, progress), old.destination, progress)


def _in_place(request: RebuildRequest) -> bool:
    """Whether the bundle itself is what is to be replaced, by its name or by another."""
    if request.output is None:
        return True
    output = Path(request.output)
    return (
        request.force
        and output.exists()
        and not output.is_symlink()
        and output.samefile(request.bundle)
    )


def _read(request: RebuildRequest, progress: Progress) -> Rebuilding:
    with progress.stage("check the bundle's files"):
        bundle = read_bundle(request.bundle)
    target = bundle.manifest.target
    if not get_target(target).graph_check:
        raise InputError(
            f"{request.bundle}: an engine of {target} is its graph: nothing to rebuild.",
            "Compile its checkpoint again: ptdeploy compile CHECKPOINT --target " + target,
        )
    if bundle.file("model") is None:
        raise InputError(
            f"{request.bundle}: holds no ONNX to build from.",
            "Compile the checkpoint here, or compile it with --keep-onnx.",
        )
    # In place, what a link leads to; and nothing but the very bundle that was read.
    destination = (
        check_destination(bundle.path.resolve(), True, bundle.manifest_bytes())
        if _in_place(request)
        else check_destination(Path(request.output or ""), request.force)
    )
    references = {name: load_reference(bundle.by_default(name)) for name in referred(bundle)}
    return Rebuilding(bundle, destination, references)


def _build(old: Rebuilding, asked: TargetOptions | None, folder: Path, progress: Progress) -> Draft:
    """Copy the bundle, and build its engine where the copy lies."""
    manifest = old.bundle.manifest
    # What was shown of the engine before says nothing of this one.
    files = tuple(entry for entry in manifest.files if entry.role != "parity")
    for entry in files:
        old.bundle.copy(entry, folder / entry.path)
    with progress.stage(f"build the {manifest.target} engine"):
        notes = get_target(manifest.target).rebuild(Bundle(folder, manifest), asked)
    made = ("engine", "engine_info")
    files = tuple(staged(e.path, e.role, e.of) if e.role in made else e for e in files)
    prompts = {
        name: msgspec.structs.replace(prompt, parity=None)
        for name, prompt in manifest.prompts.items()
    }
    return Draft(
        folder,
        msgspec.structs.replace(
            manifest.with_prompt(None, parity=None), prompts=prompts, files=files
        ),
        notes=notes,
        references=old.references,
        refused=f"{old.destination.path} is as it was",
    )
