"""Classes, or numbers, for a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptdeploy.arguments import MOST, checked, flag, whole
from ptdeploy.bundle import Manifest
from ptdeploy.bundle.signature import BATCH
from ptdeploy.errors import InputError
from ptdeploy.printable import printable
from ptdeploy.runtime.batching import Ids
from ptdeploy.runtime.engine import Inputs, Metric, finite, sigmoid, softmax
from ptdeploy.runtime.labelling import Labelling, TypeIds, classifier_problems


@dataclass(frozen=True)
class Classification:
    """The likeliest class, and the probability of each class in the order of the prompt's labels.

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
    """The number that a text gives, and all of them in the order of the prompt's labels."""

    value: float
    values: tuple[float, ...]


class Classifier(Labelling):
    """An engine for SEQ_CLS."""

    one_answer = True
    heads = ("softmax", "sigmoid", "regression")

    @classmethod
    def _own_problems(cls, manifest: Manifest) -> Iterator[str]:
        return classifier_problems(manifest, (BATCH,))

    @property
    def metric(self) -> Metric:
        return "mean squared error" if self.prompt.info.head == "regression" else "accuracy"

    def label_problem(self, given: Any, tokens: int) -> str:
        several = self.prompt.info.head == "sigmoid"
        if not several and (isinstance(given, list) or given is None):
            return "its label is a list, but a text has one class."
        return ""

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
        head, names = self.prompt.info.head, self.prompt.info.labels
        if head == "regression":
            raise InputError(
                f"{self.bundle.path}: its head is a regression, and gives no classes.",
                "Ask regress() for its values.",
            )
        results = []
        encodings = self.encode(inputs, truncate, token_type_ids)
        for part, logits in self._batches(encodings, batch_size):
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
        if self.prompt.info.head != "regression":
            raise InputError(
                f"{self.bundle.path}: its head is a {self.prompt.info.head} over classes, no "
                "regression.",
                "Ask classify(), or compile with --head regression.",
            )
        encodings = self.encode(inputs, truncate, token_type_ids)
        return [
            Regression(float(row[0]), tuple(row.tolist()))
            for _, logits in self._batches(encodings, batch_size)
            for row in finite(logits)
        ]

    def records(self, inputs: Inputs, truncate: bool, token_type_ids: TypeIds) -> list[Any]:
        names, head = self.prompt.info.labels, self.prompt.info.head
        if head == "regression":
            return [
                {"value": one.value, "values": dict(zip(names, one.values, strict=True))}
                for one in self.regress(inputs, truncate, token_type_ids=token_type_ids)
            ]
        return [
            {
                "label": one.label,
                "probability": one.probability,
                **({"labels": list(one.labels)} if head == "sigmoid" else {}),
                "probabilities": dict(zip(names, one.probabilities, strict=True)),
            }
            for one in self.classify(inputs, truncate, token_type_ids=token_type_ids)
        ]

    def lines(self, record: Any) -> list[str]:
        if "values" in record:
            values = record["values"].items()
            several = len(values) > 1
            words = [f"{printable(n)} {v:.6g}" if several else f"{v:.6g}" for n, v in values]
        else:
            ranked = sorted(record["probabilities"].items(), key=lambda item: -item[1])
            words = [f"{printable(label)} {probability:.3f}" for label, probability in ranked]
        return ["  ".join(words)]

    def _row_logits(
        self, rows: Sequence[Ids], segments: Sequence[Ids] | None = None
    ) -> list[NDArray[np.float32]]:
        return [row for _, logits in self._parts(rows, segments) for row in logits]
