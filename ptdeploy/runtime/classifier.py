"""Classes for a text, or for each of its tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptdeploy.arguments import MOST, checked, flag, whole
from ptdeploy.errors import InputError
from ptdeploy.runtime.batching import Row
from ptdeploy.runtime.engine import Engine, Inputs, finite, sigmoid, softmax
from ptdeploy.runtime.tokenizer import Encoding

TypeIds = ArrayLike | Sequence[Sequence[int]] | None


@dataclass(frozen=True)
class Classification:
    """The likeliest class, and the probability of each class in the order of `manifest.labels`.

    `labels` are all classes that are true. Where the head is a sigmoid they are those of at least
    0.5, none or several, and each probability stands by itself; else it is the likeliest one.
    """

    label: str
    index: int
    probability: float
    probabilities: tuple[float, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Regression:
    """The number that a text gives, and all of them in the order of `manifest.labels`."""

    value: float
    values: tuple[float, ...]


@dataclass(frozen=True)
class TokenLabel:
    """A token, its place in the text (characters, end excluded), and its likeliest class.

    `sequence` is 1 for a token of the second text of a pair, whose places are in that one.
    """

    token: str
    token_id: int
    start: int
    end: int
    label: str
    index: int
    probability: float
    sequence: int = 0


class _Labelling(Engine):
    """An engine whose logits are of the manifest's labels."""

    def _parts(
        self, rows: Sequence[Row], segments: Sequence[Row] | None
    ) -> Iterator[tuple[Sequence[Row], NDArray[np.float32]]]:
        """The rows in batches that one run of the engine takes, and what it gives for each."""
        size = self.manifest.limits.max_batch or len(rows)
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            types = None if segments is None else segments[part]
            yield rows[part], self._run_rows(rows[part], types)[1]


class Classifier(_Labelling):
    """An engine for SEQ_CLS."""

    @checked(truncate=flag, batch_size=whole(1, MOST))
    def classify(
        self,
        inputs: Inputs,
        truncate: bool = False,
        batch_size: int = 16,
        token_type_ids: TypeIds = None,
    ) -> list[Classification]:
        """Classify texts, pairs of texts or rows of token ids, one Classification each, in order.

        A pair is a tuple in the list: `classify([("text", "pair")])`. `token_type_ids` are the
        segments of rows of token ids, all 0 unless given.
        Raises InputError if a text is empty or, without `truncate`, too long, if the model has no
        such segments, or if its head is a regression.
        """
        head, names = self.manifest.head, self.manifest.labels
        if head == "regression":
            raise InputError(
                f"{self.bundle.path}: its head is a regression, and gives no classes.",
                "Ask regress() for its values.",
            )
        results = []
        encodings = self.encode(inputs, truncate, token_type_ids)
        for part, logits in _batches(self, encodings, batch_size):
            rows = sigmoid(finite(logits)) if head == "sigmoid" else softmax(finite(logits))
            for _, row in zip(part, rows, strict=True):
                index = int(row.argmax())
                chosen = np.flatnonzero(row >= 0.5) if head == "sigmoid" else [index]
                results.append(
                    Classification(
                        names[index],
                        index,
                        float(row[index]),
                        tuple(row.tolist()),
                        tuple(names[i] for i in chosen),
                    )
                )
        return results

    @checked(truncate=flag, batch_size=whole(1, MOST))
    def regress(
        self,
        inputs: Inputs,
        truncate: bool = False,
        batch_size: int = 16,
        token_type_ids: TypeIds = None,
    ) -> list[Regression]:
        """The numbers that texts, pairs of texts or rows of token ids give, in their order.

        Inputs are those of `classify`. Raises InputError as that does, or if the head's logits are
        scores of classes.
        """
        if self.manifest.head != "regression":
            raise InputError(
                f"{self.bundle.path}: its head is a {self.manifest.head} over classes, no "
                "regression.",
                "Ask classify(), or compile with --head regression.",
            )
        encodings = self.encode(inputs, truncate, token_type_ids)
        return [
            Regression(float(row[0]), tuple(row.tolist()))
            for _, logits in _batches(self, encodings, batch_size)
            for row in finite(logits)
        ]

    def _row_logits(
        self, rows: Sequence[Row], segments: Sequence[Row] | None = None
    ) -> list[NDArray[np.float32]]:
        return [row for _, logits in self._parts(rows, segments) for row in logits]


class TokenClassifier(_Labelling):
    """An engine for TOKEN_CLS."""

    @checked(truncate=flag, batch_size=whole(1, MOST))
    def tag(
        self,
        inputs: Inputs,
        truncate: bool = False,
        batch_size: int = 16,
        token_type_ids: TypeIds = None,
    ) -> list[list[TokenLabel]]:
        """Label each token of each text or pair of texts; special tokens are left out.

        Inputs and errors are those of `Classifier.classify`.
        """
        results = []
        encodings = self.encode(inputs, truncate, token_type_ids)
        for part, logits in _batches(self, encodings, batch_size):
            for encoding, row in zip(part, logits, strict=True):
                probabilities = softmax(finite(row[: len(encoding.ids)]))
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
                    1 if encoding.sequences and encoding.sequences[i] == 1 else 0,
                )
            )
        return labels

    def _row_logits(
        self, rows: Sequence[Row], segments: Sequence[Row] | None = None
    ) -> list[NDArray[np.float32]]:
        return [
            one[: row.size]
            for part, logits in self._parts(rows, segments)
            for row, one in zip(part, logits, strict=True)
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
                [np.asarray(e.ids, np.int64) for e in part],
                [np.asarray(e.type_ids, np.int64) for e in part],
            )[1],
        )
        for part in parts
    ]
