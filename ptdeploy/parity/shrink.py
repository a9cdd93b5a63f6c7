"""The smallest input that still fails, in a file that brings its own reference."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from ptdeploy.bundle.task import Task
from ptdeploy.files import json_document, write_whole
from ptdeploy.parity.bounds import Bounds, bounds_of_report
from ptdeploy.parity.cases import Padding
from ptdeploy.parity.compare import logits_of, rows_fail
from ptdeploy.parity.data import DataRow
from ptdeploy.parity.own import row_alone
from ptdeploy.parity.reference import Reference, ReferenceRow
from ptdeploy.parity.report import Failing, ParityReport
from ptdeploy.parity.reports import BOUNDS_NAME, FAILING_NAME, REPORT_FIX
from ptdeploy.parity.thresholds import Overrides
from ptdeploy.parity.token_ids import pair_agrees, row_agrees, wanted_pairs
from ptdeploy.runtime import ENGINES, Engine

if TYPE_CHECKING:
    from ptdeploy.parity.reference.peft import PeftSource

# Logits a line may hold: of a large vocabulary only the last positions are written.
_MOST_LOGITS = 400_000


@dataclass(frozen=True)
class FailingInput:
    """Rows with their reference, run together with padding on one side, that fail."""

    rows: tuple[ReferenceRow, ...]
    padding: Padding


def write_failing(
    folder: Path,
    engine: Engine,
    reference: Reference,
    report: ParityReport,
    overrides: Overrides,
    peft: PeftSource | None,
    asked: Sequence[str] = (),
    data: Sequence[DataRow] = (),
) -> Failing | None:
    """Shrink what fails and write it as `failing.jsonl`; None where no input can show it.

    `asked` are the options that verify needs to run the same engine and prompt; `data` are the
    user's own rows. The caller's own
    bounds go into a file beside it, but those on a score, for which such an input has no labels.
    What only a score over much text shows (a task metric, quantized weights) has no such input.
    """
    remove_failing(folder)
    found = smallest_failing(engine, reference, report, peft)
    lines: list[dict[str, Any]]
    if found is not None:
        lines = [_line(row) for row in found.rows]
        lengths = tuple(int(row.ids.size) for row in found.rows)
    elif (text := _failing_text(engine, reference, data)) is not None:
        lines, lengths = [text], (len(text["ids"]),)
    else:
        return None
    content = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
    path = write_whole(folder / FAILING_NAME, content, REPORT_FIX)
    command = ["ptdeploy", "verify", str(engine.bundle.path), "--data", str(path)]
    head = engine.manifest.prompt.head
    bounds = overrides.without_scores(engine.manifest.quantization is not None, head)
    if bounds:
        file = write_whole(folder / BOUNDS_NAME, json_document(bounds), REPORT_FIX)
        command += ["--thresholds", str(file)]
    return Failing(lengths, str(path), shlex.join([*command, *asked]))


def remove_failing(folder: Path) -> None:
    """Take away the failing input that an earlier run left in a report's folder."""
    for name in (FAILING_NAME, BOUNDS_NAME):
        (folder / name).unlink(missing_ok=True)


def smallest_failing(
    engine: Engine, reference: Reference, report: ParityReport, peft: PeftSource | None
) -> FailingInput | None:
    """The failing case with the fewest tokens, without the rows and tokens it does not need.

    A row can be cut only where the reference of what is left is known: with PEFT at hand always,
    else for a causal model, whose earlier logits do not depend on later tokens.
    """
    # A mixed one is of several references: its rows fail alone too, or no file can show it. And
    # data is about a prompt.
    failing = [
        case for case in report.cases if not (case.passed or case.mixed or case.without_prompt)
    ]
    bounds = bounds_of_report(report, reference, engine.manifest.prompt.head)
    found: FailingInput | None = None
    if failing:
        case = min(failing, key=lambda one: (len(one.lengths), sum(one.lengths)))
        found = FailingInput(tuple(reference.rows[i] for i in case.rows), case.padding)
    elif peft is not None:
        found = _after_greedy(engine, reference, report, peft, bounds)
    if found is None:
        return None

    def fails(rows: Sequence[ReferenceRow]) -> bool:
        return _fails(engine, rows, found.padding, bounds)

    rows = _fewer_rows(list(found.rows), fails)
    known = _references(engine.manifest.task, peft)
    for index in range(len(rows)):
        rows = _shorter_row(rows, index, fails, known)
    return replace(found, rows=tuple(rows))


