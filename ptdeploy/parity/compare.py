"""An engine against a reference: every case run and measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from ptdeploy.bundle.precision import Thresholds
from ptdeploy.errors import EngineFault
from ptdeploy.parity.bounds import Bounds, bounds_of
from ptdeploy.parity.cases import BatchCase, Padding, edge_notes, pad
from ptdeploy.parity.checks import checks, quality_notes
from ptdeploy.parity.data import DataRow, TaskMetric, task_metric
from ptdeploy.parity.effect import Projection, effect_notes
from ptdeploy.parity.measure import HISTOGRAM_EDGES, Measured, bin_positions, measure
from ptdeploy.parity.own import (
    Alone,
    apart_outputs,
    furthest,
    greedy_held_to_own,
    held_to_own,
    kept,
    row_alone,
)
from ptdeploy.parity.quality import evaluate, row_logits_or_nan
from ptdeploy.parity.reference import Greedy, Reference, ReferenceRow
from ptdeploy.parity.report import (
    CaseResult,
    GreedyResult,
    ParityReport,
    PositionError,
)
from ptdeploy.parity.thresholds import Overrides
from ptdeploy.parity.token_ids import encoded_texts
from ptdeploy.progress import Progress
from ptdeploy.runtime import Engine
from ptdeploy.runtime.prompt_choice import DEFAULT


def compare(
    engine: Engine,
    reference: Reference,
    notes: Sequence[str] = (),
    overrides: Overrides | None = None,
    data: Sequence[DataRow] = (),
    progress: Progress | None = None,
) -> ParityReport:
    """Run every case through the engine and hold it against the reference's rows alone.

    Of `data`, the user's own rows, all are the last rows of `reference`, or those that bring their
    own logits; of the others only the task metric is computed.
    """
    overrides = overrides or Overrides()
    progress = progress or Progress(quiet=True)
    thresholds = overrides.thresholds(reference.thresholds)
    bounds = bounds_of(reference, thresholds, engine.manifest.prompt.head)
    quantization = overrides.quantization(engine.manifest.quantization, engine.manifest.prompt.head)
    quality = None
    if quantization:
        quality = evaluate(engine, reference, quantization, progress)
        bounds = bounds.with_own(quality)
    run = _run_cases(engine, reference, bounds, progress)
    effect = run.effect.result(other=None)
    greedy = _compare_greedy(engine, reference, bounds) if engine.writes else ()
    texts = encoded_texts(engine, reference, data)
    report = ParityReport(
        passed=False,
        target=engine.manifest.target,
        device=engine.manifest.device,
        precision=engine.manifest.precision,
        reference=reference.made_by,
        thresholds=bounds.thresholds if bounds.bind or not quantization else None,
        largest_allowed=bounds.allowed if bounds.limits_logits or not quantization else None,
        own_allowed=bounds.own,
        decode_allowed=bounds.decode if engine.writes else None,
        effects=() if effect is None else (effect,),
        cases=tuple(run.cases),
        greedy=greedy,
        texts_agreed=texts.agreed,
        texts_total=texts.total,
        first_other_text=texts.first_other,
        quality=quality,
        quality_allowed=quantization,
        notes=(
            *notes,
            *_padding_notes(engine, reference, bounds.allowed),
            *edge_notes(max(row.ids.size for row in reference.rows), engine.limits),
            *quality_notes(quality),
            *effect_notes(() if effect is None else (effect,)),
        ),
        positions=tuple(
            PositionError(first, last, found if np.isfinite(found) else None)
            for first, last, found in bin_positions(run.positions)
        ),
        histogram_edges=HISTOGRAM_EDGES,
        data=_metric(engine, reference, data, run.alone, overrides),
        prompt=engine.manifest.default_prompt,
    )
    return msgspec.structs.replace(report, passed=all(one.passed for one in checks(report)))


@dataclass(frozen=True)
class _Run:
    """Every case's result, each position's largest difference, and the rows' logits alone.

    Of rows that are not data only the positions that the reference has are kept, and only of an
    engine that is held to itself.
    """

    cases: list[CaseResult] = field(default_factory=list)
    positions: list[tuple[int, float]] = field(default_factory=list)
    alone: dict[int, Alone] = field(default_factory=dict)
    effect: Projection = field(default_factory=Projection)


def _run_cases(engine: Engine, reference: Reference, bounds: Bounds, progress: Progress) -> _Run:
    """Run the cases; of a quantized engine a batch is held to the rows alone, too."""
    run, by_itself = _Run(), bounds.own is not None
    for case in progress.within(reference.cases, "cases"):
        rows = [reference.rows[i] for i in case.rows]
        logits, stopped = logits_of(engine, rows, case.padding)
        if len(case.rows) == 1 and (by_itself or case.source == "data"):
            whole = case.source == "data"
            run.alone[case.rows[0]] = logits[0] if whole else kept(logits[0], rows[0]), stopped
        without = rows[0].without_prompt
        if len(case.rows) == 1 and by_itself and without is not None:
            run.effect.add(rows[0].logits, logits[0], without)
        own: list[Alone] = []
        if len(case.rows) > 1 and by_itself:
            for index in case.rows:
                if index not in run.alone:
                    run.alone[index] = row_alone(engine, reference.rows[index])
            own = [run.alone[index] for index in case.rows]
        found, where = measure_case(case, rows, logits, bounds, own, stopped)
        run.cases.append(found)
        run.positions.extend(where)
    return run


def _padding_notes(engine: Engine, reference: Reference, allowed: float) -> list[str]:
    if reference.padded_mismatch is None or not reference.padded_mismatch > allowed:
        return []
    side = "left" if engine.writes else "right"
    return [
        f"PEFT's own {side}-padded batch does not match its rows alone, by "
        f"{reference.padded_mismatch:.2g}; the reference here is each row alone."
    ]


def padded(
    rows: Sequence[ReferenceRow], padding: Padding
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64] | None]:
    """A padded batch as a caller would send it: (input_ids, attention_mask, token_type_ids)."""
    ids, mask = pad([row.ids for row in rows], padding)
    if all(row.type_ids is None for row in rows):
        return ids, mask, None
    types = [np.zeros_like(row.ids) if row.type_ids is None else row.type_ids for row in rows]
    return ids, mask, pad(types, padding)[0]


def logits_of(
    engine: Engine, rows: Sequence[ReferenceRow], padding: Padding
) -> tuple[list[NDArray[np.float32]], str | None]:
    """The engine's logits; where it fails on a request that it must take, NaN, and why."""
    try:
        return engine.logits(*padded(rows, padding)), None
    except EngineFault as error:
        return [without_numbers(row.logits) for row in rows], error.problem


