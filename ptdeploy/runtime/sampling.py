"""From a row's logits to its next token, with transformers' meanings and in transformers' order."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ptdeploy.errors import InputError
from ptdeploy.task import GenerationOptions


def check(options: GenerationOptions, vocab_size: int) -> None:
    """Raises InputError naming the first option that is out of its range."""
    finite = math.isfinite
    wrong = [i for i in options.eos_token_ids if not 0 <= i < vocab_size]
    for name, holds, range_ in (
        ("max_new_tokens", options.max_new_tokens >= 0, "at least 0"),
        ("min_new_tokens", options.min_new_tokens >= 0, "at least 0"),
        ("temperature", finite(options.temperature) and options.temperature > 0, "more than 0"),
        ("top_k", options.top_k >= 0, "at least 1, or 0 for all"),
        ("top_p", 0 < options.top_p <= 1, "more than 0 and at most 1"),
        ("min_p", 0 <= options.min_p <= 1, "from 0 to 1"),
        (
            "repetition_penalty",
            finite(options.repetition_penalty) and options.repetition_penalty > 0,
            "more than 0",
        ),
        ("eos_token_ids", not wrong, f"token ids from 0 to {vocab_size - 1}"),
    ):
        if not holds:
            value = wrong[0] if name == "eos_token_ids" else getattr(options, name)
            raise InputError(f"{name} is {value}; it must be {range_}.")


class Sampler:
    """Chooses one row's tokens. Rows with the same seed, options and logits choose alike.

    Source: transformers' generation/logits_process.py; the penalty counts the text's own tokens
    too, and not the virtual ones.
    """

    def __init__(
        self, options: GenerationOptions, prompt_ids: Sequence[int], seed: int | None
    ) -> None:
        self._options = options
        self._random = np.random.default_rng(seed) if options.do_sample else None
        self._seen = dict.fromkeys(prompt_ids) if options.repetition_penalty != 1 else None
        self._chosen = 0

    def next(self, logits: NDArray[np.float32]) -> int:
        """The next token for logits (vocabulary,), which are left as they are."""
        options = self._options
        too_early = self._chosen < options.min_new_tokens and options.eos_token_ids
        if self._seen or too_early:
            logits = logits.copy()
        if self._seen:
            seen = np.fromiter(self._seen, np.int64)
            scores, penalty = logits[seen], np.float32(options.repetition_penalty)
            logits[seen] = np.where(scores < 0, scores * penalty, scores / penalty)
        if too_early:
            logits[list(options.eos_token_ids)] = -np.inf
        token = int(logits.argmax()) if self._random is None else self._draw(logits)
        self._chosen += 1
        if self._seen is not None:
            self._seen[token] = None
        return token

    def _draw(self, logits: NDArray[np.float32]) -> int:
        assert self._random is not None
        tokens, probabilities = distribution(logits, self._options)
        place = np.searchsorted(probabilities.cumsum(), self._random.random(), side="right")
        return int(tokens[min(int(place), tokens.size - 1)])


def distribution(
    logits: NDArray[np.float32], options: GenerationOptions
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """What is drawn from: tokens in ascending order and their probabilities, in float64.

    Cut by top_k, then top_p, then min_p, each over what the one before left; equal scores at the
    edge of top_k are all kept.
    """
    tokens = np.arange(logits.size)
    if 0 < options.top_k < logits.size:
        edge = np.partition(logits, -options.top_k)[-options.top_k]
        tokens = np.flatnonzero(logits >= edge)
    probabilities = _softmax(logits[tokens] / np.float32(options.temperature))
    if options.top_p < 1:
        kept = _nucleus(probabilities, options.top_p)
        tokens, probabilities = tokens[kept], probabilities[kept] / probabilities[kept].sum()
    if options.min_p > 0:
        kept = np.flatnonzero(probabilities >= options.min_p * probabilities.max())
        tokens, probabilities = tokens[kept], probabilities[kept] / probabilities[kept].sum()
    return tokens, probabilities


def log_probability(logits: NDArray[np.float32], token: int) -> float:
    """The natural log of the model's own probability of a token, for logits (vocabulary,)."""
    top = float(logits.max())
    total = np.exp(logits - np.float32(top)).sum(dtype=np.float64)
    return float(logits[token]) - top - math.log(float(total))


def _softmax(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    weights = np.exp(scores - scores.max(), dtype=np.float32).astype(np.float64)
    probabilities: NDArray[np.float64] = weights / weights.sum()
    return probabilities


def _nucleus(probabilities: NDArray[np.float64], top_p: float) -> NDArray[np.int64]:
    """The fewest likeliest tokens that hold `top_p` together, at least one, in ascending order."""
    # All tokens at or under this hold less than what is cut, so only the others need sorting.
    floor = (1 - top_p) / probabilities.size
    likely = np.flatnonzero(probabilities > floor)
    descending = likely[np.argsort(-probabilities[likely], kind="stable")]
    before = np.concatenate([[0.0], probabilities[descending].cumsum()[:-1]])
    kept: NDArray[np.int64] = np.sort(descending[: max(1, int((before < top_p).sum()))])
    return kept
