"""Speed of encoders in fp32 and int8, calibrated and not, of this checkout and another one.

    git worktree add ../before COMMIT
    python benchmarks/encoder.py ../before [--rounds 9] [--threads 2]

Each engine of models/topics is compiled once, into its checkout's cache, and answers in a process
of its own; within each round all take turns, begun by another one each time (turns.py). Requests
are batches of one length, and a stream of texts of unequal lengths. What is kept in
benchmarks/results/ are medians, quartiles and the best, and each engine's ratio to this checkout's
fp32 engine in the same round: under 1 is faster. A run for each number of threads and each value of
PTDEPLOY_SPIN is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from against import HERE, TOPICS, answering, environment
from targets import calibration
from turns import by_turns, ratios

RESULTS = HERE / "results" / "encoder-cpu.json"
UNEQUAL = "48 texts of 4 to 128 tokens"


@dataclass(frozen=True)
class Contender:
    """An engine to be timed: who compiles it, for what, in which precision, and how."""

    name: str
    checkout: Path
    target: str
    precision: str
    calibrated: bool = False

    def bundle(self, base: Path) -> Path:
        folder = self.checkout / ".cache" / "encoder"
        how = "-calibrated" if self.calibrated else ""
        place = folder / f"{self.target}-{self.precision}{how}.bundle"
        if not (place / "manifest.json").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, "-m", "ptdeploy", "compile", str(TOPICS / "adapter")]
            command += ["--base", str(base), "--target", self.target, "-o", str(place)]
            command += ["--precision", self.precision]
            if self.precision == "int8":
                # It is timed; whether it is accepted is another question.
                command += ["--min-agreement", "0"]
            if self.calibrated:
                command += ["--calibration", str(calibration(folder))]
            subprocess.run(command, check=True, cwd=self.checkout, env=environment(self.checkout))
        return place


def contenders(other: Path) -> list[Contender]:
    here = HERE.parent
    return [
        Contender("fp32", here, "ort", "fp32"),
        Contender("int8", here, "ort", "int8"),
        Contender("fp32 before", other, "ort", "fp32"),
        Contender("int8 before", other, "ort", "int8"),
        Contender("OpenVINO fp32", here, "openvino", "fp32"),
        Contender("OpenVINO int8", here, "openvino", "int8"),
        Contender("int8 calibrated", here, "ort", "int8", True),
        Contender("OpenVINO int8 calibrated", here, "openvino", "int8", True),
    ]


def requests() -> dict[str, tuple[int, Any, int]]:
    """What is asked, by its name: rows, tokens of each, and no new ones."""
    lengths = np.random.default_rng(5).integers(4, 129, 48).tolist()
    shapes = ((1, 32), (1, 128), (16, 32), (16, 128))
    alike = {f"{rows}x{tokens}": (rows, tokens, 0) for rows, tokens in shapes}
    return {**alike, UNEQUAL: (48, lengths, 0)}


def measure(engines: list[Contender], base: Path, rounds: int) -> list[dict[str, Any]]:
    cells = []
    with ExitStack() as stack:
        running = [stack.enter_context(answering(e.checkout, e.bundle(base))) for e in engines]
        for name, request in requests().items():
            found = by_turns(running, request, rounds)
            for engine, seconds in zip(engines, found, strict=True):
                ratio, quartiles = ratios(seconds, found[0])
                cells.append(
                    {
                        "engine": engine.name,
                        "request": name,
                        "median_ms": 1e3 * statistics.median(seconds),
                        "best_ms": 1e3 * min(seconds),
                        "ratio": ratio,
                        "ratio_quartiles": quartiles,
                        "ratio_of_best": min(seconds) / min(found[0]),
                    }
                )
                show(cells[-1])
    return cells


def show(cell: dict[str, Any]) -> None:
    low, high = cell["ratio_quartiles"]
    print(
        f"{cell['request']:<28} {cell['engine']:<24} {cell['median_ms']:9.1f} ms, best "
        f"{cell['best_ms']:9.1f}; {cell['ratio']:.2f} ({low:.2f} to {high:.2f}), of the best "
        f"{cell['ratio_of_best']:.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("other", help="folder of the other checkout")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-save", action="store_true", help="print only")
    arguments = parser.parse_args()
    os.environ["PTDEPLOY_BENCHMARK_THREADS"] = str(arguments.threads)
    other = Path(arguments.other).resolve()
    sys.path.insert(0, str(TOPICS))
    from data import find_base_model

    load = os.getloadavg()
    cells = measure(contenders(other), find_base_model(), arguments.rounds)
    if arguments.no_save:
        return
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=other, capture_output=True, text=True
    ).stdout.strip()
    spin = os.environ.get("PTDEPLOY_SPIN", "")
    run = {"before": commit, "threads": arguments.threads, "spin": spin, "load": load}
    runs = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    others = [one for one in runs if (one["threads"], one["spin"]) != (arguments.threads, spin)]
    RESULTS.write_text(json.dumps([*others, {**run, "cells": cells}], indent=1) + "\n")


if __name__ == "__main__":
    main()