def without_numbers(wanted: NDArray[np.float32]) -> NDArray[np.float32]:
    """What stands for the logits of an engine that failed."""
    return np.full_like(wanted, np.nan)


def _measure_rows(
    rows: Sequence[ReferenceRow], logits: Sequence[NDArray[np.float32]], bounds: Bounds
) -> tuple[Measured, NDArray[np.float64]]:
    """Hold an engine's logits against a reference's rows, at the positions which that has."""
    wanted = [np.atleast_2d(row.logits) for row in rows]
    got = [np.atleast_2d(a)[-len(w) :] for a, w in zip(logits, wanted, strict=True)]
    return measure(np.concatenate(wanted), np.concatenate(got), bounds.allowed, bounds.short)


def _within(found: Measured, thresholds: Thresholds, allowed: float) -> bool:
    """Whether a case's numbers are within the thresholds; what is not finite never is."""
    return (
        found.max_abs is not None
        and found.max_abs <= allowed
        and found.cosine is not None
        and found.cosine >= thresholds.cosine
        and found.kl is not None
        and found.kl <= thresholds.kl
        and found.clear_agreement
        and found.top1_agreement >= thresholds.min_top1_agreement
    )


def measure_case(
    case: BatchCase,
    rows: Sequence[ReferenceRow],
    logits: Sequence[NDArray[np.float32]],
    bounds: Bounds,
    own: Sequence[Alone] = (),
    stopped: str | None = None,
) -> tuple[CaseResult, list[tuple[int, float]]]:
    """A case's numbers, and (position in the row, largest difference) for each position.

    `own` is what a quantized engine gives for each of the rows alone, where they are held to that;
    `stopped` says why the engine gave no logits.
    """
    found, largest = _measure_rows(rows, logits, bounds)
    # A class is read off the whole row: it counts at the row's last token.
    where = [
        position
        for row in rows
        for position in range(row.ids.size - len(np.atleast_2d(row.logits)), row.ids.size)
    ]
    output = None
    if bounds.outputs is not None:
        output = furthest(apart_outputs(logits, [row.logits for row in rows]), bounds.outputs)
    result = CaseResult(
        name=case.name,
        source=case.source,
        padding=case.padding,
        rows=case.rows,
        lengths=tuple(int(row.ids.size) for row in rows),
        max_abs=found.max_abs,
        mean_abs=found.mean_abs,
        cosine=found.cosine,
        kl=found.kl,
        top1_agreement=found.top1_agreement,
        histogram=found.histogram,
        passed=_within(found, bounds.thresholds, bounds.allowed) and output is None,
        output=output,
        stopped=stopped,
    )
    if own and bounds.own is not None:
        result = held_to_own(result, logits, own, bounds.own, bounds.own_outputs)
    return result, list(zip(where, largest.tolist(), strict=True))


