"""One engine behind a pipe: `python worker.py KIND PATH THREADS`, where KIND names its class.

A line of stdin is a request, with `rows` of so many `tokens`, each behind `past` tokens that the
engine has in its KV cache already. A line of stdout is what it took in seconds, `wall` and `cpu`,
or `refused` with the reason. Runs with the engine's own Python: it imports what that one engine
needs and nothing else of this project.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent


class Refused(Exception):
    """An engine cannot do a request, and why."""


class Cost:
    """Wall time and the process's CPU time, added up over all that was measured."""

    def __init__(self) -> None:
        self.wall, self.cpu = 0.0, 0.0

    @contextmanager
    def measured(self) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu

    def of(self, parts: int) -> dict[str, float]:
        return {"wall": self.wall / parts, "cpu": self.cpu / parts}


class Decoder:
    """An engine that writes: rows with `past` tokens are begun, and then fed."""

    def begin(self, rows: int, past: int, room: int) -> None:
        """Leave `rows` rows with their past and nothing behind it; `room` tokens are to come."""
        raise NotImplementedError

    def feed(self, ids: np.ndarray) -> np.ndarray:
        """Append tokens (rows, new); gives each row's likeliest next one."""
        raise NotImplementedError

    def answer(self, asked: dict[str, Any]) -> dict[str, float]:
        """Time of a prefill, or with `new` tokens that of a decode step, a first one aside."""
        rows, new = asked["rows"], asked["new"]
        ids = some_ids(rows, asked["tokens"], asked["vocabulary"])
        self.begin(rows, asked["past"], ids.shape[1] + new + 2)
        cost = Cost()
        if not new:
            with cost.measured():
                self.feed(ids)
            return cost.of(1)
        following = self.feed(self.feed(ids)[:, None])
        for _ in range(new):
            with cost.measured():
                following = self.feed(following[:, None])
        return cost.of(new)

    def tokens(self, asked: dict[str, Any]) -> list[int]:
        """`new` greedy tokens of the base model, to see that all engines run the same one."""
        self.begin(1, asked["past"], asked["tokens"] + asked["new"] + 2)
        found = [self.feed(some_ids(1, asked["tokens"], asked["vocabulary"]))]
        for _ in range(asked["new"] - 1):
            found.append(self.feed(found[-1][:, None]))
        return [int(one[0]) for one in found]


class Encoder:
    """An engine that gives logits of whole rows."""

    def run(self, ids: np.ndarray) -> np.ndarray:
        """Logits (rows, labels) of token ids (rows, tokens)."""
        raise NotImplementedError

    def answer(self, asked: dict[str, Any]) -> dict[str, float]:
        ids = some_ids(asked["rows"], asked["tokens"], asked["vocabulary"])
        cost = Cost()
        with cost.measured():
            self.run(ids)
        return cost.of(1)


def some_ids(rows: int, tokens: int, vocabulary: int) -> np.ndarray:
    return np.random.default_rng(tokens).integers(0, vocabulary, (rows, tokens))


def main() -> None:
    kind, path, threads = sys.argv[1:4]
    # What libraries print is no answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.path.insert(0, str(HERE))
    import decoders
    import encoders

    engine = {**decoders.KINDS, **encoders.KINDS}[kind](Path(path), int(threads))
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        try:
            asked = json.loads(line)
            answer: Any = engine.tokens(asked) if "greedy" in asked else engine.answer(asked)
        except Refused as error:
            answer = {"refused": str(error)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    sys.modules["worker"] = sys.modules["__main__"]
    main()
