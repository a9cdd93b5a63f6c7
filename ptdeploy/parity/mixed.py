"""Batches that mix prompts: each row must be what it is with its own prompt alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from ptdeploy.errors import EngineFault
from ptdeploy.parity.cases import BatchCase, Padding
from ptdeploy.parity.checks import checks
from ptdeploy.parity.compare import Bounds, bounds_of, measure_case, padded, without_numbers
from ptdeploy.parity.reference import Reference, ReferenceRow
from ptdeploy.parity.report import CaseResult, ParityReport
from ptdeploy.parity.thresholds import Overrides
from ptdeploy.runtime import Engine

_WIDEST = 8
# Rows of each prompt, of unequal lengths where the reference has its usual rows.
_ROWS = (1, 5)
_PADDINGS: tuple[Padding, ...] = ("right", "left")


@dataclass(frozen=True)
class _Row:
    """A row of the reference of a prompt, and what it is held by."""

    prompt: str | None
    index: int
    row: ReferenceRow
    bounds: Bounds


def with_mixed(
    report: ParityReport,
    engine: Engine,
    references: Mapping[str | None, Reference],
    overrides: Overrides,
) -> ParityReport:
    """The report of several prompts with cases in which a batch mixes them, in each one's own.

    `references` are theirs by name; None is the base model alone.
    """
    found: dict[str | None, list[CaseResult]] = {name: [] for name in references}
    for batch in _batches(references, engine.limits.max_batch, overrides):
        for padding in _PADDINGS:
            for name, result in _run(engine, batch, padding):
                found[name].append(result)
    own, *others = (_with(one, found.get(one.prompt, [])) for one in report.each())
    passed = all(one.passed for one in (own, *others))
    return msgspec.structs.replace(own, passed=passed, prompts=tuple(others))


def _with(report: ParityReport, mixed: Sequence[CaseResult]) -> ParityReport:
    more = msgspec.structs.replace(report, cases=(*report.cases, *mixed))
    return msgspec.structs.replace(more, passed=all(one.passed for one in checks(more)))


def _batches(
    references: Mapping[str | None, Reference], max_batch: int | None, overrides: Overrides
) -> Iterator[list[_Row]]:
    """A few rows of every prompt in batches, neighbours of different ones."""
    rows = [
        _Row(name, index, reference.rows[index], bounds_of(reference, overrides))
        for place in _ROWS
        for name, reference in references.items()
        for index in [min(place, len(reference.rows) - 1)]
    ]
    widest = min(_WIDEST, max_batch or _WIDEST)
    for start in range(0, len(rows), widest):
        batch = rows[start : start + widest]
        if len({one.prompt for one in batch}) > 1:
            yield batch


def _run(
    engine: Engine, batch: Sequence[_Row], padding: Padding
) -> Iterator[tuple[str | None, CaseResult]]:
    """What came of each prompt's rows of one batch."""
    rows = [one.row for one in batch]
    stopped = None
    try:
        logits = engine.logits(*padded(rows, padding), prompt=[one.prompt for one in batch])
    except EngineFault as error:
        logits, stopped = [without_numbers(row.logits) for row in rows], error.problem
    for name in dict.fromkeys(one.prompt for one in batch):
        own = [place for place, one in enumerate(batch) if one.prompt == name]
        case = BatchCase(tuple(batch[i].index for i in own), padding, rows[own[0]].source)
        result, _ = measure_case(
            case, [rows[i] for i in own], [logits[i] for i in own], batch[own[0]].bounds
        )
        words = f"mixed prompts, {padding}-padded"
        yield name, msgspec.structs.replace(result, name=words, mixed=True, stopped=stopped)
