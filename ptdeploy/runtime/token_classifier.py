"""A class for each token of a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptdeploy.arguments import MOST, checked, flag, whole
from ptdeploy.bundle import Manifest
from ptdeploy.bundle.signature import BATCH, SEQUENCE
from ptdeploy.printable import printable
from ptdeploy.runtime.batching import Ids
from ptdeploy.runtime.engine import Inputs, finite, softmax
from ptdeploy.runtime.labelling import Labelling, TypeIds, classifier_problems
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

    @classmethod
    def _own_problems(cls, manifest: Manifest) -> Iterator[str]:
        return classifier_problems(manifest, (BATCH, SEQUENCE))

    def label_problem(self, given: Any, tokens: int) -> str:
        if not isinstance(given, list) or len(given) != tokens:
            return f"needs one label for each of its {tokens} tokens, null for those without one."
        return ""

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
        for part, logits in self._batches(encodings, batch_size):
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
                    self.prompt.info.labels[index],
                    index,
                    float(row[index]),
                    1 if encoding.sequences and encoding.sequences[i] == 1 else 0,
                )
            )
        return labels

    def records(self, inputs: Inputs, truncate: bool, token_type_ids: TypeIds) -> list[Any]:
        rows = self.tag(inputs, truncate, token_type_ids=token_type_ids)
        return [[asdict(token) for token in row] for row in rows]

    def lines(self, record: Any) -> list[str]:
        return [
            f"{printable(token['token']):<20} {printable(token['label']):<16} "
            f"{token['probability']:.3f}"
            for token in record
        ]

    def _row_logits(
        self, rows: Sequence[Ids], segments: Sequence[Ids] | None = None
    ) -> list[NDArray[np.float32]]:
        return [
            one[: row.size]
            for part, logits in self._parts(rows, segments)
            for row, one in zip(part, logits, strict=True)
        ]
