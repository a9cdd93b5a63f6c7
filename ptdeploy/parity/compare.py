"""An engine against a reference: every case run and measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from ptdeploy.bundle.precision import Thresholds
from ptdeploy.errors import EngineFault
from ptdeploy.parity.cases import BatchCase, Padding, batches, pad
from ptdeploy.parity.checks import quality_notes, quantization_failures
from ptdeploy.parity.data import DataRow, TaskMetric, task_metric
from ptdeploy.parity.measure import HISTOGRAM_EDGES, Measured, bin_positions, measure
from ptdeploy.parity.quality import judge, row_logits
from ptdeploy.parity.reference import Reference, Row
from ptdeploy.parity.report import CaseResult, GreedyResult, ParityReport, PositionError
from ptdeploy.parity.thresholds import Overrides
from ptdeploy.runtime import CausalLM, Classifier, Engine


def compare(
    engine: Engine,
    reference: Reference,
    notes: Sequence[str] = (),
    overrides: Overrides | None = None,
    data: Sequence[DataRow] = (),
) -> ParityReport:
    """Run every case through the engine and hold it against the reference's rows alone.

    `data` is the user's own; its rows are the reference's last ones, or none of them where only
    the task metric can be computed.
    """
    overrides = overrides or Overrides()
    stored = engine.manifest.quantization
    quantization = overrides.quantization(stored)
    thresholds = overrides.thresholds(engine.manifest.precision, stored, engine.manifest.head)
    scale = max((float(np.abs(row.logits).max()) for row in reference.rows), default=0.0)
    allowed = thresholds.max_abs + thresholds.relative * scale
    cases: list[CaseResult] = []
    positions: list[tuple[int, float]] = []
    alone: dict[int, NDArray[np.float32]] = {}
    sources = [row.source for row in reference.rows]
    for case in batches(sources, engine.manifest.limits.max_batch):
        rows = [reference.rows[i] for i in case.rows]
        logits, stopped = _logits(engine, rows, case.padding)
        if len(case.rows) == 1 and case.source == "data":
            alone[case.rows[0]] = logits[0]
        result, where = _measure(case, reference, logits, thresholds, allowed)
        cases.append(msgspec.structs.replace(result, stopped=stopped))
        positions += where
    greedy: tuple[GreedyResult, ...] = ()
    if isinstance(engine, CausalLM):
        greedy = _compare_greedy(engine, reference, allowed)
    agreed = _texts_agreed(engine, reference)
    wanted = [row for row in data if row.text is not None and row.wanted_ids]
    agreed += sum(_data_agrees(engine, row) for row in wanted)
    if reference.padded_departure is not None and reference.padded_departure > allowed:
        notes = (
            *notes,
            "PEFT's own left-padded batch departs from its rows alone by "
            f"{reference.padded_departure:.2g}; the reference here is each row alone.",
        )
    quality = judge(engine, reference, quantization.min_agreement) if quantization else None
    metric = _metric(engine, reference, data, alone, overrides)
    texts = len(reference.texts) + len(reference.pairs) + len(wanted)
    return ParityReport(
        passed=all(case.passed for case in cases)
        and all(one.passed for one in greedy)
        and agreed == texts
        and (metric is None or metric.passed)
        and not quantization_failures(quality, quantization),
        target=engine.manifest.target,
        device=engine.manifest.device,
        precision=engine.manifest.precision,
        reference=reference.made_by,
        thresholds=None if quantization else thresholds,
        largest_allowed=None if quantization else allowed,
        cases=tuple(cases),
        greedy=greedy,
        texts_agreed=agreed,
        texts_total=texts,
        quality=quality,
        quality_allowed=quantization,
        notes=(*notes, *quality_notes(quality)),
        positions=tuple(
            PositionError(first, last, found if np.isfinite(found) else None)
            for first, last, found in bin_positions(positions)
        ),
        histogram_edges=HISTOGRAM_EDGES,
        data=metric,
    )


def padded(
    rows: Sequence[Row], padding: Padding
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64] | None]:
    """A padded batch as a caller would send it: (input_ids, attention_mask, token_type_ids)."""
    ids, mask = pad([row.ids for row in rows], padding)
    if all(row.type_ids is None for row in rows):
        return ids, mask, None
    types = [np.zeros_like(row.ids) if row.type_ids is None else row.type_ids for row in rows]
    return ids, mask, pad(types, padding)[0]


def _logits(
    engine: Engine, rows: Sequence[Row], padding: Padding
) -> tuple[list[NDArray[np.float32]], str | None]:
    """The engine's logits; where it fails on a request that it must take, NaN, and why."""
    try:
        return engine.logits(*padded(rows, padding)), None
    except EngineFault as error:
        width = int(engine.manifest.outputs[0].shape[-1])
        per_row: list[tuple[int, ...]] = [
            (width,) if isinstance(engine, Classifier) else (row.ids.size, width) for row in rows
        ]
        return [np.full(shape, np.nan, np.float32) for shape in per_row], error.problem


