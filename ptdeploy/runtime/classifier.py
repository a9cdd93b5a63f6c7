"""Classes, or numbers, for a text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptdeploy.arguments import MOST, checked, flag, whole
from ptdeploy.bundle import Manifest, PromptInfo
from ptdeploy.bundle.signature import BATCH
from ptdeploy.errors import InputError
from ptdeploy.printable import printable
from ptdeploy.runtime.engine import Inputs, Metric, sigmoid, softmax
from ptdeploy.runtime.labelling import BATCH_SIZE, Labelling, TypeIds, classifier_problems
from ptdeploy.runtime.prompt_choice import DEFAULT, Chosen, PromptChoice, prompt_choice


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

    @checked(truncate=flag, batch_size=whole(1, MOST), prompt=prompt_choice)
    def classify(
        self,
        inputs: Inputs,
        truncate: bool = False,
        batch_size: int = BATCH_SIZE,
        token_type_ids: TypeIds = None,
        prompt: PromptChoice = DEFAULT,
    ) -> list[Classification]:
        """Classify texts, pairs of texts or rows of token ids, one Classification each, in order.

        A pair is a tuple in the list: `classify([("text", "pair")])`. `token_type_ids` are the
        segments of rows of token ids, all 0 unless given.
        Raises InputError if a text is empty or, without `truncate`, too long, if the model has no
        such segments, if there is no such prompt, or if a row's head is a regression.
        """
        with self._store.held(prompt) as chosen:
            self._refuse_heads(chosen, regression=True)
            return [
                classification(one.info, logits)
                for _, one, logits in self._answers(
                    inputs, chosen, truncate, token_type_ids, batch_size
                )
            ]

    @checked(truncate=flag, batch_size=whole(1, MOST), prompt=prompt_choice)
    def regress(
        self,
        inputs: Inputs,
        truncate: bool = False,
        batch_size: int = BATCH_SIZE,
        token_type_ids: TypeIds = None,
        prompt: PromptChoice = DEFAULT,
    ) -> list[Regression]:
        """The numbers that texts, pairs of texts or rows of token ids give, in their order.

        Inputs are those of `classify`. Raises InputError as that does, or if the head's logits are
        scores of classes.
        """
        with self._store.held(prompt) as chosen:
            self._refuse_heads(chosen, regression=False)
            return [
                Regression(float(logits[0]), tuple(logits.tolist()))
                for _, _, logits in self._answers(
                    inputs, chosen, truncate, token_type_ids, batch_size
                )
            ]

    def _refuse_heads(self, chosen: Chosen, regression: bool) -> None:
        """Raises InputError, naming the first, if a head is a regression, or if one is none."""
        for one in chosen.prompts:
            if one is None or (one.info.head == "regression") != regression:
                continue
            where = f"{self.bundle.path}: the prompt {one.name!r}: its head is a"
            if regression:
                raise InputError(
                    f"{where} regression, and gives no classes.", "Ask regress() for its values."
                )
            raise InputError(
                f"{where} {one.info.head} over classes, no regression.",
                "Ask classify(), or compile with --head regression.",
            )

    def records(
        self,
        inputs: Inputs,
        truncate: bool,
        token_type_ids: TypeIds,
        prompt: PromptChoice = DEFAULT,
    ) -> list[Any]:
        with self._store.held(prompt) as chosen:
            return [
                _record(one.info, logits)
                for _, one, logits in self._answers(inputs, chosen, truncate, token_type_ids)
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


def classification(info: PromptInfo, logits: NDArray[np.float32]) -> Classification:
    """What one row's logits (labels,) say under its prompt's head, a softmax or a sigmoid."""
    several = info.head == "sigmoid"
    row = sigmoid(logits) if several else softmax(logits)
    index = int(row.argmax())
    true = np.flatnonzero(row >= 0.5) if several else [index]
    names = info.labels
    return Classification(
        names[index],
        index,
        float(row[index]),
        tuple(row.tolist()),
        tuple(names[i] for i in true),
    )


def _record(info: PromptInfo, logits: NDArray[np.float32]) -> dict[str, Any]:
    if info.head == "regression":
        values = dict(zip(info.labels, logits.tolist(), strict=True))
        return {"value": float(logits[0]), "values": values}
    one = classification(info, logits)
    return {
        "label": one.label,
        "probability": one.probability,
        **({"labels": list(one.labels)} if info.head == "sigmoid" else {}),
        "probabilities": dict(zip(info.labels, one.probabilities, strict=True)),
    }
