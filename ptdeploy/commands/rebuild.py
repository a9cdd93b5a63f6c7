"""rebuild(): a bundle's engine made anew from its own ONNX, for this machine and its versions."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ptdeploy.arguments import checked, flag, having, maybe, path, text
from ptdeploy.bundle import Bundle, check_destination, publish, read_bundle, stage_bundle, staged
from ptdeploy.errors import InputError, ParityError, TargetUnavailable
from ptdeploy.parity.compare import compare
from ptdeploy.parity.reference.store import load_reference
from ptdeploy.parity.reports import report_json
from ptdeploy.progress import PENDING, Progress
from ptdeploy.runtime import open_engine
from ptdeploy.targets import get_target


@checked(
    path=path,
    output=maybe(path),
    flavor=maybe(text),
    force=flag,
    progress=having("stage", "note"),
)
def rebuild_bundle(
    path: str | Path,
    *,
    output: str | Path | None = None,
    flavor: str | None = None,
    force: bool = False,
    progress: Progress,
) -> Bundle:
    """See ptdeploy.rebuild."""
    with progress.stage("check the bundle's files"):
        bundle = read_bundle(path)
    manifest = bundle.manifest
    target = get_target(manifest.target)
    if not target.STAND_IN:
        raise InputError(
            f"{path}: an engine of {manifest.target} is its graph: nothing to rebuild."
        )
    if bundle.file("model") is None:
        raise InputError(
            f"{path}: holds no ONNX to build from.",
            "Compile the checkpoint here, or compile it with --keep-onnx.",
        )
    # In place, what a link leads to; and nothing but the very bundle that was read.
    destination = (
        check_destination(Path(output), force)
        if output
        else check_destination(bundle.path.resolve(), True, bundle.manifest_bytes())
    )
    reference = load_reference(bundle) if bundle.file("reference") else None
    with stage_bundle(destination) as staging:
        # What was shown of the engine before says nothing of this one.
        files = tuple(entry for entry in manifest.files if entry.role != "parity")
        for entry in files:
            (staging / entry.path).parent.mkdir(parents=True, exist_ok=True)
            bundle.copy(entry, staging / entry.path)
        copied = Bundle(staging, manifest)
        with progress.stage(f"build the {manifest.target} engine"):
            notes = target.rebuild(copied, flavor)
        made = ("engine", "engine_info")
        files = tuple(staged(one.path, one.role) if one.role in made else one for one in files)
        manifest = msgspec.structs.replace(manifest, parity=None, files=files)
        engine = None
        if target.unavailable(manifest.device) is None:
            try:
                engine = open_engine(Bundle(staging, manifest))
            except TargetUnavailable as error:
                # Built for another GPU than the one that is here.
                notes = (*notes, f"the engine cannot run here: {error.problem}")
        if engine is not None and reference is not None:
            with progress.stage("check parity"):
                report = compare(engine, reference)
            if not report.passed:
                raise ParityError(
                    f"The rebuilt engine departs from {report.reference}; {destination.path} is "
                    "as it was.\n  " + "\n  ".join(report.failures()[:8])
                )
            (staging / "parity.json").write_bytes(report_json(report))
            manifest = msgspec.structs.replace(
                manifest, parity=report.summary(), files=(*files, staged("parity.json", "parity"))
            )
        with progress.stage("write the bundle"):
            rebuilt = publish(staging, manifest, destination)
    for note in notes:
        progress.note(note)
    if manifest.parity is None:
        progress.note(PENDING)
    return rebuilt
