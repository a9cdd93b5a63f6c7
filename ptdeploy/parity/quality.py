"""What rounding costs: top-1 agreement and perplexity against the reference, on text."""

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
from ptdeploy.task import Task


@dataclass(frozen=True)
class JudgedText:
    """The texts an engine is judged on, and in words where they are from."""

    rows: tuple[AskedRow, ...]
    source: str


class Quality(msgspec.Struct, frozen=True):
    """An engine beside the reference on the same text.

    `top1_agreement` is the share of `positions` where both find the same token or class likeliest.
    Perplexities are of the text's own next tokens; None for a classifier.
    """

    judged_on: str
    texts: int
    positions: int
    top1_agreement: float
    perplexity: float | None
    reference_perplexity: float | None

    @property
    def perplexity_ratio(self) -> float | None:
        if self.perplexity is None or self.reference_perplexity is None:
            return None
        return self.perplexity / self.reference_perplexity


def text_row(row: AskedRow, logits: NDArray[np.float32], task: Task) -> TextRow:
    """What logits say of a text: shape (classes,) for SEQ_CLS, else (tokens, classes or vocab)."""
    ids = row.ids
    scores = logits[None] if logits.ndim == 1 else logits
    nll = np.zeros(0, np.float32)
    if task is Task.CAUSAL_LM:
        before = scores[:-1].astype(np.float64)
        top = before.max(-1, keepdims=True)
        total = top[:, 0] + np.log(np.exp(before - top).sum(-1))
        nll = (total - before[np.arange(len(before)), ids[1:]]).astype(np.float32)
    return TextRow(ids, scores.argmax(-1).astype(np.int64), nll, row.type_ids)


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
    task = engine.manifest.task
    asked = [AskedRow(row.ids, "text", row.type_ids) for row in reference.judged]
    ours = [text_row(row, row_logits(engine, row), task) for row in asked]
    want = np.concatenate([row.top1 for row in reference.judged])
    got = np.concatenate([row.top1 for row in ours])
    causal = task is Task.CAUSAL_LM
    return Quality(
        reference.judged_on,
        len(ours),
        int(want.size),
        float((want == got).mean()),
        _perplexity(ours) if causal else None,
        _perplexity(reference.judged) if causal else None,
    )


def _perplexity(rows: Sequence[TextRow]) -> float:
    nll = np.concatenate([row.nll for row in rows])
    # Bounded so that a hopeless engine gives a number, not an overflow.
    return float(np.exp(min(float(nll.mean(dtype=np.float64)), 700.0))) if nll.size else 1.0