def rows_fail(
    rows: Sequence[ReferenceRow],
    logits: Sequence[NDArray[np.float32]],
    bounds: Bounds,
    own: Sequence[Alone] = (),
) -> bool:
    """Whether an engine's logits of rows that ran together are a case that fails."""
    case = BatchCase(tuple(range(len(rows))), "right")
    return not measure_case(case, rows, logits, bounds, own)[0].passed


def _metric(
    engine: Engine,
    reference: Reference,
    data: Sequence[DataRow],
    alone: dict[int, Alone],
    overrides: Overrides,
) -> TaskMetric | None:
    """The task metric on the user's data, from logits that were compared where they were."""
    if not data:
        return None
    places = [i for i, row in enumerate(reference.rows) if row.source == "data"]
    compared: Sequence[int] = range(len(data))
    if len(places) < len(data):
        compared = [i for i, row in enumerate(data) if row.logits is not None]
    found = {i: alone[place] for i, place in zip(compared, places, strict=True)}
    answers = [found.get(i) or row_logits_or_nan(engine, row) for i, row in enumerate(data)]
    ours = [logits for logits, _ in answers]
    stopped = next((why for _, why in answers if why is not None), None)
    wanted = [reference.rows[place].logits for place in places]
    whole = len(wanted) == len(data) and all(
        len(np.atleast_2d(want)) == len(np.atleast_2d(got))
        for want, got in zip(wanted, ours, strict=True)
    )
    return task_metric(engine, data, ours, wanted if whole else None, overrides, stopped)


def _compare_greedy(
    engine: Engine, reference: Reference, bounds: Bounds
) -> tuple[GreedyResult, ...]:
    """Continue every row as far as the reference does, in batches of unequal rows.

    A batch ends with the row that has the fewest tokens: those that go on stand in the next one,
    too. Of a row that fails the first such result counts, beside whatever rows that was.
    """
    rows = reference.greedy
    most = engine.limits.max_batch or len(rows)
    left = sorted(range(len(rows)), key=lambda index: rows[index].tokens.size)
    results: dict[int, GreedyResult] = {}
    while left:
        batch = left[:most]
        steps = rows[batch[0]].tokens.size
        found = compare_greedy(engine, [rows[i] for i in batch], steps, [bounds] * len(batch))
        for index, one in zip(batch, found, strict=True):
            if index not in results or results[index].passed:
                results[index] = one
        left = [index for index in left if index not in batch or rows[index].tokens.size > steps]
    return tuple(results[index] for index in range(len(rows)))


def compare_greedy(
    engine: Engine,
    wanted: Sequence[Greedy],
    steps: int,
    bounds: Sequence[Bounds],
    prompts: Sequence[str | None] | None = None,
) -> list[GreedyResult]:
    """Continue rows in one batch by `steps` tokens, and hold each against what the reference gives.

    `bounds` and `prompts` are each row's; without prompts all have the engine's default one.
    """
    ids = [one.ids.tolist() for one in wanted]
    try:
        rows = engine.continued(ids, steps, DEFAULT if prompts is None else prompts)
    except EngineFault as error:
        return [GreedyResult(int(one.ids.size), 0, steps, False, error.problem) for one in wanted]
    results = []
    each = [DEFAULT] * len(ids) if prompts is None else prompts
    for one, row, bound, prompt in zip(wanted, rows, bounds, each, strict=True):
        mismatches = np.flatnonzero(one.tokens[:steps] != np.asarray(row.token_ids))
        agreed = int(mismatches[0]) if mismatches.size else steps
        tie = agreed == steps or float(one.margins[agreed]) <= bound.tie
        result = GreedyResult(int(one.ids.size), agreed, steps, tie)
        results.append(greedy_held_to_own(result, engine, one, row, bound.decode, prompt))
    return results
