"""verify(): a bundle's files, its engine against a reference, and where it goes wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ptdeploy.bundle import Bundle, read_bundle
from ptdeploy.errors import InputError
from ptdeploy.parity.cases import edge_note
from ptdeploy.parity.compare import ParityReport, compare
from ptdeploy.parity.data import DataRow, read_data
from ptdeploy.parity.reference import Reference, Row
from ptdeploy.parity.stored import stored_reference
from ptdeploy.parity.thresholds import Overrides, read_thresholds
from ptdeploy.progress import REFERENCE_STAGE, Progress
from ptdeploy.runtime import Engine, open_engine

if TYPE_CHECKING:
    from ptdeploy.parity.peft_reference import PeftSource
    from ptdeploy.parity.quality import JudgedText


def verify_bundle(
    path: str | Path,
    *,
    checkpoint: str | Path | None = None,
    base: str | None = None,
    adapter: str | None = None,
    data: str | Path | None = None,
    thresholds: str | Path | None = None,
    locate: bool = False,
    report: str | Path | None = None,
    progress: Progress,
) -> ParityReport:
    """See ptdeploy.verify."""
    if locate and checkpoint is None:
        raise InputError(
            "--locate compares with PyTorch, layer by layer.", "Pass the checkpoint (--checkpoint)."
        )
    with progress.stage("check the bundle's files"):
        bundle = read_bundle(path)
        engine = open_engine(bundle)
    overrides = Overrides()
    if thresholds is not None:
        overrides = read_thresholds(thresholds, bundle.manifest.precision)
    given = read_data(data, engine) if data is not None else ()
    _check_accuracy(overrides, given)
    notes: list[str] = []
    peft: PeftSource | None = None
    if checkpoint is None:
        reference = _with_own_logits(stored_reference(bundle), given)
    else:
        with progress.stage("read the checkpoint"):
            from ptdeploy.parity.peft_reference import open_peft

            peft = open_peft(checkpoint, adapter, base, bundle.manifest.task)
        notes += _notes(peft, bundle)
        with progress.stage(REFERENCE_STAGE):
            reference = _computed_reference(peft, engine, given)
    with progress.stage("check parity"):
        found = compare(engine, reference, notes, overrides, given)
    if locate:
        assert peft is not None, "checked above"
        with progress.stage("locate the first module that departs"):
            from ptdeploy.parity.locate import locate_departure

            found = msgspec.structs.replace(
                found, located=locate_departure(bundle, engine, peft, reference, found)
            )
    if bundle.manifest.parity is None:
        from ptdeploy.parity.completed import keep_completed

        progress.note(keep_completed(bundle, found))
    if report is not None:
        from ptdeploy.parity.reports import write_reports
        from ptdeploy.parity.shrink import FAILING_NAME, write_failing

        folder = Path(report)
        if found.passed:
            # What an earlier run left here no longer departs.
            (folder / FAILING_NAME).unlink(missing_ok=True)
        else:
            with progress.stage("shrink the failing input"):
                failing = write_failing(folder, engine, reference, found, thresholds, peft)
                found = msgspec.structs.replace(found, failing=failing)
        write_reports(found, bundle.manifest, folder)
    return found


def _computed_reference(peft: PeftSource, engine: Engine, given: Sequence[DataRow]) -> Reference:
    from ptdeploy.parity.cases import AskedRow, golden_rows
    from ptdeploy.parity.peft_reference import compute_reference
    from ptdeploy.texts import find_tokenizer, golden_texts, with_texts

    manifest = engine.manifest
    tokenizer = find_tokenizer(peft.checkpoint, peft.base) if engine.tokenizer else None
    rows = golden_rows(manifest.limits, golden_texts(tokenizer, manifest.limits))
    rows += [AskedRow(row.ids, "data") for row in given]
    judged = _judged(engine.bundle, given) if manifest.quantization else None
    computed = compute_reference(
        peft.checkpoint, peft.base, manifest.limits, judged, rows, peft.model
    )
    return with_texts(computed, tokenizer)


def _judged(bundle: Bundle, given: Sequence[DataRow]) -> JudgedText:
    """What rounded weights are judged on: the user's data if there is any, else what is stored."""
    from ptdeploy.parity.quality import JudgedText

    rows = tuple(row.ids for row in given if row.ids.size > 1)
    if rows:
        return JudgedText(rows, "the given data")
    stored = stored_reference(bundle)
    return JudgedText(tuple(row.ids for row in stored.judged), stored.judged_on)


def _with_own_logits(reference: Reference, given: Sequence[DataRow]) -> Reference:
    """The stored reference and the data's, where its rows bring their own."""
    own = [Row(row.ids, row.logits, "data") for row in given if row.logits is not None]
    if own and len(own) == len(given):
        return replace(reference, rows=(*reference.rows, *own))
    for number, row in enumerate(given, 1):
        if row.labels is None and row.wanted_ids is None:
            raise InputError(
                f"--data: row {number} has no label, and there is no reference for it.",
                "Pass the checkpoint with --checkpoint, to compare with PEFT on your data.",
            )
    return reference


def _notes(peft: PeftSource, bundle: Bundle) -> list[str]:
    notes = []
    if dict(peft.checkpoint.files) != bundle.manifest.source.files:
        notes.append("the checkpoint's files are not those the bundle was compiled from.")
    if note := edge_note(bundle.manifest.limits):
        notes.append(note)
    return notes


def _check_accuracy(overrides: Overrides, given: Sequence[DataRow]) -> None:
    asked = (overrides.min_accuracy, overrides.max_accuracy_drop)
    if any(one is not None for one in asked) and all(row.labels is None for row in given):
        raise InputError(
            "--thresholds: asks for an accuracy, but no labelled data was given.",
            'Pass a file with "label" in its rows with --data.',
        )
