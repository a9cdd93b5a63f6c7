"""Two engines timed in turns on the same requests, and whether one is slower than is allowed."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np

from ptdeploy.errors import InputError
from ptdeploy.runtime import Engine

_NEW_TOKENS, _ROWS, _TOKENS = 16, 8, 32
# Rounds that fall on the two sides of a bound by chance would do so in one of so many measurements.
_BY_CHANCE = 0.01
_TIMES_THE_ROUNDS = 8


class Speed(msgspec.Struct, frozen=True):
    """Median seconds of the same request to both engines, taken in turns.

    `ratio` is how many times as long the second one takes, the median over the rounds: what slows
    the machine down for a while slows both. `too_slow` is null where nothing was allowed.
    """

    request: str
    before: float
    after: float
    ratio: float
    rounds: int
    too_slow: bool | None


@dataclass(frozen=True)
class Timing:
    """How often each engine is timed, and how many times as long the second one may take.

    While the rounds do not agree on whether it does, there are more of them.
    """

    rounds: int
    max_slowdown: float | None = None


def speeds(before: Engine, after: Engine, timing: Timing) -> tuple[Speed, ...]:
    """Each kind of request by both engines. Raises InputError if they do not take the same."""
    tokens, new_tokens = _request_sizes(before, after)
    requests = [_requests(engine, tokens, new_tokens) for engine in (before, after)]
    if requests[0].keys() != requests[1].keys():
        raise InputError("--speed needs two bundles of the same kind of task.")
    return tuple(_speed(name, requests[0][name], requests[1][name], timing) for name in requests[0])


def _speed(
    name: str, before: Callable[[], object], after: Callable[[], object], timing: Timing
) -> Speed:
    times: tuple[list[float], list[float]] = ([], [])
    ratios: list[float] = []
    for run in (before, after):  # what is first is slower
        run()
    while len(ratios) < timing.rounds or (
        timing.max_slowdown is not None
        and len(ratios) < _TIMES_THE_ROUNDS * timing.rounds
        and not _agree(ratios, timing.max_slowdown)
    ):
        # Who goes first changes, so that neither always finds the caches warm.
        for which in (0, 1) if len(ratios) % 2 else (1, 0):
            start = time.perf_counter()
            (before, after)[which]()
            times[which].append(time.perf_counter() - start)
        ratios.append(times[1][-1] / times[0][-1])
    ratio, most = statistics.median(ratios), timing.max_slowdown
    too_slow = None if most is None else not ratio <= most
    first, second = map(statistics.median, times)
    return Speed(name, first, second, ratio, len(ratios), too_slow)


def _agree(ratios: list[float], most: float) -> bool:
    """Whether rounds lie on one side of a bound more often than they would by chance."""
    rounds = len(ratios)
    over = sum(ratio > most for ratio in ratios)
    larger = max(over, rounds - over)
    as_many = sum(math.comb(rounds, count) for count in range(larger, rounds + 1))
    return as_many <= _BY_CHANCE * float(2**rounds)


def _request_sizes(*engines: Engine) -> tuple[int, int]:
    """How many tokens each text has and how many follow it: as many as fit in every engine."""
    room = min(engine.limits.max_sequence for engine in engines)
    new_tokens = max(1, min(_NEW_TOKENS, room // 2))
    return max(1, min(_TOKENS, room - new_tokens)), new_tokens


def _requests(engine: Engine, tokens: int, new_tokens: int) -> dict[str, Callable[[], object]]:
    vocabulary = engine.limits.vocab_size
    rows = np.random.default_rng(0).integers(0, vocabulary, (_ROWS, tokens)).tolist()
    return {one.name: one.run for one in engine.whole_requests(rows, new_tokens)}
