"""Classes for a text, or for each of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptdeploy.bundle import Bundle
from ptdeploy.errors import BundleError
from ptdeploy.runtime.batching import Row
from ptdeploy.runtime.engine import Engine, Inputs, softmax
from ptdeploy.runtime.tokenizer import Encoding, Tokenizer
from ptdeploy.targets import Session


@dataclass(frozen=True)
class Classification:
    """The likeliest class, and the probability of each class in the order of `manifest.labels`."""

    label: str
    index: int
    probability: float
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class TokenLabel:
    """A token, its place in the text (characters, end excluded), and its likeliest class."""

    token: str
    token_id: int
    start: int
    end: int
    label: str
    index: int
    probability: float


class _Labelling(Engine):
    """An engine whose logits are of the manifest's labels."""

    def __init__(self, bundle: Bundle, session: Session, tokenizer: Tokenizer | None) -> None:
        super().__init__(bundle, session, tokenizer)
        outputs, labels = self.manifest.outputs, self.manifest.labels
        if not labels or not outputs or outputs[0].shape[-1:] != (len(labels),):
            raise BundleError(
                f"{bundle.path}: its signature does not have one class for each of its labels.",
                "Compile the checkpoint again.",
            )

    def _parts(self, rows: Sequence[Row]) -> list[Sequence[Row]]:
        """The rows in batches that one run of the engine takes."""
        size = self.manifest.limits.max_batch or len(rows)
        return [rows[i : i + size] for i in range(0, len(rows), size)]


class Classifier(_Labelling):
    """An engine for SEQ_CLS."""

    def classify(
        self, inputs: Inputs, truncate: bool = False, batch_size: int = 16
    ) -> list[Classification]:
        """Classify texts or rows of token ids, one Classification each, in their order.

        Raises InputError if a text is empty or, without `truncate`, too long.
        """
        results = []
        for encodings, logits in _batches(self, self.encode(inputs, truncate), batch_size):
            for _, row in zip(encodings, softmax(logits), strict=True):
                index = int(row.argmax())
                results.append(
                    Classification(
                        self.manifest.labels[index], index, float(row[index]), tuple(row.tolist())
                    )
                )
        return results

    def _row_logits(self, rows: Sequence[Row]) -> list[NDArray[np.float32]]:
        return [row for part in self._parts(rows) for row in self._run_rows(part)[1]]


class TokenClassifier(_Labelling):
    """An engine for TOKEN_CLS."""

    def tag(
        self, inputs: Inputs, truncate: bool = False, batch_size: int = 16
    ) -> list[list[TokenLabel]]:
        """Label each token of each text; special tokens are left out.

        Raises InputError if a text is empty or, without `truncate`, too long.
        """
        results = []
        for encodings, logits in _batches(self, self.encode(inputs, truncate), batch_size):
            for encoding, row in zip(encodings, logits, strict=True):
                probabilities = softmax(row[: len(encoding.ids)])
                results.append(self._labels(encoding, probabilities))
        return results

    def _labels(self, encoding: Encoding, rows: NDArray[np.float64]) -> list[TokenLabel]:
        labels = []
        for i, row in enumerate(rows):
            if encoding.special[i]:
                continue
            index = int(row.argmax())
            labels.append(
                TokenLabel(
                    encoding.tokens[i] if encoding.tokens else str(encoding.ids[i]),
                    encoding.ids[i],
                    *encoding.offsets[i],
                    self.manifest.labels[index],
                    index,
                    float(row[index]),
                )
            )
        return labels

    def _row_logits(self, rows: Sequence[Row]) -> list[NDArray[np.float32]]:
        return [
            logits[: row.size]
            for part in self._parts(rows)
            for row, logits in zip(part, self._run_rows(part)[1], strict=True)
        ]


def _batches(
    engine: Engine, encodings: list[Encoding], size: int
) -> list[tuple[list[Encoding], NDArray[np.float32]]]:
    size = min(size, engine.manifest.limits.max_batch or size)
    parts = [encodings[i : i + size] for i in range(0, len(encodings), size)]
    return [
        (
            part,
            engine._run_rows(
                [np.asarray(e.ids, np.int64) for e in part], [e.type_ids for e in part]
            )[1],
        )
        for part in parts
    ]
