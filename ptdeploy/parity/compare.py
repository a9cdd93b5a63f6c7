"""An engine against a reference, and the report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from ptdeploy.bundle import ParitySummary, Quantization
from ptdeploy.errors import EngineFault
from ptdeploy.parity.cases import BatchCase, Padding, Source, batches, pad
from ptdeploy.parity.data import DataRow, TaskMetric, task_metric
from ptdeploy.parity.located import Located
from ptdeploy.parity.measure import HISTOGRAM_EDGES, Measured, bin_positions, measure
from ptdeploy.parity.quality import TOP1, Quality, judge, row_logits
from ptdeploy.parity.reference import Reference, Row
from ptdeploy.parity.thresholds import Overrides, Thresholds
from ptdeploy.runtime import CausalLM, Classifier, Engine

# A share of changed answers that agreement should not miss, and one of texts in a single class.
_COARSE, _ONE_CLASS = 0.15, 0.9


class CaseResult(msgspec.Struct, frozen=True):
    """One batch, compared at every real position; null where a number is not finite.

    `stopped` says why the engine gave no numbers at all: it failed on a request it must take.
    `rows` are the reference's rows it was made of, `histogram` how many logits differ by how much,
    in the bins of the report's `histogram_edges`.
    """

    name: str
    source: Source
    padding: Padding
    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    max_abs: float | None
    mean_abs: float | None
    cosine: float | None
    kl: float | None
    top1_agreement: float
    histogram: tuple[int, ...]
    passed: bool
    stopped: str | None = None


class GreedyResult(msgspec.Struct, frozen=True):
    """One row's greedy tokens, generated in a batch: how many agree before one departs.

    `stopped` says why the engine generated none.
    """

    length: int
    agreed: int
    total: int
    passed: bool
    stopped: str | None = None


class PositionError(msgspec.Struct, frozen=True):
    """The largest logits difference at tokens `first` to `last` of a row, over all cases."""

    first: int
    last: int
    max_abs: float | None


class Failing(msgspec.Struct, frozen=True):
    """The smallest input found that departs: its rows' lengths, its file, and how to run it."""

    lengths: tuple[int, ...]
    file: str
    command: str


class ParityReport(msgspec.Struct, frozen=True):
    """The outcome of a parity check. `bool(report.passed)` is what CI asks."""

    passed: bool
    target: str
    device: str
    precision: str
    reference: str
    thresholds: Thresholds | None
    largest_allowed: float | None
    cases: tuple[CaseResult, ...]
    greedy: tuple[GreedyResult, ...]
    texts_agreed: int
    texts_total: int
    quality: Quality | None
    quality_allowed: Quantization | None
    notes: tuple[str, ...]
    positions: tuple[PositionError, ...] = ()
    histogram_edges: tuple[float, ...] = ()
    data: TaskMetric | None = None
    located: Located | None = None
    failing: Failing | None = None

    @property
    def max_abs(self) -> float:
        return max((_worst(case.max_abs) for case in self.cases), default=0.0)

    @property
    def top1_agreement(self) -> float:
        return min((case.top1_agreement for case in self.cases), default=1.0)

    def summary(self) -> ParitySummary:
        quality = self.quality
        return ParitySummary(
            self.passed,
            len(self.cases),
            self.max_abs,
            self.top1_agreement if quality is None else quality.top1_agreement,
            self.reference,
            None if quality is None else quality.perplexity_ratio,
        )

    @property
    def runs(self) -> tuple[CaseResult | GreedyResult, ...]:
        """Everything that the engine was run on."""
        return *self.cases, *self.greedy

    @property
    def engine_failed(self) -> bool:
        """Whether the engine failed on a request that it must take."""
        return any(one.stopped for one in self.runs)

    def faults(self) -> list[str]:
        """Why the engine failed, each reason once, with how often and where first."""
        found: dict[str, list[str]] = {}
        for case in self.cases:
            if case.stopped:
                where = f"{case.name}, lengths {list(case.lengths)}"
                found.setdefault(case.stopped, []).append(where)
        for one in self.greedy:
            if one.stopped:
                where = f"greedy tokens of a row of {one.length}"
                found.setdefault(one.stopped, []).append(where)
        return [
            f"the engine failed in {len(where)} of {len(self.runs)} runs, first in {where[0]}: "
            f"{reason}"
            for reason, where in found.items()
        ]

    def failures(self) -> list[str]:
        """Where the engine failed and what departs, in words; cases on your own data first."""
        cases = sorted(self.cases, key=lambda case: case.source != "data")
        lines = self.faults()
        lines += [
            f"{case.name}, lengths {list(case.lengths)}: max abs {shown(case.max_abs)}, "
            f"KL {shown(case.kl)}, top-1 agreement {case.top1_agreement:.4f}"
            for case in cases
            if not case.passed and not case.stopped
        ]
        lines += [
            f"greedy tokens of a row of {one.length}: {one.agreed} of {one.total} agree"
            for one in self.greedy
            if not one.passed and not one.stopped
        ]
        if self.texts_agreed < self.texts_total:
            lines.append(
                f"tokenizer: {self.texts_total - self.texts_agreed} of {self.texts_total} texts "
                "give other token ids"
            )
        if self.data is not None and not self.data.passed:
            lines.append(
                f"{self.data.name} on the given data: {shown(self.data.engine)}"
                + (f", PEFT {shown(self.data.reference)}" if self.data.reference else "")
            )
        return lines + rounding_failures(self.quality, self.quality_allowed)


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
    rounded = overrides.rounding(stored)
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
    quality = judge(engine, reference, rounded.min_agreement) if rounded else None
    metric = _metric(engine, reference, data, alone, overrides)
    texts = len(reference.texts) + len(reference.pairs) + len(wanted)
    return ParityReport(
        passed=all(case.passed for case in cases)
        and all(one.passed for one in greedy)
        and agreed == texts
        and (metric is None or metric.passed)
        and not rounding_failures(quality, rounded),
        target=engine.manifest.target,
        device=engine.manifest.device,
        precision=engine.manifest.precision,
        reference=reference.made_by,
        thresholds=None if rounded else thresholds,
        largest_allowed=None if rounded else allowed,
        cases=tuple(cases),
        greedy=greedy,
        texts_agreed=agreed,
        texts_total=texts,
        quality=quality,
        quality_allowed=rounded,
        notes=(*notes, *quality_notes(quality)),
        positions=tuple(
            PositionError(first, last, found if np.isfinite(found) else None)
            for first, last, found in bin_positions(positions)
        ),
        histogram_edges=HISTOGRAM_EDGES,
        data=metric,
    )


