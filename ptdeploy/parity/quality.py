"""What rounding costs: agreement and perplexity against the reference, on text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from ptdeploy.parity.cases import AskedRow
from ptdeploy.parity.reference import Reference, TextRow
from ptdeploy.runtime import Engine
from ptdeploy.runtime.engine import sigmoid
from ptdeploy.task import Head, Task


@dataclass(frozen=True)
class JudgedText:
    """The texts an engine is judged on, and in words where they are from."""

    rows: tuple[AskedRow, ...]
    source: str


TOP1, EXPLAINED = "top-1 agreement", "explained variance of the values"


class Quality(msgspec.Struct, frozen=True):
    """An engine beside the reference on the same text.

    `top1_agreement` is the share of `positions` where both find the same token or class likeliest.
    A head that chooses no one class has `explained` variance there instead, and `measured` says so.
    Perplexities are of the text's own next tokens; None for a classifier.
    """

    judged_on: str
    texts: int
    positions: int
    top1_agreement: float
    perplexity: float | None
    reference_perplexity: float | None
    measured: str = TOP1

    @property
    def perplexity_ratio(self) -> float | None:
        if self.perplexity is None or self.reference_perplexity is None:
            return None
        return self.perplexity / self.reference_perplexity


def text_row(
    row: AskedRow, logits: NDArray[np.float32], task: Task, head: Head = "softmax"
) -> TextRow:
    """What logits say of a text: shape (classes,) for SEQ_CLS, else (tokens, classes or vocab)."""
    ids = row.ids
    scores = logits[None] if logits.ndim == 1 else logits
    nll = np.zeros(0, np.float32)
    if task is Task.CAUSAL_LM:
        before = scores[:-1].astype(np.float64)
        top = before.max(-1, keepdims=True)
        total = top[:, 0] + np.log(np.exp(before - top).sum(-1))
        nll = (total - before[np.arange(len(before)), ids[1:]]).astype(np.float32)
    values = None if head == "softmax" else logits
    return TextRow(ids, scores.argmax(-1).astype(np.int64), nll, row.type_ids, values)


def explained(want: NDArray[np.floating], got: NDArray[np.floating], head: Head) -> float:
    """The share of the reference's variance over texts that the engine gives too, from 0 to 1.

    Shapes (texts, outputs); of a sigmoid's logits its probabilities count.
    """
    want, got = want.astype(np.float64), got.astype(np.float64)
    if head == "sigmoid":
        want, got = sigmoid(want), sigmoid(got)
    with np.errstate(invalid="ignore", over="ignore"):
        around = float(((want - want.mean(0)) ** 2).sum())
        off = float(((want - got) ** 2).sum())
    if not off > 0:
        return float(off == 0)
    return max(0.0, 1 - off / around) if around > 0 else 0.0


class _HasIds(Protocol):
    @property
    def ids(self) -> NDArray[np.int64]: ...
    @property
    def type_ids(self) -> NDArray[np.int64] | None: ...


def row_logits(engine: Engine, row: _HasIds) -> NDArray[np.float32]:
    """The engine's logits for one row alone."""
    types = None if row.type_ids is None else [row.type_ids]
    return engine.logits([row.ids], token_type_ids=types)[0]


def judge(engine: Engine, reference: Reference) -> Quality | None:
    """Run the engine on the reference's texts, each alone; None where the reference has none."""
    if not reference.judged:
        return None
    task, head = engine.manifest.task, engine.manifest.head
    asked = [AskedRow(row.ids, "text", row.type_ids) for row in reference.judged]
    ours = [text_row(row, row_logits(engine, row), task, head) for row in asked]
    want = np.concatenate([row.top1 for row in reference.judged])
    got = np.concatenate([row.top1 for row in ours])
    causal = task is Task.CAUSAL_LM
    agreement, measured = float((want == got).mean()), TOP1
    if head != "softmax":
        values = [_values(rows) for rows in (reference.judged, ours)]
        agreement, measured = explained(values[0], values[1], head), EXPLAINED
    return Quality(
        reference.judged_on,
        len(ours),
        int(want.size),
        agreement,
        _perplexity(ours) if causal else None,
        _perplexity(reference.judged) if causal else None,
        measured,
    )


def _values(rows: Sequence[TextRow]) -> NDArray[np.float32]:
    return np.stack([row.values for row in rows if row.values is not None])


def _perplexity(rows: Sequence[TextRow]) -> float:
    nll = np.concatenate([row.nll for row in rows])
    # Bounded so that a hopeless engine gives a number, not an overflow.
    return float(np.exp(min(float(nll.mean(dtype=np.float64)), 700.0))) if nll.size else 1.0
