"""What quantization costs on text: agreement, logits error and perplexity against the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from ptdeploy.bundle import Quantization
from ptdeploy.bundle.task import Head, Task
from ptdeploy.errors import EngineFault
from ptdeploy.parity.cases import AskedRow
from ptdeploy.parity.measure import finite
from ptdeploy.parity.reference import Reference, TextRow
from ptdeploy.progress import Progress
from ptdeploy.runtime import ENGINES, Engine
from ptdeploy.runtime.probabilities import sigmoid

# A model that hardly heeds the text varies less than quantizing its weights changes.
_LEAST_VARIATION = 0.2
# The same of a sigmoid's probabilities, and of a regression's numbers as a share of their size.
_LEAST_CHANCE, _LEAST_SHARE = 0.05, 0.02
# What an engine whose numbers are not finite is said to miss the reference by.
_HOPELESS = 1e30
_MISSED = 0.05
_PIECE = 64


@dataclass(frozen=True)
class EvaluationText:
    """The evaluation text of an engine, and in words where it is from."""

    rows: tuple[AskedRow, ...]
    source: str


TOP1, EXPLAINED = "top-1 agreement", "explained variance of the values"


class Quality(msgspec.Struct, frozen=True):
    """An engine beside the reference on the same text.

    `top1_agreement` is the share of `positions` where both find the same token or class likeliest.
    A head that chooses no one class has `explained` variance there instead, of the output where it
    is least, and `measured` says so.
    Perplexities are of the text's own next tokens; null for a classifier. `detectable` is the
    smallest share of changed answers that would miss the asked agreement in 19 of 20 evaluations of
    as many positions, null where none would. Of a classifier that chooses a class, `logits_error`
    is what the function of that name gives, and `largest_share` the share of positions where the
    reference finds its commonest class; else both are null. There `top1_agreement` and `detectable`
    are of the `clear` positions alone, and `near_ties` are the others whose answer changed.
    `rms_error` is the root mean square of a difference from the reference: of a classifier's
    logits, or of how surprising a causal model finds the text's next tokens, in nats. `rms_outputs`
    are those of each output, where a head that chooses no one class has several.
    `stopped` says why the engine gave no numbers of a text: the rest is then of NaN in their place.
    """

    evaluated_on: str
    texts: int
    positions: int
    top1_agreement: float
    perplexity: float | None
    reference_perplexity: float | None
    measured: str = TOP1
    logits_error: float | None = None
    largest_share: float | None = None
    detectable: float | None = None
    clear: int | None = None
    near_ties: int | None = None
    stopped: str | None = None
    rms_error: float | None = None
    rms_outputs: tuple[float | None, ...] | None = None

    @property
    def agreement_of_all(self) -> float:
        """The share of all positions where both agree, of a classifier with near ties too."""
        if self.clear is None or not self.positions:
            return self.top1_agreement
        changed = (1 - self.top1_agreement) * self.clear + (self.near_ties or 0)
        return 1 - changed / self.positions

    @property
    def perplexity_ratio(self) -> float | None:
        # A report from a file may say that a perplexity is 0, which none is.
        if self.perplexity is None or not self.reference_perplexity:
            return None
        return self.perplexity / self.reference_perplexity


def text_row(row: AskedRow, logits: NDArray[np.float32], task: Task) -> TextRow:
    """What logits say of a text: shape (classes,) for SEQ_CLS, else (tokens, classes or vocab)."""
    writes = ENGINES[task].writes
    scores = logits[None] if logits.ndim == 1 else logits
    nll = next_token_surprise(row.ids, scores) if writes else np.zeros(0, np.float32)
    kept = None if writes else np.ascontiguousarray(scores, np.float32)
    return TextRow(row.ids, scores.argmax(-1).astype(np.int64), nll, row.type_ids, kept)


def next_token_surprise(ids: NDArray[np.int64], logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """How surprising each token after the first is, in nats, float32 (tokens - 1,).

    `logits`, (tokens, vocabulary), are of the token after each one.
    """
    surprise = np.zeros(len(logits) - 1, np.float32)
    # In pieces: a long row of a large vocabulary would take gigabytes in float64.
    for start in range(0, surprise.size, _PIECE):
        before = logits[:-1][start : start + _PIECE].astype(np.float64)
        top = before.max(-1, keepdims=True)
        total = top[:, 0] + np.log(np.exp(before - top).sum(-1))
        next_ids = ids[1:][start : start + _PIECE]
        surprise[start : start + _PIECE] = total - before[np.arange(len(before)), next_ids]
    return surprise


def explained(
    want: NDArray[np.floating], got: NDArray[np.floating], head: Head
) -> NDArray[np.float64]:
    """The share of the reference's variance over texts that the engine gives too, of each output.

    Shapes (texts, outputs); of a sigmoid's logits its probabilities count. From 0 to 1. What hardly
    differs from text to text varies less than quantizing takes: a sigmoid's standard deviation is
    not taken for less than 0.05, that of a number not for less than a fiftieth of its size.
    """
    want, got = want.astype(np.float64), got.astype(np.float64)
    if head == "sigmoid":
        want, got = sigmoid(want), sigmoid(got)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        least = _LEAST_CHANCE if head == "sigmoid" else _LEAST_SHARE * np.sqrt((want**2).mean(0))
        around = np.maximum(((want - want.mean(0)) ** 2).mean(0), np.square(least))
        off = ((want - got) ** 2).mean(0)
        share = np.where(off == 0, 1.0, 1 - off / around)
    # What is not finite explains nothing.
    return np.asarray(np.where(share > 0, share, 0.0))


class _HasIds(Protocol):
    @property
    def ids(self) -> NDArray[np.int64]: ...
    @property
    def type_ids(self) -> NDArray[np.int64] | None: ...


def row_logits(engine: Engine, row: _HasIds) -> NDArray[np.float32]:
    """The engine's logits for one row alone."""
    types = None if row.type_ids is None else [row.type_ids]
    return engine.logits([row.ids], token_type_ids=types)[0]


