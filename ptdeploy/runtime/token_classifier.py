"""A class for each token of a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptdeploy.arguments import MOST, checked, flag, whole
from ptdeploy.bundle import Manifest
from ptdeploy.printable import printable
from ptdeploy.runtime.labelling import BATCH_SIZE, Labelling, TypeIds, classifier_problems
from ptdeploy.runtime.probabilities import finite, softmax
from ptdeploy.runtime.prompt_choice import DEFAULT, PromptChoice, prompt_choice
from ptdeploy.runtime.row_encoder import Inputs
from ptdeploy.runtime.tokenizer import Encoding


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


class TokenClassifier(Labelling):
    """An engine for TOKEN_CLS."""

    asked_by = ("tag",)

    @classmethod
    def _own_problems(cls, manifest: Manifest) -> Iterator[str]:
        return classifier_problems(manifest, per_token=True)

    def label_problem(self, given: Any, tokens: int) -> str:
        if not isinstance(given, list) or len(given) != tokens:
            return f"needs one label for each of its {tokens} tokens, null for those without one."
        return ""

    @checked(truncate=flag, batch_size=whole(1, MOST), prompt=prompt_choice)
    def tag(
        self,
        inputs: Inputs,
        truncate: bool = False,
        batch_size: int = BATCH_SIZE,
        token_type_ids: TypeIds = None,
        prompt: PromptChoice = DEFAULT,
    ) -> list[list[TokenLabel]]:
        """Label each token of each text or pair of texts; special tokens are left out.

        Inputs and errors are those of `Classifier.classify`.
        """
        with self._held(prompt) as chosen:
            return [
                _labels(encoding, one.info.labels, softmax(finite(logits)))
                for encoding, one, logits in self._answers(
                    inputs, chosen, truncate, token_type_ids, batch_size
                )
            ]

    def records(
        self,
        inputs: Inputs,
        truncate: bool,
        token_type_ids: TypeIds,
        prompt: PromptChoice = DEFAULT,
    ) -> list[Any]:
        rows = self.tag(inputs, truncate, token_type_ids=token_type_ids, prompt=prompt)
        return [[asdict(token) for token in row] for row in rows]

    def lines(self, record: Any) -> list[str]:
        return [
            f"{printable(token['token']):<20} {printable(token['label']):<16} "
            f"{token['probability']:.3f}"
            for token in record
        ]


def _labels(
    encoding: Encoding, names: Sequence[str], rows: NDArray[np.float64]
) -> list[TokenLabel]:
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
                names[index],
                index,
                float(row[index]),
                1 if encoding.sequences and encoding.sequences[i] == 1 else 0,
            )
        )
    return labels
