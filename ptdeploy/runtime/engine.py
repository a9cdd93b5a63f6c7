"""What every engine does, whatever its task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptdeploy.bundle import Bundle, Manifest
from ptdeploy.errors import InputError
from ptdeploy.runtime.batching import Batch, Row, embedded, pack, rows_of
from ptdeploy.runtime.tokenizer import Encoding, Tokenizer
from ptdeploy.targets import Session

Inputs = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]


class Engine(ABC):
    """A loaded bundle. Takes text (where the bundle has a tokenizer) or token ids."""

    def __init__(self, bundle: Bundle, session: Session, tokenizer: Tokenizer | None) -> None:
        self.bundle = bundle
        self.tokenizer = tokenizer
        self._session = session

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    def logits(
        self,
        input_ids: ArrayLike | Sequence[Sequence[int]],
        attention_mask: ArrayLike | None = None,
    ) -> list[NDArray[np.float32]]:
        """Scores before softmax, one array for each row, each as if the row ran alone.

        `input_ids` is rows of unequal length, or with `attention_mask` one array of shape (batch,
        sequence) padded on either side. Gives shape (classes,) for SEQ_CLS, (tokens, classes) for
        TOKEN_CLS and (tokens, vocabulary) for CAUSAL_LM, padding left out.
        Raises InputError if a row is empty, too long, or holds an id outside the vocabulary.
        """
        return self._row_logits(rows_of(input_ids, attention_mask, self.manifest.limits))

    def encode(self, inputs: Inputs, truncate: bool = False) -> list[Encoding]:
        """Tokenise text, or wrap token ids, one Encoding for each row."""
        if isinstance(inputs, str):
            inputs = [inputs]
        if any(isinstance(item, bytes | bytearray) for item in (inputs, *inputs)):
            raise InputError("The text is bytes, not a string.", "Decode it: text.decode('utf-8').")
        texts = [item for item in inputs if isinstance(item, str)]
        if texts and len(texts) == len(inputs):
            return [self._encode_text(text, truncate) for text in texts]
        rows = rows_of(inputs, None, self.manifest.limits, truncate)
        return [
            Encoding(row.tolist(), [0] * row.size, [], [(0, 0)] * row.size, [False] * row.size)
            for row in rows
        ]

    def _encode_text(self, text: str, truncate: bool) -> Encoding:
        if self.tokenizer is None:
            raise InputError(
                f"{self.bundle.path}: was compiled without a tokenizer, so it takes token ids only."
            )
        limit = self.manifest.limits.max_sequence
        encoding = self.tokenizer.encode(text)
        if not encoding.ids:
            raise InputError(
                "The text is empty: an engine needs at least one token.", "Give it some text."
            )
        if len(encoding.ids) > limit:
            if not truncate:
                raise InputError(
                    f"The text has {len(encoding.ids)} tokens, but at most {limit} fit beside the "
                    f"virtual tokens: {text[:40]!r}...",
                    "Shorten it, or cut it with truncate=True (--truncate).",
                )
            encoding = self.tokenizer.encode_truncated(text, limit)
        return embedded(encoding, self.manifest.limits)

    def _run_rows(
        self, rows: Sequence[Row], type_ids: Sequence[Sequence[int]] | None = None
    ) -> tuple[Batch, NDArray[np.float32]]:
        """Run rows as one right-padded batch through a program without past KV."""
        batch = pack(rows)
        feed: dict[str, NDArray[Any]] = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
        }
        if any(spec.name == "token_type_ids" for spec in self.manifest.inputs):
            segments = [np.asarray(row, np.int64) for row in type_ids or []]
            feed["token_type_ids"] = (
                pack(segments).input_ids if segments else np.zeros_like(batch.input_ids)
            )
        return batch, self._session.run(feed)["logits"]

    @abstractmethod
    def _row_logits(self, rows: Sequence[Row]) -> list[NDArray[np.float32]]:
        """Logits of checked rows, padding left out."""


def one_row(inputs: str | Sequence[int]) -> Inputs:
    """One text, or one row's token ids, as `encode` takes them."""
    return inputs if isinstance(inputs, str | bytes) else [list(inputs)]


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities over the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    weights = np.exp(shifted)
    probabilities: NDArray[np.float64] = weights / weights.sum(axis=-1, keepdims=True)
    return probabilities