def row_logits_or_nan(engine: Engine, row: _HasIds) -> tuple[NDArray[np.float32], str | None]:
    """The same; where the engine fails on the row, NaN of that shape, and why."""
    try:
        return row_logits(engine, row), None
    except EngineFault as error:
        shape = engine.logit_shape(engine.manifest, row.ids.size)
        return np.full(shape, np.nan, np.float32), error.problem


def evaluate(
    engine: Engine, reference: Reference, allowed: Quantization, progress: Progress
) -> Quality | None:
    """Run the engine on the reference's texts, each alone; None where the reference has none."""
    min_agreement = allowed.min_agreement
    if not reference.evaluation:
        return None
    task, head = engine.manifest.task, engine.manifest.prompt.head
    asked = [AskedRow(row.ids, "text", row.type_ids) for row in reference.evaluation]
    ours, stopped = [], None
    for row in progress.within(asked, "evaluation texts"):
        logits, why = row_logits_or_nan(engine, row)
        ours.append(text_row(row, logits, task))
        stopped = stopped or why
    want = np.concatenate([row.top1 for row in reference.evaluation])
    got = np.concatenate([row.top1 for row in ours])
    of = Quality(
        evaluated_on=reference.evaluated_on,
        texts=len(ours),
        positions=int(want.size),
        top1_agreement=float((want == got).mean()),
        perplexity=None,
        reference_perplexity=None,
        stopped=stopped,
    )
    if engine.writes:
        return msgspec.structs.replace(
            of,
            perplexity=_perplexity(ours),
            reference_perplexity=_perplexity(reference.evaluation),
            rms_error=_difference(_surprises(reference.evaluation), _surprises(ours)),
            detectable=detectable(of.positions, min_agreement),
        )
    pair = _logits(reference.evaluation), _logits(ours)
    if pair[0].shape == pair[1].shape:
        of = msgspec.structs.replace(of, rms_error=_difference(*pair))
    if head != "softmax":
        return _explained(of, pair, head)
    of = msgspec.structs.replace(
        of,
        largest_share=float(np.unique(want, return_counts=True)[1].max() / want.size),
        detectable=detectable(of.positions, min_agreement),
    )
    if pair[0].size < pair[1].size:
        return of
    is_clear = clear(pair[0], allowed.max_logits_error or 0.0)
    changed = want != got
    count = int(is_clear.sum())
    return msgspec.structs.replace(
        of,
        logits_error=logits_error(*pair),
        top1_agreement=1 - float(changed[is_clear].sum()) / count if count else 1.0,
        detectable=detectable(count, min_agreement),
        clear=count,
        near_ties=int(changed[~is_clear].sum()),
    )


