"""Classes, or numbers, for a text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ptdeploy.arguments import MOST, checked, flag, whole
from ptdeploy.bundle import Manifest, PromptInfo
from ptdeploy.errors import InputError
from ptdeploy.printable import printable
from ptdeploy.runtime.engine import Metric
from ptdeploy.runtime.labelling import BATCH_SIZE, Labelling, TypeIds, classifier_problems
from ptdeploy.runtime.probabilities import finite, sigmoid, softmax
from ptdeploy.runtime.prompt_choice import DEFAULT, Chosen, PromptChoice, prompt_choice
from ptdeploy.runtime.prompts import Prompt
from ptdeploy.runtime.row_encoder import Inputs
from ptdeploy.runtime.tokenizer import Encoding

_T = TypeVar("_T")


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
    asked_by = ("classify", "regress")
    heads = ("softmax", "sigmoid", "regression")

    @classmethod
    def _own_problems(cls, manifest: Manifest) -> Iterator[str]:
        return classifier_problems(manifest, per_token=False)

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
        with self._held(prompt) as chosen:
            self._refuse_heads(chosen, regression=True)
            answers = self._answers(inputs, chosen, truncate, token_type_ids, batch_size)
            return _in_order(answers, _classifications)

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
        with self._held(prompt) as chosen:
            self._refuse_heads(chosen, regression=False)
            answers = self._answers(inputs, chosen, truncate, token_type_ids, batch_size)
            return _in_order(answers, _regressions)

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
        with self._held(prompt) as chosen:
            answers = self._answers(inputs, chosen, truncate, token_type_ids)
            return _in_order(answers, _records)

    def lines(self, record: Any) -> list[str]:
        if "values" in record:
            values = record["values"].items()
            several = len(values) > 1
            words = [f"{printable(n)} {v:.6g}" if several else f"{v:.6g}" for n, v in values]
        else:
            ranked = sorted(record["probabilities"].items(), key=lambda item: -item[1])
            words = [f"{printable(label)} {probability:.3f}" for label, probability in ranked]
        return ["  ".join(words)]


def _in_order(
    answers: Iterable[tuple[Encoding, Prompt, NDArray[np.float32]]],
    answer: Callable[[PromptInfo, NDArray[np.float32]], list[_T]],
) -> list[_T]:
    """What `answer` makes of the logits (rows, labels) of each prompt's rows, in the rows' order.

    Raises EngineFault unless all logits are finite.
    """
    rows: dict[Prompt, list[tuple[int, NDArray[np.float32]]]] = {}
    for place, (_, prompt, logits) in enumerate(answers):
        rows.setdefault(prompt, []).append((place, logits))
    found: dict[int, _T] = {}
    for prompt, own in rows.items():
        logits = finite(np.stack([one for _, one in own]))
        for (place, _), one in zip(own, answer(prompt.info, logits), strict=True):
            found[place] = one
    return [found[place] for place in range(len(found))]


def _classifications(info: PromptInfo, logits: NDArray[np.float32]) -> list[Classification]:
    several, names = info.head == "sigmoid", info.labels
    results = []
    for row in sigmoid(logits) if several else softmax(logits):
        index = int(row.argmax())
        true = np.flatnonzero(row >= 0.5) if several else [index]
        results.append(
            Classification(
                names[index],
                index,
                float(row[index]),
                tuple(row.tolist()),
                tuple(names[i] for i in true),
            )
        )
    return results


def _regressions(info: PromptInfo, logits: NDArray[np.float32]) -> list[Regression]:
    return [Regression(row[0], tuple(row)) for row in logits.tolist()]


def _records(info: PromptInfo, logits: NDArray[np.float32]) -> list[dict[str, Any]]:
    names = info.labels
    if info.head == "regression":
        return [
            {"value": one.value, "values": dict(zip(names, one.values, strict=True))}
            for one in _regressions(info, logits)
        ]
    return [
        {
            "label": one.label,
            "probability": one.probability,
            **({"labels": list(one.labels)} if info.head == "sigmoid" else {}),
            "probabilities": dict(zip(names, one.probabilities, strict=True)),
        }
        for one in _classifications(info, logits)
    ]
