"""The decoding loop: rows that each end on their own, over one KV buffer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ptdeploy.runtime.kv import KVBuffer
from ptdeploy.runtime.sampling import Sampler, log_probability
from ptdeploy.runtime.tokenizer import Tokenizer
from ptdeploy.task import GenerationOptions

Stopped = Literal["eos", "length", "stop", "cancelled"]


@dataclass(frozen=True)
class Generated:
    """What a row was continued with: without the text it was given, and without the EOS token.

    `text` ends before a stop string. `logprobs` are natural logs of the model's own probabilities,
    before temperature and cuts, one for each of `token_ids`; empty unless asked for.
    """

    text: str
    token_ids: list[int]
    stopped: Stopped
    logprobs: list[float] = field(default_factory=list)


class Row:
    """One row while it is being continued."""

    def __init__(
        self,
        prompt_ids: Sequence[int],
        options: GenerationOptions,
        seed: int | None,
        stop: tuple[str, ...],
        logprobs: bool,
        tokenizer: Tokenizer | None,
    ) -> None:
        self._sampler = Sampler(options, prompt_ids, seed)
        self._eos = frozenset(options.eos_token_ids)
        self._stop, self._logprobs, self._tokenizer = stop, logprobs, tokenizer
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.stopped: Stopped | None = None

    def take(self, logits: NDArray[np.float32]) -> int:
        """Choose the next token from logits (vocabulary,), and end the row if it ends there."""
        token = self._sampler.next(logits)
        if token in self._eos:
            self.stopped = "eos"
            return token
        self.token_ids.append(token)
        if self._logprobs:
            self.logprobs.append(log_probability(logits, token))
        if self._stop and first_stop(self._text(), self._stop) is not None:
            self.stopped = "stop"
        return token

    def result(self) -> Generated:
        text = self._text()
        if self.stopped == "stop":
            text = text[: first_stop(text, self._stop)]
        return Generated(text, self.token_ids, self.stopped or "length", self.logprobs)

    def _text(self) -> str:
        return self._tokenizer.decode(self.token_ids) if self._tokenizer else ""


def decode(
    kv: KVBuffer,
    logits: Sequence[NDArray[np.float32]] | NDArray[np.float32],
    rows: Sequence[Row],
    budget: int,
    cancel: Event | None,
) -> Iterator[list[int]]:
    """Continue every row, from the logits of its last token, by at most `budget` tokens.

    Gives each step's tokens, one for each row; a row that has ended repeats its last one. The last
    step's tokens are not in the KV buffer.
    """
    tokens = [0] * len(rows)
    for step in range(budget):
        if cancel is not None and cancel.is_set():
            for row in rows:
                row.stopped = row.stopped or "cancelled"
            return
        if step:
            logits = kv.decode(tokens)
        for index, row in enumerate(rows):
            if row.stopped is None:
                tokens[index] = row.take(logits[index])
        yield tokens
        if all(row.stopped for row in rows):
            return


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the first stop string begins, or None."""
    found = [place for place in (text.find(one) for one in stop) if place >= 0]
    return min(found) if found else None


def without_stop(pieces: Iterator[str], stop: Sequence[str]) -> Iterator[str]:
    """Pieces of text up to the first stop string, holding back what may be the start of one."""
    held = ""
    for piece in pieces:
        held += piece
        place = first_stop(held, stop)
        if place is not None:
            if place:
                yield held[:place]
            return
        keep = max(
            (n for one in stop for n in range(1, len(one)) if held.endswith(one[:n])), default=0
        )
        if len(held) > keep:
            yield held[: len(held) - keep]
            held = held[len(held) - keep :]
    if held:
        yield held
