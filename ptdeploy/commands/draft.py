"""The end of the line, for compile and rebuild alike: a bundle in its staging folder, proven equal
to PEFT on PyTorch and only then published."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from ptdeploy.backends import NoKernel, get_backend
from ptdeploy.bundle import Bundle, FileEntry, Manifest, Role, prompt_folder, publish, staged
from ptdeploy.bundle.publish import Destination
from ptdeploy.bundle.whose import in_words
from ptdeploy.commands.plan import runs_here
from ptdeploy.errors import BaseModelError, BundleError, EngineFault, TargetUnavailable
from ptdeploy.parity.base_alone import compare_with_base
from ptdeploy.parity.graph_check import as_graph_check, open_graph_check
from ptdeploy.parity.reference import Reference
from ptdeploy.parity.refusal import Compiled, refuse_mismatch
from ptdeploy.parity.report import ParityReport
from ptdeploy.parity.reports import report_json
from ptdeploy.progress import PENDING, Progress
from ptdeploy.runtime import Engine, open_engine
from ptdeploy.targets import get_target


@dataclass(frozen=True)
class Draft:
    """A bundle that is being made in `folder`.

    `working` files were needed to make the engine and stay out of the bundle. `notes` are for the
    user at the end; the `told` ones were shown before, and those `of_prompts` are each of the
    prompt beside it. `references` are of those prompts that are to be proven, by name; None is the
    base model alone. `refused` says what is left where parity fails.
    """

    folder: Path
    manifest: Manifest
    working: tuple[FileEntry, ...] = ()
    notes: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    of_prompts: tuple[tuple[str | None, str], ...] = ()
    references: Mapping[str | None, Reference] = field(default_factory=dict, repr=False)
    refused: str = "no bundle was written"

    def opened(self) -> Bundle:
        """It as a bundle, its working files included."""
        files = (*self.manifest.files, *self.working)
        return Bundle(self.folder, msgspec.structs.replace(self.manifest, files=files))


def prove(draft: Draft, progress: Progress) -> Draft:
    """Compare what can run here with the references: the engine, and the graph it is built of.

    Raises ParityError if either differs, EngineFault if one fails, TargetUnavailable if neither
    can run here.
    """
    for name, reference in draft.references.items():
        draft = _prove_prompt(draft, name, reference, progress)
    return draft


def _prove_prompt(
    draft: Draft, name: str | None, reference: Reference, progress: Progress
) -> Draft:
    bundle = draft.opened().by_default(name)
    manifest, prompt = bundle.manifest, bundle.manifest.prompt
    target = get_target(manifest.target)
    of = in_stages(name, manifest)
    compiled = Compiled(
        manifest.base.architecture,
        target.numerics(manifest.device, manifest.precision).activations,
        target.precisions(manifest.device),
        draft.refused,
    )
    reports: dict[Role, ParityReport] = {}
    lost: tuple[str, ...] = ()
    if (
        target.graph_check
        and prompt.graph_parity is None
        and bundle.entry("model") is not None
        and runs_here(target.graph_check)
    ):
        with (
            progress.stage(f"check parity of the graph{of}, with {target.graph_check}"),
            open_graph_check(bundle, target.graph_check) as engine,
        ):
            reports["graph_parity"] = compare_with_base(
                engine, as_graph_check(reference, manifest), progress=progress
            )
        refuse_mismatch(reports["graph_parity"], compiled)
    unavailable = get_backend(manifest.target).unavailable(manifest.device)
    if unavailable is not None and not reports and prompt.graph_parity is None:
        raise TargetUnavailable(*unavailable)
    if unavailable is None:
        try:
            with progress.stage(f"check parity{of}"):
                reports["parity"] = compare_with_base(
                    _open(bundle, compiled), reference, progress=progress
                )
        except TargetUnavailable as error:
            # Built for another GPU than the one that is here.
            if not reports and prompt.graph_parity is None:
                raise
            lost = (f"the engine cannot run here: {error.problem}",)
        else:
            refuse_mismatch(reports["parity"], compiled)
    noted = replace(draft, notes=(*draft.notes, *lost))
    return _with_reports(noted, name, reports)


def finish(draft: Draft, destination: Destination, progress: Progress) -> Bundle:
    """Put the bundle into its place, whole, and say what its user should know."""
    remove_working(draft)
    with progress.stage("write the bundle"):
        bundle = publish(draft.folder, draft.manifest, destination)
    return replace(bundle, notes=told(draft, bundle.notes, progress))


def remove_working(draft: Draft) -> None:
    """Remove the working files, and the folders that they leave empty."""
    for entry in draft.working:
        file = draft.folder / entry.path
        file.unlink()
        for parent in file.relative_to(draft.folder).parents[:-1]:
            if any((draft.folder / parent).iterdir()):
                break
            (draft.folder / parent).rmdir()


def told(
    draft: Draft, placed: tuple[str, ...], progress: Progress, pending: str = PENDING
) -> tuple[str, ...]:
    """Say what the user of a draft should know; gives that, behind what was said before.

    `placed` are the notes of putting it into its place, `pending` is what is said where the engine
    cannot run here.
    """
    notes = tuple(dict.fromkeys((*draft.notes, *_notes_of_prompts(draft))))
    manifest = draft.manifest
    if any(one.parity is None for one in (manifest.prompt, *manifest.prompts.values())):
        notes += (pending,)
    notes += placed
    for note in notes:
        progress.note(note)
    return (*draft.told, *notes)


def _notes_of_prompts(draft: Draft) -> Iterator[str]:
    """Each note once; where several prompts were proven, with the names of those it is of."""
    whose: dict[str, list[str | None]] = {}
    for name, note in draft.of_prompts:
        whose.setdefault(note, []).append(name)
    for note, names in whose.items():
        if len(draft.references) == 1:
            yield note
            continue
        named = {name for name in names if name is not None}
        of = [f"of prompt{'s' if len(named) > 1 else ''} {in_words(named)}"] if named else []
        of += ["without a prompt"] if None in names else []
        yield f"{note.removesuffix('.')} ({' and '.join(of)})."


def in_stages(name: str | None, manifest: Manifest) -> str:
    """Which prompt a stage is about, where a bundle has several answers."""
    if len({manifest.default_prompt, name, *manifest.prompts}) > 1:
        return " without a prompt" if name is None else f" of prompt {name!r}"
    return ""


def prompt_place(folder: Path, name: str | None) -> Path:
    """Where a prompt's files lie in the staging folder, or those of the base model alone."""
    place = folder / prompt_folder(name)
    place.mkdir(parents=True, exist_ok=True)
    return place