def measure_rows(
    rows: Sequence[Row], logits: Sequence[NDArray[np.float32]], allowed: float
) -> tuple[Measured, NDArray[np.float64]]:
    """Hold an engine's logits against a reference's rows, at the positions which that has."""
    wanted = [np.atleast_2d(row.logits) for row in rows]
    got = [np.atleast_2d(a)[-len(w) :] for a, w in zip(logits, wanted, strict=True)]
    return measure(np.concatenate(wanted), np.concatenate(got), allowed)


def case_passed(found: Measured, thresholds: Thresholds, allowed: float) -> bool:
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


def _measure(
    case: BatchCase,
    reference: Reference,
    logits: Sequence[NDArray[np.float32]],
    thresholds: Thresholds,
    allowed: float,
) -> tuple[CaseResult, list[tuple[int, float]]]:
    """A case's numbers, and (position in the row, largest difference) for each position."""
    rows = [reference.rows[i] for i in case.rows]
    found, largest = measure_rows(rows, logits, allowed)
    # A class is read off the whole row: it counts at the row's last token.
    where = [
        position
        for row in rows
        for position in range(row.ids.size - len(np.atleast_2d(row.logits)), row.ids.size)
    ]
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
        passed=case_passed(found, thresholds, allowed),
    )
    return result, list(zip(where, largest.tolist(), strict=True))


def _metric(
    engine: Engine,
    reference: Reference,
    data: Sequence[DataRow],
    alone: dict[int, NDArray[np.float32]],
    overrides: Overrides,
) -> TaskMetric | None:
    """The task metric on the user's data, from logits that were compared where they were."""
    if not data:
        return None
    compared = [row.logits for row in reference.rows if row.source == "data"]
    ours = list(alone.values()) or [row_logits(engine, row) for row in data]
    whole = len(compared) == len(data) and all(
        len(np.atleast_2d(want)) == len(np.atleast_2d(got))
        for want, got in zip(compared, ours, strict=True)
    )
    return task_metric(engine, data, ours, compared if whole else None, overrides)


def _compare_greedy(
    engine: CausalLM, reference: Reference, allowed: float
) -> tuple[GreedyResult, ...]:
    if not reference.greedy:
        return ()
    # Batches of unequal rows, so that batching is compared too; as many steps as all have.
    steps = min(one.tokens.size for one in reference.greedy)
    most = engine.manifest.limits.max_batch or len(reference.greedy)
    rows: list[Sequence[int]] = []
    stopped: list[str | None] = []
    for start in range(0, len(reference.greedy), most):
        part = [one.ids.tolist() for one in reference.greedy[start : start + most]]
        try:
            generated = engine.generate(
                part,
                steps,
                do_sample=False,
                min_new_tokens=0,
                repetition_penalty=1.0,
                eos_token_ids=(),
            )
        except EngineFault as error:
            rows += [[-1] * steps for _ in part]
            stopped += [error.problem for _ in part]
        else:
            rows += [row.token_ids for row in generated]
            stopped += [None for _ in part]
    results = []
    for one, row, why in zip(reference.greedy, rows, stopped, strict=True):
        departs = np.flatnonzero(one.tokens[:steps] != np.asarray(row))
        agreed = int(departs[0]) if departs.size else steps
        tie = bool(departs.size) and float(one.margins[agreed]) <= 2 * allowed
        passed = why is None and (agreed == steps or tie)
        results.append(GreedyResult(int(one.ids.size), agreed, steps, passed, why))
    return tuple(results)


def _texts_agreed(engine: Engine, reference: Reference) -> int:
    if engine.tokenizer is None:
        return 0
    alone = sum(
        tuple(engine.tokenizer.encode(text).ids) == ids
        for text, ids in zip(reference.texts, reference.text_ids, strict=True)
    )
    return alone + sum(pair_agrees(engine, *wanted) for wanted in wanted_pairs(reference))


Ids = Sequence[int]


def wanted_pairs(reference: Reference) -> Iterator[tuple[tuple[str, str], Ids, Ids]]:
    """Each pair of texts, the token ids and the segments that transformers makes of it."""
    return zip(reference.pairs, reference.pair_ids, reference.pair_type_ids, strict=True)


def pair_agrees(engine: Engine, pair: tuple[str, str], ids: Ids, type_ids: Ids) -> bool:
    """Whether a pair is encoded so; its segments count where the model has any."""
    assert engine.tokenizer is not None
    found = engine.tokenizer.encode(pair[0], pair=pair[1])
    same = found.ids == list(ids)
    return same and (not engine.takes_segments or found.type_ids == list(type_ids))


def _data_agrees(engine: Engine, row: DataRow) -> bool:
    """Whether a data row's text is encoded as the row itself says."""
    (found,) = engine.encode([row.given])
    same = found.ids == row.ids.tolist()
    return same and (row.type_ids is None or found.type_ids == row.type_ids.tolist())
