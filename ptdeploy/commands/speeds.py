"""Two engines timed in turns on the same requests, and whether one is slower than is allowed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np

from ptdeploy.errors import InputError
from ptdeploy.runtime import Engine

_NEW_TOKENS, _ROWS, _TOKENS = 16, 8, 32
_TIMES_THE_ROUNDS = 8


class Speed(msgspec.Struct, frozen=True):
    """Seconds of the quickest of `rounds` requests to each engine, taken in turns.

    All else that the machine does makes a request slower, never quicker. `too_slow` is null where
    nothing was allowed.
    """

    request: str
    before: float
    after: float
    rounds: int
    too_slow: bool | None

    @property
    def ratio(self) -> float:
        """How many times as long the second one takes."""
        return self.after / self.before


@dataclass(frozen=True)
class Timing:
    """How often each engine is timed, and how many times as long the second one may take.

    Where it seems to take longer there are more rounds, up to 8 times as many.
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
    for run in (before, after):  # what is first is slower
        run()
    most, best, rounds = timing.max_slowdown, [math.inf, math.inf], 0
    while rounds < timing.rounds or (
        most is not None and best[1] > most * best[0] and rounds < _TIMES_THE_ROUNDS * timing.rounds
    ):
        # Who goes first changes, so that neither always finds the caches warm.
        for which in (0, 1) if rounds % 2 else (1, 0):
            start = time.perf_counter()
            (before, after)[which]()
            best[which] = min(best[which], time.perf_counter() - start)
        rounds += 1
    return Speed(name, best[0], best[1], rounds, None if most is None else best[1] > most * best[0])


def _request_sizes(*engines: Engine) -> tuple[int, int]:
    """How many tokens each text has and how many follow it: as many as fit in every engine."""
    room = min(engine.limits.max_sequence for engine in engines)
    new_tokens = max(1, min(_NEW_TOKENS, room // 2))
    return max(1, min(_TOKENS, room - new_tokens)), new_tokens


def _requests(engine: Engine, tokens: int, new_tokens: int) -> dict[str, Callable[[], object]]:
    vocabulary = engine.limits.vocab_size
    rows = np.random.default_rng(0).integers(0, vocabulary, (_ROWS, tokens)).tolist()
    return {one.name: one.run for one in engine.whole_requests(rows, new_tokens)}
