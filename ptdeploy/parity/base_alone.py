"""Rows without a prompt, of a bundle that was compiled with one.

A request may be without a prompt whatever prompts a bundle has. The reference has a few rows of the
base model alone; they are run alone, in one batch, and beside rows with the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import msgspec

from ptdeploy.parity.bounds import Bounds, bounds_of_report
from ptdeploy.parity.cases import BASE_ROWS, Padding
from ptdeploy.parity.checks import checks
from ptdeploy.parity.compare import compare, compare_greedy
from ptdeploy.parity.data import DataRow
from ptdeploy.parity.effect import Projection, PromptEffect, effect_notes
from ptdeploy.parity.mixed import MixedRow, run_rows
from ptdeploy.parity.own import row_alone
from ptdeploy.parity.reference import Reference, ReferenceRow
from ptdeploy.parity.reference.store import referred
from ptdeploy.parity.report import CaseResult, GreedyResult, ParityReport
from ptdeploy.parity.thresholds import Overrides
from ptdeploy.progress import Progress
from ptdeploy.runtime import Engine

NOT_COMPARED = (
    "requests without a prompt were not compared: the reference has no row of the base model alone."
)


def compare_with_base(
    engine: Engine,
    reference: Reference,
    notes: Sequence[str] = (),
    overrides: Overrides | None = None,
    data: Sequence[DataRow] = (),
    progress: Progress | None = None,
) -> ParityReport:
    """As `compare`, with the rows that the reference has of the base model alone behind its cases.

    A note says where it has none, and the bundle no reference of the base model's own.
    """
    report = compare(engine, reference, notes, overrides, data, progress)
    if not engine.takes_base or engine.manifest.default_prompt is None:
        return report
    places = [
        place
        for place in BASE_ROWS
        if place < len(reference.rows) and reference.rows[place].without_prompt is not None
    ]
    if not places:
        told = () if None in referred(engine.bundle) else (NOT_COMPARED,)
        return msgspec.structs.replace(report, notes=(*report.notes, *told))
    bounds = bounds_of_report(report, reference, engine.manifest.prompt.head)
    pairs = [_pair(engine, reference.rows[place], place, bounds) for place in places]
    effects = _effects(engine, reference, bounds) if bounds.own is not None else []
    report = msgspec.structs.replace(
        report,
        cases=(*report.cases, *_cases(engine, pairs)),
        greedy=(*report.greedy, *_greedy(engine, reference, bounds)),
        effects=(*report.effects, *effects),
        notes=(*report.notes, *effect_notes(effects)),
    )
    return msgspec.structs.replace(report, passed=all(one.passed for one in checks(report)))


# Rows of more tokens cost more than they say.
_LONGEST = 64
# A row of the base model alone, and the same with the prompt.
_Pair = tuple[MixedRow, MixedRow]


def _pair(engine: Engine, with_prompt: ReferenceRow, place: int, bounds: Bounds) -> _Pair:
    assert with_prompt.without_prompt is not None, "the caller has chosen those that have"
    row = replace(with_prompt, logits=with_prompt.without_prompt)

    def of(prompt: str | None, one: ReferenceRow) -> MixedRow:
        alone = None if bounds.own is None else row_alone(engine, one, prompt)
        return MixedRow(prompt, place, one, bounds, alone)

    return of(None, row), of(engine.manifest.default_prompt, with_prompt)


def _cases(engine: Engine, pairs: Sequence[_Pair]) -> Iterator[CaseResult]:
    most = engine.limits.max_batch
    for base, _ in pairs:
        yield from _run(engine, [replace(base, own=None)], "right")
    for batch in ([base for base, _ in pairs], [one for pair in pairs for one in pair]):
        if len(batch[:most]) > 1:
            yield from _run(engine, batch[:most], "left")


def _effects(engine: Engine, reference: Reference, bounds: Bounds) -> list[PromptEffect]:
    """Whether a quantized engine has the prompt in rows that ask for none.

    Such a row alone only has to be finite, and beside others what it is alone. Of all rows but long
    ones: of a large vocabulary each has one position.
    """
    along = Projection()
    for place, row in enumerate(reference.rows):
        if row.without_prompt is not None and row.ids.size <= _LONGEST:
            base, beside = _pair(engine, row, place, bounds)
            assert base.own is not None
            assert beside.own is not None
            along.add(base.row.logits, base.own[0], row.logits, beside.own[0])
    found = along.result(engine.manifest.default_prompt)
    return [] if found is None else [msgspec.structs.replace(found, without_prompt=True)]


def _run(engine: Engine, batch: Sequence[MixedRow], padding: Padding) -> Iterator[CaseResult]:
    for prompt, result in run_rows(engine, batch, padding):
        if prompt is None:
            name = f"base mixed, {padding}-padded" if result.mixed else f"base {result.name}"
            result = msgspec.structs.replace(result, name=name, without_prompt=True)
        yield result


def _greedy(engine: Engine, reference: Reference, bounds: Bounds) -> list[GreedyResult]:
    """A row continued without a prompt, beside one with it; alone where no batch has two rows."""
    if reference.base_greedy is None:
        return []
    rows, prompts = [reference.base_greedy], [None, engine.manifest.default_prompt]
    if reference.greedy and engine.limits.max_batch != 1:
        rows.append(max(reference.greedy, key=lambda one: one.tokens.size))
    steps = min(one.tokens.size for one in rows)
    found = compare_greedy(engine, rows, steps, [bounds] * len(rows), prompts[: len(rows)])
    mixed = len(rows) > 1
    return [
        msgspec.structs.replace(one, mixed=mixed, without_prompt=prompt is None)
        for one, prompt in zip(found, prompts, strict=False)
    ]