def rounding_failures(quality: Quality | None, allowed: Quantization | None) -> list[str]:
    """Where an engine with rounded weights falls short of what its manifest asks for, in words."""
    if allowed is None:
        return []
    if quality is None:
        return ["the reference holds no text to judge rounded weights on"]
    lines = []
    # NaN compares false with everything, so each bound is written as what must hold.
    if not quality.top1_agreement >= allowed.min_agreement:
        lines.append(
            f"{quality.measured} {quality.top1_agreement:.4f} on {quality.judged_on}, "
            f"but {allowed.min_agreement} is asked for (--min-agreement)"
        )
    error, most = quality.logits_error, allowed.max_logits_error
    if error is not None and most is not None and not error <= most:
        lines.append(
            f"logits error {error:.4f} on {quality.judged_on}, "
            f"but at most {most} is asked for (--max-logits-error)"
        )
    ratio = quality.perplexity_ratio
    if ratio is not None and not ratio <= allowed.max_perplexity_ratio:
        lines.append(
            f"perplexity {ratio:.4f} times the reference's on {quality.judged_on}, "
            f"but at most {allowed.max_perplexity_ratio} is asked for (--max-perplexity-ratio)"
        )
    return lines


def quality_notes(quality: Quality | None) -> list[str]:
    """Where agreement alone would say little, in words."""
    if quality is None or quality.measured != TOP1:
        return []
    notes = []
    if quality.detectable is None or quality.detectable > _COARSE:
        share = "any number" if quality.detectable is None else f"{quality.detectable:.0%}"
        notes.append(
            f"agreement at {quality.positions} positions is a coarse measure: a fault that changes "
            f"{share} of the answers could pass it."
        )
    if quality.largest_share is not None and quality.largest_share >= _ONE_CLASS:
        notes.append(
            f"the reference finds one class in {quality.largest_share:.0%} of {quality.judged_on}: "
            + (
                "agreement says little, the logits error decides."
                if quality.logits_error is not None
                else "agreement says little."
            )
        )
    return notes


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


def shown(number: float | None) -> str:
    """A measure in words: NaN and infinity are named."""
    return "not finite" if number is None else f"{number:.3g}"


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


def _worst(number: float | None) -> float:
    return float("inf") if number is None else number


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
