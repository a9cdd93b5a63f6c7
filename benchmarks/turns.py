"""Engines that take turns, each in a process of its own: what every comparison here shares.

An engine's process says `ready` once it is open, and then answers each line of JSON with another.
Engines in one process would slow one another, since idle threads spin for a while; and a machine
has fast and slow minutes, so that only turns of one round are neighbours in time.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# A process whose threads still spin would take a core from the next.
REST = 0.05


def keep(results: Path, cells: Sequence[dict[str, Any]]) -> None:
    """Write what was measured to a file of results, in which other models' stays."""
    found = json.loads(results.read_text())["cells"] if results.exists() else []
    measured = {cell["model"] for cell in cells}
    kept = [cell for cell in found if cell["model"] not in measured]
    results.write_text(json.dumps({"cells": [*kept, *cells]}, indent=1) + "\n")


@contextmanager
def process(
    command: Sequence[str], folder: Path | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """An engine's process, open. Raises RuntimeError if it ends before it is."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    variables = {**os.environ, **(environment or {})}
    with subprocess.Popen(command, text=True, cwd=folder, env=variables, **pipes) as one:
        assert one.stdin is not None
        _line(one)
        try:
            yield one
        finally:
            one.stdin.close()


def ask(one: subprocess.Popen[str], request: Any) -> Any:
    """An engine's answer, once those before it are at rest. Raises RuntimeError if it ends."""
    assert one.stdin is not None
    time.sleep(REST)
    one.stdin.write(json.dumps(request) + "\n")
    one.stdin.flush()
    return json.loads(_line(one))


def by_turns(
    running: Sequence[subprocess.Popen[str]], request: Any, rounds: int
) -> list[list[Any]]:
    """Each engine's answers: in every round all take a turn.

    Each begins in its turn, and every second round goes the other way: what ran just before, and
    the pause between rounds, slow the next one, so none may always have the same neighbours.
    A first round warms up and does not count.
    """
    for one in running:
        ask(one, request)
    found: list[list[Any]] = [[] for _ in running]
    for number in range(rounds):
        count = len(running)
        turns = [(number // 2 + place) % count for place in range(count)]
        for index in turns if number % 2 else reversed(turns):
            found[index].append(ask(running[index], request))
    return found


def ratios(own: Sequence[float], others: Sequence[float]) -> tuple[float, list[float]]:
    """How often `own` is the other of the same round: the median, and both quartiles."""
    found = sorted(a / b for a, b in zip(own, others, strict=True))
    quarter = len(found) // 4
    return statistics.median(found), [found[quarter], found[-1 - quarter]]


def _line(one: subprocess.Popen[str]) -> str:
    assert one.stdout is not None
    line = one.stdout.readline()
    if not line:
        raise RuntimeError(f"{' '.join(map(str, one.args))}: it ended with {one.wait()}.")
    return line
