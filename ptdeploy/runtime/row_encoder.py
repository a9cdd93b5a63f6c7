"""What a request gives, to rows of token ids: texts, pairs of texts, or ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ptdeploy.bundle import Bundle
from ptdeploy.errors import InputError
from ptdeploy.runtime.batching import Rooms, check_segments, embedded, rows_of, segments_of, split
from ptdeploy.runtime.tokenizer import Encoding, Tokenizer

Pair = tuple[str, str]
Inputs = str | Sequence[str | Pair] | Sequence[int] | Sequence[Sequence[int]]


@dataclass(frozen=True)
class RowEncoder:
    """A bundle's tokenizer, if it has one, and what rows its task and its program take."""

    bundle: Bundle
    tokenizer: Tokenizer | None
    takes_pairs: bool
    takes_segments: bool

    def encoded(
        self,
        inputs: Inputs,
        rooms: Rooms,
        truncate: bool,
        token_type_ids: ArrayLike | Sequence[Sequence[int]] | None,
    ) -> list[Encoding]:
        """An Encoding for each row, of at most as many tokens as `rooms` says.

        Raises InputError for what is no row, or does not fit unless it is cut by `truncate`.
        """
        given: list[Any] = [inputs] if isinstance(inputs, str) else split(inputs)
        for item in given:
            if isinstance(item, tuple) and len(item) > 2 and all(isinstance(s, str) for s in item):
                raise InputError(
                    f"A pair is two texts, but one item has {len(item)}.",
                    "Give each text as an item of its own, or two as a tuple.",
                )
        if any(isinstance(item, bytes | bytearray) for item in given):
            raise InputError("The text is bytes, not a string.", "Decode it: text.decode('utf-8').")
        texts = [isinstance(item, str) or _is_pair(item) for item in given]
        if not any(texts):
            return self._wrap_ids(inputs, rooms, truncate, token_type_ids)
        if not all(texts):
            raise InputError(
                "A request has either texts or rows of token ids, not both.",
                "Ask for each in a request of its own.",
            )
        if token_type_ids is not None:
            raise InputError(
                "token_type_ids are for rows of token ids: a text gets them from its tokenizer.",
                "Give two texts as a pair, in a tuple.",
            )
        pairs = [(item, None) if isinstance(item, str) else tuple(item) for item in given]
        return [
            self._encode_text(text, pair, room, truncate)
            for (text, pair), room in zip(pairs, rooms(len(pairs)), strict=True)
        ]

    def _wrap_ids(
        self, inputs: Any, rooms: Rooms, truncate: bool, token_type_ids: Any
    ) -> list[Encoding]:
        limits = self.bundle.manifest.limits
        rows = rows_of(inputs, None, limits, rooms, truncate)
        segments = [np.zeros_like(row) for row in rows]
        if token_type_ids is not None:
            segments = segments_of(token_type_ids, inputs, None, limits, rooms)
        return [
            Encoding(row.tolist(), types.tolist(), [], [(0, 0)] * row.size, [False] * row.size)
            for row, types in zip(rows, segments, strict=True)
        ]

    def _encode_text(self, text: str, pair: str | None, limit: int, truncate: bool) -> Encoding:
        if self.tokenizer is None:
            raise InputError(
                f"{self.bundle.path}: was compiled without a tokenizer, so it takes token ids "
                "only.",
                "Give token ids, or compile the checkpoint again with --tokenizer DIR.",
            )
        if pair is not None and not self.takes_pairs:
            raise InputError(
                "A pair of texts is for classifiers; a causal model continues one.",
                "Join them to one text as the model was trained on.",
            )
        encoding = self.tokenizer.encode(text, pair=pair)
        if not encoding.ids:
            if text or pair:
                raise InputError(
                    "The tokenizer makes no token of the text, and an engine needs one at least.",
                    "See that the bundle was compiled with the model's own tokenizer.",
                )
            raise InputError(
                "The text is empty: an engine needs at least one token.", "Give it some text."
            )
        if len(encoding.ids) > limit:
            if not truncate:
                raise InputError(
                    f"The text has {len(encoding.ids)} tokens, but at most {limit} fit beside the "
                    f"virtual tokens: {text[:40]!r}...",
                    "Shorten it, or cut it with truncate=True (--truncate)."
                    if self.takes_pairs
                    else f"Shorten it, or give engine.encode(text, truncate=True)[0].ids[:N]: new "
                    f"tokens take their room, so N is at most {limit} less max_new_tokens.",
                )
            encoding = self.tokenizer.encode_truncated(text, limit, pair)
        if self.takes_segments:
            check_segments(encoding.type_ids, self.bundle.manifest.limits, "The text's encoding")
        return embedded(encoding, self.bundle.manifest.limits)


def _is_pair(item: Any) -> bool:
    """Whether one item of a request is two texts."""
    return (
        isinstance(item, (tuple, list)) and len(item) == 2 and all(isinstance(s, str) for s in item)
    )
