"""How long compile takes, of this checkout and another one, by turns in one run.

    git worktree add ../before COMMIT
    python benchmarks/compile_time.py ../before [--rounds 3] [--only NAME ...]

Each checkout compiles the same checkpoints to ort in fp32, a process for each; the order alternates
from round to round. What is kept in benchmarks/results/ are medians of the stage that exports to
ONNX and of the whole, in seconds, and the medians of both ratios to the other checkout's in the
same round: under 1 is faster.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from against import HERE, Subject, environment, subjects
from turns import keep

RESULTS = HERE / "results" / "compile-time-cpu.json"
_EXPORT = re.compile(r"export to ONNX \.\.\. ([0-9.]+) s")


def compiled(subject: Subject, checkout: Path) -> tuple[float, float]:
    """Seconds of the export and of the whole, the process's start included."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "ptdeploy", "compile", str(subject.adapter)]
        command += ["--target", "ort", "--base", str(subject.base), "-o", f"{folder}/bundle"]
        start = time.perf_counter()
        done = subprocess.run(
            command,
            check=True,
            cwd=checkout,
            env=environment(checkout),
            capture_output=True,
            text=True,
        )
        seconds = time.perf_counter() - start
    found = _EXPORT.search(done.stderr)
    assert found is not None, done.stderr
    return float(found[1]), seconds


def measure(subject: Subject, other: Path, rounds: int) -> dict[str, Any]:
    checkouts = (other, HERE.parent)
    times: dict[Path, list[tuple[float, float]]] = {one: [] for one in checkouts}
    for number in range(rounds):
        for checkout in checkouts if number % 2 else reversed(checkouts):
            times[checkout].append(compiled(subject, checkout))
    cell: dict[str, Any] = {"model": subject.name, "rounds": rounds}
    for index, what in enumerate(("export", "compile")):
        before, now = ([one[index] for one in times[checkout]] for checkout in checkouts)
        cell[f"{what}_before_s"] = round(statistics.median(before), 1)
        cell[f"{what}_s"] = round(statistics.median(now), 1)
        shares = [mine / theirs for mine, theirs in zip(now, before, strict=True)]
        cell[f"{what}_ratio"] = round(statistics.median(shares), 2)
    return cell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("other", help="folder of the other checkout")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="names of models")
    arguments = parser.parse_args()
    other = Path(arguments.other).resolve()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=other, capture_output=True, text=True
    ).stdout.strip()
    for subject in subjects():
        if arguments.only and subject.name not in arguments.only:
            continue
        cell = {**measure(subject, other, arguments.rounds), "before": commit}
        print(json.dumps(cell), flush=True)
        keep(RESULTS, [cell])


if __name__ == "__main__":
    main()