def staged_of_prompt(name: str | None, file: str, role: Role) -> FileEntry:
    """An entry for one of a prompt's files."""
    return staged(f"{prompt_folder(name)}/{file}", role, name)


def _with_reports(draft: Draft, name: str | None, reports: dict[Role, ParityReport]) -> Draft:
    files, notes = draft.manifest.files, draft.of_prompts
    for role, report in reports.items():
        file = f"{role.replace('_', '-')}.json"
        (prompt_place(draft.folder, name) / file).write_bytes(report_json(report))
        files += (staged_of_prompt(name, file, role),)
        notes += tuple((name, note) for note in report.notes)
    summaries = {role: report.summary() for role, report in reports.items()}
    manifest = draft.manifest.with_prompt(name, **summaries)
    manifest = msgspec.structs.replace(manifest, files=files)
    return replace(draft, manifest=manifest, of_prompts=notes)


def _in_bundle(error: BundleError, bundle: Bundle) -> str:
    """The problem with its files as they are called in the bundle: its folder will be gone."""
    return error.problem.replace(f"{bundle.path}{os.sep}", "")


def _open(bundle: Bundle, compiled: Compiled) -> Engine:
    try:
        return open_engine(bundle)
    except NoKernel as error:
        raise BaseModelError(
            f"{compiled.architecture}: its graph has operators that the target cannot run "
            f"({_in_bundle(error, bundle)}).",
            "Only the architectures in the README's support table are tested.",
        ) from error
    except BundleError as error:
        raise EngineFault(
            f"{compiled.architecture}: the target cannot open the engine that was built of its "
            f"graph ({_in_bundle(error, bundle)}).",
            "Compile for another target or device, or report this with the base model's name.",
        ) from error
