"""An engine against a reference, the thresholds, and the report."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from ptdeploy.bundle import ParitySummary, Quantization
from ptdeploy.parity.cases import batches, pad
from ptdeploy.parity.quality import Quality, judge
from ptdeploy.parity.reference import Reference, Row
from ptdeploy.runtime import CausalLM, Engine


class Thresholds(msgspec.Struct, frozen=True):
    """What a precision that rounds no weights may cost.

    A logits difference may reach `max_abs` + `relative` times the largest reference logit; `kl` is
    in nats. Top-1 and greedy tokens must agree wherever the reference's own margin is larger than
    twice that difference: below it either token is as right.
    """

    max_abs: float
    relative: float
    cosine: float
    kl: float


THRESHOLDS = {
    "fp32": Thresholds(max_abs=1e-5, relative=1e-5, cosine=0.99999, kl=1e-6),
    "fp16": Thresholds(max_abs=1e-2, relative=1e-2, cosine=0.999, kl=1e-3),
}
# Rounded weights are judged by what they do to text; the cases only have to be finite.
_ROUNDED = Thresholds(max_abs=math.inf, relative=0, cosine=-1, kl=math.inf)


class CaseResult(msgspec.Struct, frozen=True):
    """One batch, compared at every real position."""

    name: str
    lengths: tuple[int, ...]
    max_abs: float
    mean_abs: float
    cosine: float
    kl: float
    top1_agreement: float
    passed: bool


class GreedyResult(msgspec.Struct, frozen=True):
    """One row's greedy tokens, generated in a batch: how many agree before one departs."""

    length: int
    agreed: int
    total: int
    passed: bool


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

    @property
    def max_abs(self) -> float:
        return max(case.max_abs for case in self.cases)

    @property
    def top1_agreement(self) -> float:
        return min(case.top1_agreement for case in self.cases)

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

    def failures(self) -> list[str]:
        """What departs, in words."""
        lines = [
            f"{case.name}, lengths {list(case.lengths)}: max abs {case.max_abs:.3g}, "
            f"KL {case.kl:.3g}, top-1 agreement {case.top1_agreement:.4f}"
            for case in self.cases
            if not case.passed
        ]
        lines += [
            f"greedy tokens of a row of {one.length}: {one.agreed} of {one.total} agree"
            for one in self.greedy
            if not one.passed
        ]
        if self.texts_agreed < self.texts_total:
            lines.append(
                f"tokenizer: {self.texts_total - self.texts_agreed} of {self.texts_total} texts "
                "give other token ids"
            )
        return lines + rounding_failures(self.quality, self.quality_allowed)


def compare(engine: Engine, reference: Reference, notes: Sequence[str] = ()) -> ParityReport:
    """Run every case through the engine and hold it against the reference's rows alone."""
    rounded = engine.manifest.quantization
    thresholds = _ROUNDED if rounded else THRESHOLDS[engine.manifest.precision]
    scale = max(float(np.abs(row.logits).max()) for row in reference.rows)
    allowed = thresholds.max_abs + thresholds.relative * scale
    cases = []
    most = engine.manifest.limits.max_batch or len(reference.rows)
    for case in batches(len(reference.rows)):
        if len(case.rows) > most:
            continue
        rows = [reference.rows[i] for i in case.rows]
        logits = engine.logits(*pad([row.ids for row in rows], case.padding))
        cases.append(_measure(case.name, rows, logits, thresholds, allowed))
    greedy = _compare_greedy(engine, reference, allowed) if isinstance(engine, CausalLM) else ()
    agreed = _texts_agreed(engine, reference)
    if reference.padded_departure is not None and reference.padded_departure > allowed:
        notes = (
            *notes,
            "PEFT's own left-padded batch departs from its rows alone by "
            f"{reference.padded_departure:.2g}; the reference here is each row alone.",
        )
    quality = judge(engine, reference) if rounded else None
    return ParityReport(
        passed=all(case.passed for case in cases)
        and all(one.passed for one in greedy)
        and agreed == len(reference.texts)
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
        texts_total=len(reference.texts),
        quality=quality,
        quality_allowed=rounded,
        notes=tuple(notes),
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
            f"top-1 agreement {quality.top1_agreement:.4f} on {quality.judged_on}, "
            f"but {allowed.min_agreement} is asked for (--min-agreement)"
        )
    ratio = quality.perplexity_ratio
    if ratio is not None and not ratio <= allowed.max_perplexity_ratio:
        lines.append(
            f"perplexity {ratio:.4f} times the reference's on {quality.judged_on}, "
            f"but at most {allowed.max_perplexity_ratio} is asked for (--max-perplexity-ratio)"
        )
    return lines


