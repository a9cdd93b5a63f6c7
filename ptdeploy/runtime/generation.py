"""The decoding loop: rows that each end on their own, over one KV buffer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ptdeploy.bundle import GenerationOptions
from ptdeploy.runtime.answer import Answer
from ptdeploy.runtime.kv import KVBuffer
from ptdeploy.runtime.sampling import Sampler, log_probability
from ptdeploy.runtime.tokenizer import Tokenizer

Stopped = Literal["eos", "length", "stop", "cancelled"]


@dataclass(frozen=True)
class Generated:
    """What a row was continued with: without the text it was given, and without the EOS token.

    `text` is what the new tokens add to the decoding of the row's own, blanks included, so that
    the text before and this one are the decoding of all; special tokens have no text. It ends
    before a stop string, whose tokens stay in `token_ids`. `logprobs` are natural logs of the
    model's own probabilities, before temperature and cuts, one for each of `token_ids`; empty
    unless asked for.
    """

    text: str
    token_ids: list[int]
    stopped: Stopped
    logprobs: list[float] = field(default_factory=list)


class GeneratingRow:
    """One row while it is being continued, by at most `budget` tokens."""

    def __init__(
        self,
        prompt_ids: Sequence[int],
        options: GenerationOptions,
        seed: int | None,
        stop: tuple[str, ...],
        logprobs: bool,
        tokenizer: Tokenizer | None,
        budget: int,
        streamed: bool = False,
    ) -> None:
        self._sampler = Sampler(options, prompt_ids, seed)
        self._eos = frozenset(options.eos_token_ids)
        self._logprobs, self._budget = logprobs, budget
        self._answer = Answer(tokenizer, prompt_ids, stop) if tokenizer else None
        self._watched = streamed or bool(stop)
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.stopped: Stopped | None = None

    @property
    def ended(self) -> bool:
        return self.stopped is not None or len(self.token_ids) >= self._budget

    def take(self, logits: NDArray[np.float32]) -> int:
        """Choose the next token from logits (vocabulary,), and end the row if it ends there."""
        token = self._sampler.next(logits)
        if token in self._eos:
            self.stopped = "eos"
            return token
        self.token_ids.append(token)
        if self._logprobs:
            self.logprobs.append(log_probability(logits, token))
        if self._answer and self._watched and self._answer.push(token):
            self.stopped = "stop"
        return token

    def piece(self) -> str:
        """The text since the last piece, as far as no later token can change it."""
        return self._answer.piece() if self._answer and self.stopped is None else ""

    def rest(self) -> str:
        """The text behind all pieces, once the row has ended."""
        return self._answer.rest(self.token_ids) if self._answer else ""

    def result(self) -> Generated:
        text = self._answer.text(self.token_ids) if self._answer else ""
        return Generated(text, self.token_ids, self.stopped or "length", self.logprobs)


def decode(
    kv: KVBuffer,
    logits: Sequence[NDArray[np.float32]] | NDArray[np.float32],
    rows: Sequence[GeneratingRow],
    words: int,
    cancel: Event | None,
) -> Iterator[list[int]]:
    """Continue every row, from the logits of its last token, until each has ended.

    Only the first `words` tokens are chosen from: logits may be wider than the embedding is long.
    Gives each step's tokens, one for each row; a row that has ended repeats its last one. A row's
    last token is not in the KV buffer, unless other rows went on.
    """
    tokens = [0] * len(rows)
    first = True
    while not all(row.ended for row in rows):
        if cancel is not None and cancel.is_set():
            for row in rows:
                row.stopped = row.stopped or (None if row.ended else "cancelled")
            return
        if not first:
            logits = kv.decode(tokens)
        for index, row in enumerate(rows):
            if not row.ended:
                tokens[index] = row.take(logits[index][:words])
            elif not first:
                # It stays where it is: there may be no room behind it.
                kv.lengths[index] -= 1
        first = False
        yield tokens
