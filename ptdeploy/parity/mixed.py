"""Batches that mix prompts: each row must be what it is with its own prompt alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import numpy as np

from ptdeploy.errors import EngineFault
from ptdeploy.parity.bounds import Bounds, bounds_of_report
from ptdeploy.parity.cases import BatchCase, Padding
from ptdeploy.parity.checks import checks
from ptdeploy.parity.compare import (
    compare_greedy,
    measure_case,
    padded,
    without_numbers,
)
from ptdeploy.parity.effect import Projection, PromptEffect, effect_notes
from ptdeploy.parity.own import Alone, row_alone
from ptdeploy.parity.reference import Greedy, Reference, ReferenceRow
from ptdeploy.parity.report import CaseResult, GreedyResult, ParityReport
from ptdeploy.runtime import Engine

_WIDEST = 8
# Rows of each prompt, of unequal lengths where the reference has its usual rows.
_ROWS = (1, 5)
# With how many others' prompts each is compared: a thousand would be a million pairs.
_MOST_OTHERS = 16
_PADDINGS: tuple[Padding, ...] = ("right", "left")


@dataclass(frozen=True)
class MixedRow:
    """A row of the reference of a prompt, and what it is held by.

    `own` is what a quantized engine gives for it alone, else None.
    """

    prompt: str | None
    index: int
    row: ReferenceRow
    bounds: Bounds
    own: Alone | None


@dataclass(frozen=True)
class MixedRows:
    """What of a prompt's reference is run beside other prompts; None is the base model alone.

    `greedy` are the rows that are continued furthest, none of an engine that writes nothing.
    """

    prompt: str | None
    rows: tuple[MixedRow, ...]
    greedy: tuple[Greedy, ...]
    bounds: Bounds

    @classmethod
    def of(cls, engine: Engine, reference: Reference, report: ParityReport) -> MixedRows:
        """Of the prompt that the engine's requests have by default, as its report has held it."""
        bounds = bounds_of_report(report, reference, engine.manifest.prompt.head)
        prompt = engine.manifest.default_prompt
        rows = []
        for index in (min(place, len(reference.rows) - 1) for place in _ROWS):
            row = reference.rows[index]
            own = None if bounds.own is None else row_alone(engine, row)
            rows.append(MixedRow(prompt, index, row, bounds, own))
        most = max((one.tokens.size for one in reference.greedy), default=0)
        greedy = tuple(one for one in reference.greedy if one.tokens.size == most)
        return cls(prompt, tuple(rows), greedy, bounds)


def with_mixed(report: ParityReport, engine: Engine, mixed: Sequence[MixedRows]) -> ParityReport:
    """The report of several prompts with cases in which a batch mixes them, in each one's own."""
    reports = {one.prompt: one for one in report.each()}
    cases: dict[str | None, list[CaseResult]] = {one.prompt: [] for one in mixed}
    greedy: dict[str | None, list[GreedyResult]] = {one.prompt: [] for one in mixed}
    rows = [one.rows[place] for place in range(len(_ROWS)) for one in mixed]
    for batch in _batches(rows, engine):
        for padding in _PADDINGS:
            for prompt, result in run_rows(engine, batch, padding):
                cases[prompt].append(result)
    if engine.writes:
        for part in _batches([one for one in mixed if one.greedy], engine):
            for one, found in zip(part, _continue(engine, part), strict=True):
                greedy[one.prompt].append(found)
    shown = {one.prompt: _effects(one, mixed) if engine.writes else [] for one in mixed}
    own, *others = (
        _with(one, cases[name], greedy[name], shown[name]) for name, one in reports.items()
    )
    passed = all(one.passed for one in (own, *others))
    return msgspec.structs.replace(own, passed=passed, prompts=tuple(others))


def _effects(one: MixedRows, mixed: Sequence[MixedRows]) -> list[PromptEffect]:
    """Whether a quantized engine has others' prompts in the place of one, as its rows alone show.

    That it has none the prompt's own reference shows.
    """
    found = []
    for other in mixed[:_MOST_OTHERS]:
        if other.prompt is None or other.prompt == one.prompt:
            continue
        along = Projection()
        counted = set[bytes]()
        for ours, theirs in zip(one.rows, other.rows, strict=True):
            # Of a short reference two places are one row, which says nothing more the second time.
            ids = ours.row.ids.tobytes()
            same = np.array_equal(ours.row.ids, theirs.row.ids) and ids not in counted
            if ours.own is not None and theirs.own is not None and same:
                counted.add(ids)
                along.add(ours.row.logits, ours.own[0], theirs.row.logits, theirs.own[0])
        effect = along.result(other.prompt)
        if effect is not None:
            found.append(effect)
    return found


def _with(
    report: ParityReport,
    mixed: Sequence[CaseResult],
    greedy: Sequence[GreedyResult],
    effects: Sequence[PromptEffect],
) -> ParityReport:
    more = msgspec.structs.replace(
        report,
        cases=(*report.cases, *mixed),
        greedy=(*report.greedy, *greedy),
        effects=(*report.effects, *effects),
        notes=(*report.notes, *effect_notes(effects)),
    )
    return msgspec.structs.replace(more, passed=all(one.passed for one in checks(more)))


_T = TypeVar("_T", MixedRow, MixedRows)


def _batches(rows: Sequence[_T], engine: Engine) -> Iterator[Sequence[_T]]:
    """Rows in batches in which neighbours have different prompts.

    A last row that would be alone has the one before it beside it once more.
    """
    widest = min(_WIDEST, engine.limits.max_batch or _WIDEST, len(rows))
    if widest < 2:
        return
    for start in range(0, len(rows), widest):
        yield rows[min(start, len(rows) - 2) : start + widest]


def _continue(engine: Engine, batch: Sequence[MixedRows]) -> list[GreedyResult]:
    """A row of each prompt, of unequal lengths, continued together as far as all were."""
    rows = [one.greedy[place % len(one.greedy)] for place, one in enumerate(batch)]
    steps = min(one.tokens.size for one in rows)
    bounds, prompts = [one.bounds for one in batch], [one.prompt for one in batch]
    found = compare_greedy(engine, rows, steps, bounds, prompts)
    return [msgspec.structs.replace(one, mixed=True) for one in found]


def run_rows(
    engine: Engine, batch: Sequence[MixedRow], padding: Padding
) -> Iterator[tuple[str | None, CaseResult]]:
    """What came of each prompt's rows of one batch; one of a single prompt's rows mixes none."""
    rows = [one.row for one in batch]
    stopped = None
    try:
        logits = engine.logits(*padded(rows, padding), prompt=[one.prompt for one in batch])
    except EngineFault as error:
        logits, stopped = [without_numbers(row.logits) for row in rows], error.problem
    names = list(dict.fromkeys(one.prompt for one in batch))
    for name in names:
        places = [place for place, one in enumerate(batch) if one.prompt == name]
        case = BatchCase(tuple(batch[i].index for i in places), padding, rows[places[0]].source)
        result, _ = measure_case(
            case,
            [rows[i] for i in places],
            [logits[i] for i in places],
            batch[places[0]].bounds,
            [own for i in places if (own := batch[i].own) is not None],
            stopped,
        )
        if len(names) > 1:
            words = f"mixed prompts, {padding}-padded"
            result = msgspec.structs.replace(result, name=words, mixed=True)
        yield name, result