def _explained(
    of: Quality, pair: tuple[NDArray[np.float32], NDArray[np.float32]], head: Head
) -> Quality:
    """The quality of a head that chooses no one class: that of the output it explains least of."""
    shares = explained(*pair, head)
    least = int(shares.argmin())
    measured = EXPLAINED if shares.size == 1 else f"{EXPLAINED} of output {least}"
    of = msgspec.structs.replace(of, top1_agreement=float(shares[least]), measured=measured)
    if shares.size == 1:
        return of
    columns = zip(*(side.T for side in pair), strict=True)
    each = tuple(_difference(want, got) for want, got in columns)
    return msgspec.structs.replace(of, rms_outputs=each)


def _logits(rows: Sequence[TextRow]) -> NDArray[np.float32]:
    """All positions' logits (positions, classes), of those rows that have them."""
    none = np.zeros((0, 0), np.float32)
    return np.concatenate([row.logits for row in rows if row.logits is not None] or [none])


def _surprises(rows: Sequence[TextRow]) -> NDArray[np.float32]:
    return np.concatenate([row.nll for row in rows])


def _difference(want: NDArray[np.float32], got: NDArray[np.float32]) -> float | None:
    """The root mean square difference; None if it is not finite."""
    if not want.size:
        return 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        return finite(_rms(want.astype(np.float64) - got))


def logits_error(want: NDArray[np.float32], got: NDArray[np.float32]) -> float:
    """By how much logits (positions, classes) miss the reference's, whatever class is likeliest.

    The larger of two: the difference over the logits' own size, and the difference's variation from
    position to position over the logits' variation, which is not taken for less than a fifth of
    their size. All are root mean squares, of logits less their mean over the classes, which changes
    no probability. An engine that answers all texts alike has an error of about 1, one whose
    answers have nothing to do with the reference's more.
    """
    wanted, given = (_shifted(side.astype(np.float64)) for side in (want, got))
    with np.errstate(invalid="ignore", over="ignore"):
        difference = given - wanted
        size = _rms(wanted)
        varies = max(_rms(wanted - wanted.mean(0)), _LEAST_VARIATION * size)
        apart, drift = _rms(difference), _rms(difference - difference.mean(0))
    if apart == 0:
        return 0.0
    error = max(apart / size, drift / varies) if size > 0 else math.inf
    return error if math.isfinite(error) else _HOPELESS


def clear(want: NDArray[np.float32], most: float) -> NDArray[np.bool_]:
    """Which positions' likeliest class leads by more than a logits error of `most` may close.

    `want` are the reference's logits (positions, classes). Elsewhere the two best classes are as
    good as tied: weights that are quantized as they should be may swap them.
    """
    if want.shape[1] < 2:
        return np.ones(len(want), np.bool_)
    wanted = want.astype(np.float64)
    best = np.sort(wanted, axis=-1)
    return np.asarray(best[:, -1] - best[:, -2] > most * _rms(_shifted(wanted)))


def detectable(positions: int, min_agreement: float) -> float | None:
    """The smallest share of changed answers that misses `min_agreement` 19 times of 20.

    Of so many positions, taken as independent of one another. None if nothing would be noticed.
    """
    if not positions:
        return None
    # A manifest is not trusted: its bound may be any number.
    min_agreement = min(max(min_agreement, 0.0), 1.0)
    allowed = min(int((1 - min_agreement) * positions) + 1, positions)
    while allowed >= 0 and not (positions - allowed) / positions >= min_agreement:
        allowed -= 1
    if allowed >= positions:
        return None
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if _at_most(allowed, positions, middle) > _MISSED:
            low = middle
        else:
            high = middle
    return high


def _at_most(count: int, of: int, probability: float) -> float:
    """The binomial distribution's cumulative probability."""
    yes, no = math.log(probability), math.log1p(-probability)
    return sum(
        math.exp(
            math.lgamma(of + 1)
            - math.lgamma(i + 1)
            - math.lgamma(of - i + 1)
            + i * yes
            + (of - i) * no
        )
        for i in range(count + 1)
    )


def _shifted(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    # A single score is no softmax's: its size counts.
    return scores if scores.shape[1] == 1 else scores - scores.mean(-1, keepdims=True)


def _rms(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.square(values).mean()))


def _perplexity(rows: Sequence[TextRow]) -> float:
    nll = _surprises(rows)
    # Bounded so that a hopeless engine gives a number, not an overflow.
    return float(np.exp(min(float(nll.mean(dtype=np.float64)), 700.0))) if nll.size else 1.0