def _fewer_rows(
    rows: list[ReferenceRow], fails: Callable[[Sequence[ReferenceRow]], bool]
) -> list[ReferenceRow]:
    for row in list(rows):
        without = [one for one in rows if one is not row]
        if without and fails(without):
            rows = without
    return rows


Known = Callable[[ReferenceRow, slice], ReferenceRow | None]


def _shorter_row(
    rows: list[ReferenceRow],
    index: int,
    fails: Callable[[Sequence[ReferenceRow]], bool],
    known: Known,
) -> list[ReferenceRow]:
    """Cut a row at its end, then at its start, to about the shortest that fails."""

    def attempt(kept: slice) -> list[ReferenceRow] | None:
        row = known(rows[index], kept)
        if row is None:
            return None
        changed = [*rows[:index], row, *rows[index + 1 :]]
        return changed if fails(changed) else None

    for side in ("end", "start"):
        size = rows[index].ids.size
        good, bad = 0, size
        while bad - good > 1:
            middle = (good + bad) // 2
            kept = slice(0, middle) if side == "end" else slice(size - middle, size)
            if attempt(kept) is not None:
                bad = middle
            else:
                good = middle
        if bad < size:
            kept = slice(0, bad) if side == "end" else slice(size - bad, size)
            rows = attempt(kept) or rows
    return rows


def _references(task: Task, peft: PeftSource | None) -> Known:
    def known(row: ReferenceRow, kept: slice) -> ReferenceRow | None:
        ids = np.ascontiguousarray(row.ids[kept])
        types = None if row.type_ids is None else np.ascontiguousarray(row.type_ids[kept])
        if peft is not None:
            from ptdeploy.parity.reference.peft import row_logits

            return ReferenceRow(ids, row_logits(peft.model, task, ids, types), row.source, types)
        left_out = row.ids.size - kept.stop
        if not ENGINES[task].writes or kept.start or len(row.logits) <= left_out:
            return None
        return ReferenceRow(ids, row.logits[: len(row.logits) - left_out], row.source)

    return known


def _fails(engine: Engine, rows: Sequence[ReferenceRow], padding: Padding, bounds: Bounds) -> bool:
    logits, _ = logits_of(engine, rows, padding)
    beside = bounds.own is not None and len(rows) > 1
    own = [row_alone(engine, row) for row in rows] if beside else []
    return rows_fail(rows, logits, bounds, own)


def _after_greedy(
    engine: Engine,
    reference: Reference,
    report: ParityReport,
    peft: PeftSource,
    bounds: Bounds,
) -> FailingInput | None:
    """A row whose greedy tokens do not match, up to the first, if its logits do not either."""
    from ptdeploy.parity.reference.peft import row_logits

    for one, result in zip(reference.greedy, report.greedy, strict=False):
        if result.passed:
            continue
        ids = np.concatenate([one.ids, one.tokens[: result.agreed]])
        row = ReferenceRow(ids, row_logits(peft.model, engine.manifest.task, ids))
        if _fails(engine, [row], "right", bounds):
            return FailingInput((row,), "right")
    return None


def _failing_text(
    engine: Engine, reference: Reference, data: Sequence[DataRow]
) -> dict[str, Any] | None:
    """The shortest text or pair that is encoded otherwise, as a data row."""
    if engine.tokenizer is None:
        return None
    failing: list[dict[str, Any]] = [
        {"text": text, "ids": list(ids)}
        for text, ids in zip(reference.texts, reference.text_ids, strict=True)
        if tuple(engine.tokenizer.encode(text).ids) != ids
    ]
    for pair, ids, types in wanted_pairs(reference):
        if not pair_agrees(engine, pair, ids, types):
            line = {"text": pair[0], "text_pair": pair[1], "ids": list(ids)}
            segments = {"token_type_ids": list(types)} if engine.takes_segments else {}
            failing.append({**line, **segments})
    for row in data:
        if row.text is not None and row.wanted_ids and not row_agrees(engine, row):
            second = {} if row.pair is None else {"text_pair": row.pair}
            line = {"text": row.text, **second, "ids": row.ids.tolist()}
            segments = {} if row.type_ids is None else {"token_type_ids": row.type_ids.tolist()}
            failing.append({**line, **segments})
    return min(failing, key=lambda one: len(one["ids"]), default=None)


def _line(row: ReferenceRow) -> dict[str, Any]:
    logits = row.logits
    if logits.ndim == 2:
        logits = logits[-max(1, _MOST_LOGITS // logits.shape[1]) :]
    line: dict[str, Any] = {"ids": row.ids.tolist(), "logits": logits.tolist()}
    if row.type_ids is not None:
        line["token_type_ids"] = row.type_ids.tolist()
    return line
