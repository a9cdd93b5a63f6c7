"""Speed of this checkout over another one's, on the same checkpoints, by turns in one run.

    git worktree add ../before COMMIT
    python benchmarks/against.py ../before [--rounds 9] [--only NAME ...]

Each checkout compiles the same checkpoints (once, kept in its own cache) and answers in a process
of its own; the two take turns within each round, whose order alternates. What is printed are
medians and the ratio of this checkout's to the other's; 1 is as fast. Results are kept in
benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from turns import by_turns, keep, process, ratios

os.environ.setdefault("HF_HUB_OFFLINE", "1")
HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "prompt-inputs-cpu.json"
TOPICS = HERE.parent / "models" / "topics"


@dataclass(frozen=True)
class Subject:
    """A checkpoint and the requests it is timed with: rows and tokens of text each.

    `new_tokens` is how many are decoded behind them, 0 for a classifier.
    """

    name: str
    base: Path
    adapter: Path
    requests: tuple[tuple[int, int], ...]
    new_tokens: int = 0

    def bundle(self, checkout: Path) -> Path:
        place = checkout / ".cache" / "against" / f"{self.name}.bundle"
        if not (place / "manifest.json").is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, "-m", "ptdeploy", "compile", str(self.adapter)]
            command += ["--target", "ort", "--base", str(self.base), "-o", str(place), "--force"]
            subprocess.run(command, check=True, cwd=checkout, env=environment(checkout))
        return place


def subjects() -> Iterator[Subject]:
    import shapes

    sys.path.insert(0, str(TOPICS))
    from data import find_base_model

    classify = ((1, 32), (16, 32), (16, 128))
    yield Subject("topics", find_base_model(), TOPICS / "adapter", classify)
    yield Subject("roberta", *shapes.roberta_small(20), classify)
    yield Subject("qwen2-classifier", *shapes.qwen2_classifier(20), ((1, 32), (8, 16), (8, 64)))
    yield Subject("qwen2-100m", *shapes.qwen2_100m(20), ((1, 32), (4, 16)), new_tokens=16)


def environment(checkout: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(checkout)}


def answer(bundle: str) -> None:
    """A checkout's side: times what each line of stdin asks for, in seconds.

    A list of tokens is a stream of texts of those lengths, to classify.
    """
    import ptdeploy

    threads = os.environ.get("PTDEPLOY_BENCHMARK_THREADS")
    engine: Any = ptdeploy.load(bundle, threads=int(threads) if threads else None)
    vocabulary = engine.manifest.limits.vocab_size
    print("ready", flush=True)
    for line in sys.stdin:
        rows, tokens, new = json.loads(line)
        lengths = tokens if isinstance(tokens, list) else [tokens] * rows
        random = np.random.default_rng(0)
        ids = [random.integers(0, vocabulary, length).tolist() for length in lengths]
        start = time.perf_counter()
        if isinstance(tokens, list):
            engine.classify(ids)
        elif new:
            engine.generate(ids, new, do_sample=False, eos_token_ids=())
        else:
            engine.logits(ids)
        print(time.perf_counter() - start, flush=True)


def answering(checkout: Path, bundle: Path) -> AbstractContextManager[subprocess.Popen[str]]:
    """A checkout's process, open on a bundle."""
    command = [sys.executable, str(Path(__file__).resolve()), "--answer", str(bundle)]
    return process(command, checkout, environment(checkout))


def measure(subject: Subject, other: Path, rounds: int) -> Iterator[dict[str, Any]]:
    here = HERE.parent
    bundles = [subject.bundle(checkout) for checkout in (other, here)]
    with answering(other, bundles[0]) as before, answering(here, bundles[1]) as now:
        for rows, tokens in subject.requests:
            request = (rows, tokens, subject.new_tokens)
            theirs, ours = by_turns((before, now), request, rounds)
            ratio, quartiles = ratios(ours, theirs)
            yield {
                "model": subject.name,
                "rows": rows,
                "tokens": tokens,
                "new_tokens": subject.new_tokens,
                "before_ms": 1e3 * statistics.median(theirs),
                "now_ms": 1e3 * statistics.median(ours),
                "ratio": ratio,
                "ratio_of_best": min(ours) / min(theirs),
                "ratio_quartiles": quartiles,
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("other", nargs="?", help="folder of the other checkout")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="*", help="names of models")
    parser.add_argument("--answer", help=argparse.SUPPRESS)
    parser.add_argument("--no-save", action="store_true", help="print only")
    arguments = parser.parse_args()
    if arguments.answer:
        answer(arguments.answer)
        return
    if arguments.other is None:
        parser.error("name the folder of the other checkout")
    sys.path.insert(0, str(HERE))
    other = Path(arguments.other).resolve()
    cells = []
    for subject in subjects():
        if arguments.only and subject.name not in arguments.only:
            continue
        for cell in measure(subject, other, arguments.rounds):
            cells.append(cell)
            low, high = cell["ratio_quartiles"]
            print(
                f"{cell['model']:<18} {cell['rows']:>2}x{cell['tokens']:<4}"
                f"{cell['before_ms']:>9.2f} ms {cell['now_ms']:>9.2f} ms   {cell['ratio']:.3f} "
                f"({low:.3f} to {high:.3f}), of the best {cell['ratio_of_best']:.3f}",
                flush=True,
            )
    if not cells:
        parser.error(f"no model is named {' or '.join(arguments.only)}")
    if not arguments.no_save:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=other, capture_output=True, text=True
        ).stdout.strip()
        run = {"date": str(date.today()), "before": commit}
        keep(RESULTS, [{**run, **cell} for cell in cells])


if __name__ == "__main__":
    main()
