"""The reference: what PEFT on PyTorch gives for each row alone.

`peft.py` computes it, `store.py` writes it into a bundle and reads it back, `texts.py` chooses the
texts in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ptdeploy.bundle.precision import Thresholds
from ptdeploy.parity.cases import BatchCase, Source, batches


@dataclass(frozen=True)
class ReferenceRow:
    """A row's token ids and reference logits, at its last `len(logits)` positions in token tasks.

    `logits` has shape (classes,) for SEQ_CLS and (positions, classes or vocabulary) otherwise.
    `type_ids` is the segment of each token, all 0 where None. `without_prompt` are the logits of
    the same model without its prompt at the same positions: of every row where weights are
    quantized, and of a few of a model that writes; else None.
    """

    ids: NDArray[np.int64]
    logits: NDArray[np.float32]
    source: Source = "random"
    type_ids: NDArray[np.int64] | None = None
    without_prompt: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Greedy:
    """A row's greedy continuation, and by how much each token's score beat the second one's."""

    ids: NDArray[np.int64]
    tokens: NDArray[np.int64]
    margins: NDArray[np.float32]


@dataclass(frozen=True)
class TextRow:
    """An evaluation text: its ids, and the reference's answer at each position.

    A quantized engine is evaluated on them.

    `top1` int64 (positions,) is the likeliest token or class, one for SEQ_CLS. `nll` float32
    (tokens - 1,) is how surprising each next token was, in nats; empty but for CAUSAL_LM. `logits`
    float32 (positions, classes) are there for classifiers: a vocabulary's would be too many.
    """

    ids: NDArray[np.int64]
    top1: NDArray[np.int64]
    nll: NDArray[np.float32]
    type_ids: NDArray[np.int64] | None = None
    logits: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Reference:
    """What an engine must give, in which cases, and within what. `made_by` says what computed it.

    `evaluation` are the evaluation texts, and `evaluated_on` says where they are from. `text_ids`
    are what transformers makes of `texts`; of `pairs` it makes `pair_ids`, and the segments
    `pair_type_ids`. `base_greedy` is how the same model without its prompt continues a row.
    """

    rows: tuple[ReferenceRow, ...] = field(repr=False)
    greedy: tuple[Greedy, ...] = field(repr=False)
    cases: tuple[BatchCase, ...] = field(repr=False)
    thresholds: Thresholds
    texts: tuple[str, ...] = ()
    text_ids: tuple[tuple[int, ...], ...] = ()
    made_by: str = ""
    padded_mismatch: float | None = None
    evaluation: tuple[TextRow, ...] = field(repr=False, default=())
    evaluated_on: str = ""
    pairs: tuple[tuple[str, str], ...] = ()
    pair_ids: tuple[tuple[int, ...], ...] = ()
    pair_type_ids: tuple[tuple[int, ...], ...] = ()
    base_greedy: Greedy | None = field(repr=False, default=None)

    def first(self, count: int | None, max_batch: int | None) -> Reference:
        """With its first rows alone, and the cases of those; all of it without a count."""
        if count is None or count >= len(self.rows):
            return self
        rows = self.rows[:count]
        return replace(self, rows=rows, cases=batches([row.source for row in rows], max_batch))

    def with_data(self, rows: Sequence[ReferenceRow], max_batch: int | None) -> Reference:
        """With the user's own rows behind its own, and their cases behind its cases."""
        together = (*self.rows, *rows)
        cases = batches([row.source for row in together], max_batch)
        own = (case for case in cases if case.source == "data")
        return replace(self, rows=together, cases=(*self.cases, *own))
