"""From a row's logits to its next token, with transformers' meanings and in transformers' order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ptdeploy.arguments import MOST, refused
from ptdeploy.bundle import GenerationOptions
from ptdeploy.errors import EngineFault

# One more than the largest seed.
SEEDS = 2**64


def out_of_range(options: GenerationOptions, vocabulary: int) -> Iterator[tuple[str, str]]:
    """The names of options that are out of their range, with that range in words."""
    finite, most = math.isfinite, f"and at most {MOST}"
    for name, holds, range_ in (
        ("max_new_tokens", 0 <= options.max_new_tokens <= MOST, f"at least 0 {most}"),
        ("min_new_tokens", 0 <= options.min_new_tokens <= MOST, f"at least 0 {most}"),
        ("temperature", finite(options.temperature) and options.temperature > 0, "more than 0"),
        ("top_k", 0 <= options.top_k <= MOST, f"at least 1, or 0 for all, {most}"),
        ("top_p", 0 < options.top_p <= 1, "more than 0 and at most 1"),
        ("min_p", 0 <= options.min_p <= 1, "from 0 to 1"),
        (
            "repetition_penalty",
            finite(options.repetition_penalty) and options.repetition_penalty > 0,
            "more than 0",
        ),
        (
            "eos_token_ids",
            all(0 <= i < vocabulary for i in options.eos_token_ids),
            f"token ids from 0 to {vocabulary - 1}",
        ),
    ):
        if not holds:
            yield name, range_


def check(options: GenerationOptions, vocabulary: int) -> None:
    """Raises InputError naming the first option that is out of its range."""
    for name, range_ in out_of_range(options, vocabulary):
        value = getattr(options, name)
        if name == "eos_token_ids":
            value = next(i for i in value if not 0 <= i < vocabulary)
        if name == "temperature":
            # A request's only: `with_options` takes it before.
            range_ += ", or 0 for the likeliest token"
        raise refused(name, value, range_)


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
        """The next token for logits (vocabulary,), which are left as they are.

        Raises EngineFault if the likeliest has no finite score: then no choice means anything.
        """
        options = self._options
        if not np.isfinite(logits.max()):
            raise EngineFault(
                "The engine gave logits that are not finite.",
                "Hold the bundle against its reference: ptdeploy verify BUNDLE",
            )
        too_early = self._chosen < options.min_new_tokens and options.eos_token_ids
        if self._seen or too_early:
            logits = logits.copy()
        if self._seen:
            seen = np.fromiter(self._seen, np.int64)
            scores, penalty = logits[seen], _float32(options.repetition_penalty)
            with np.errstate(over="ignore"):
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
    probabilities = _softmax(logits[tokens], _float32(options.temperature))
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


def _float32(value: float) -> np.float32:
    """The nearest number to a positive one whose quotients mean something: not 0, not infinite."""
    kinds = np.finfo(np.float32)
    return np.float32(min(max(value, float(kinds.tiny)), float(kinds.max)))


def _softmax(logits: NDArray[np.float32], temperature: np.float32) -> NDArray[np.float64]:
    """Where a quotient is too large for float32, what a temperature near 0 means: the likeliest."""
    with np.errstate(over="ignore"):
        scores = logits / temperature
        top = scores.max()
        if np.isfinite(top):
            weights = np.exp(scores - top, dtype=np.float32).astype(np.float64)
        else:
            weights = (logits == logits.max()).astype(np.float64)
    probabilities: NDArray[np.float64] = weights / weights.sum()
    return probabilities


def _nucleus(probabilities: NDArray[np.float64], top_p: float) -> NDArray[np.int64]:
    """The fewest likeliest tokens that hold `top_p` together, at least one, in ascending order."""
    # All tokens at or under this hold less than what is cut, so only the others need sorting.
    floor = (1 - top_p) / probabilities.size
    likely = np.flatnonzero(probabilities > floor)
    if not likely.size:  # all are equal, and so little is asked for that the floor is they
        likely = np.arange(probabilities.size)
    descending = likely[np.argsort(-probabilities[likely], kind="stable")]
    before = np.concatenate([[0.0], probabilities[descending].cumsum()[:-1]])
    kept: NDArray[np.int64] = np.sort(descending[: max(1, int((before < top_p).sum()))])
    return kept