def _measure(
    name: str,
    rows: Sequence[Row],
    logits: Sequence[NDArray[np.float32]],
    thresholds: Thresholds,
    allowed: float,
) -> CaseResult:
    want = np.concatenate([_positions(row.logits) for row in rows]).astype(np.float64)
    got = np.concatenate(
        [_positions(a)[-len(_positions(row.logits)) :] for row, a in zip(rows, logits, strict=True)]
    ).astype(np.float64)
    difference = np.abs(want - got)
    max_abs = float(difference.max())
    cosine = float(_cosine(want, got).min())
    kl = float(_kl(want, got).max())
    ordered = np.sort(want, axis=-1)
    clear = ordered[:, -1] - ordered[:, -2] > 2 * allowed if want.shape[1] > 1 else np.ones(0, bool)
    agree = want.argmax(-1) == got.argmax(-1)
    # NaN compares false with everything, so each bound is written as what must hold.
    passed = (
        max_abs <= allowed
        and cosine >= thresholds.cosine
        and kl <= thresholds.kl
        and bool(agree[clear].all() if clear.size else True)
    )
    return CaseResult(
        name,
        tuple(int(row.ids.size) for row in rows),
        max_abs,
        float(difference.mean()),
        cosine,
        kl,
        float(agree.mean()),
        passed,
    )


def _compare_greedy(
    engine: CausalLM, reference: Reference, allowed: float
) -> tuple[GreedyResult, ...]:
    if not reference.greedy:
        return ()
    # One batch of unequal rows, so that batching is compared too; as many steps as all have.
    steps = min(one.tokens.size for one in reference.greedy)
    chosen = reference.greedy[: engine.manifest.limits.max_batch]
    rows = engine.generate(
        [one.ids.tolist() for one in chosen],
        steps,
        do_sample=False,
        min_new_tokens=0,
        repetition_penalty=1.0,
        eos_token_ids=(),
    )
    results = []
    for one, row in zip(chosen, rows, strict=True):
        departs = np.flatnonzero(one.tokens[:steps] != np.asarray(row.token_ids))
        agreed = int(departs[0]) if departs.size else steps
        tie = bool(departs.size) and float(one.margins[agreed]) <= 2 * allowed
        results.append(GreedyResult(int(one.ids.size), agreed, steps, agreed == steps or tie))
    return tuple(results)


def _texts_agreed(engine: Engine, reference: Reference) -> int:
    if engine.tokenizer is None:
        return 0
    return sum(
        tuple(engine.tokenizer.encode(text).ids) == ids
        for text, ids in zip(reference.texts, reference.text_ids, strict=True)
    )


def _positions(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    return logits[None] if logits.ndim == 1 else logits


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    result: NDArray[np.float64] = (a * b).sum(-1) / np.where(norms == 0, 1, norms)
    return result


def _kl(want: NDArray[np.float64], got: NDArray[np.float64]) -> NDArray[np.float64]:
    p, q = _log_softmax(want), _log_softmax(got)
    result: NDArray[np.float64] = (np.exp(p) * (p - q)).sum(-1)
    return result


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result
