"""Targets on a CPU by turns in one run: which is fastest for what.

    python benchmarks/targets.py [--rounds 9] [--only NAME ...]

Each bundle is compiled once, kept in the cache, and answers in a process of its own, one thread.
What counts is the process's own CPU time, so that other work on the machine lengthens all alike.
Printed and kept in benchmarks/results/ are medians, and how often each is as fast as the target ort
in fp32, with quartiles over the rounds. Random weights are no test of quality: any is accepted.
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
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from turns import by_turns, keep, process, ratios

os.environ.setdefault("HF_HUB_OFFLINE", "1")
HERE = Path(__file__).resolve().parent
CACHE = HERE.parent / ".cache" / "targets"
RESULTS = HERE / "results" / "targets-cpu.json"
TOPICS = HERE.parent / "models" / "topics"
STEPS = 8

# Of a request its rows, the tokens of each, and how many are then written.
Request = tuple[int, int, int]


@dataclass(frozen=True)
class Subject:
    """A checkpoint, the engines that answer for it, and what they are asked."""

    name: str
    base: Path
    adapter: Path
    engines: tuple[tuple[str, str], ...]
    requests: dict[str, Request]

    def bundle(self, target: str, precision: str, calibrated: bool = False) -> Path:
        how = "-calibrated" if calibrated else ""
        place = CACHE / f"{self.name}-{target}-{precision}{how}.bundle"
        if not (place / "manifest.json").is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, "-m", "ptdeploy", "compile", str(self.adapter)]
            command += ["--base", str(self.base), "--target", target, "--precision", precision]
            command += ["-o", str(place)]
            if precision != "fp32":
                writes = any(new for _, _, new in self.requests.values())
                bound = "--max-perplexity-ratio" if writes else "--max-logits-error"
                command += ["--min-agreement", "0", bound, "1e9"]
            if calibrated:
                command += ["--calibration", str(calibration(place.parent))]
            subprocess.run(command, check=True)
        return place


def calibration(folder: Path) -> Path:
    """A file in `folder` of 300 of the texts that topics was trained on, a line each."""
    from data import load_split

    train = load_split().train
    chosen = np.random.default_rng(0).permutation(len(train))[:300]
    file = folder / "calibration.txt"
    file.write_text("".join(f"{' '.join(train[one].text.split())}\n" for one in chosen))
    return file


def subjects() -> Iterator[Subject]:
    import shapes

    sys.path.insert(0, str(TOPICS))
    from data import find_base_model

    encoders = tuple((target, one) for one in ("fp32", "int8") for target in ("ort", "openvino"))
    decoders = (*encoders, ("ort", "int4"), ("openvino", "int4"))
    classify = {f"{rows}x{tokens}": (rows, tokens, 0) for rows, tokens in ((1, 32), (16, 32))}
    yield Subject("topics", find_base_model(), TOPICS / "adapter", encoders, classify)
    write = {
        "prefill of 1x128": (1, 128, 0),
        "prefill of 8x16": (8, 16, 0),
        "decode step of 1 row": (1, 16, STEPS),
        "decode step of 8 rows": (8, 16, STEPS),
    }
    yield Subject("qwen2-100m", *shapes.qwen2_100m(100), decoders, write)


def answer(bundle: str) -> None:
    """An engine's side: the CPU time of what each line of stdin asks for, in seconds."""
    import ptdeploy

    engine: Any = ptdeploy.load(bundle, threads=1)
    vocabulary = engine.manifest.limits.vocab_size

    def spent(ids: list[list[int]], new: int) -> float:
        start = time.process_time()
        if engine.writes:
            engine.generate(ids, new, do_sample=False, eos_token_ids=())
        else:
            engine.logits(ids)
        return time.process_time() - start

    print("ready", flush=True)
    for line in sys.stdin:
        rows, tokens, new = json.loads(line)
        ids = np.random.default_rng(0).integers(0, vocabulary, (rows, tokens)).tolist()
        first = spent(ids, 1)
        print((spent(ids, 1 + new) - first) / new if new else first, flush=True)


def measure(subject: Subject, rounds: int) -> Iterator[dict[str, Any]]:
    """What each engine takes for each request, the target ort in fp32 first."""
    with ExitStack() as stack:
        running = []
        for engine in subject.engines:
            command = [sys.executable, str(Path(__file__).resolve()), "--answer"]
            running.append(stack.enter_context(process([*command, str(subject.bundle(*engine))])))
        for name, request in subject.requests.items():
            found = by_turns(running, request, rounds)
            for (target, precision), times in zip(subject.engines, found, strict=True):
                ratio, quartiles = ratios(found[0], times)
                yield {
                    "model": subject.name,
                    "request": name,
                    "target": target,
                    "precision": precision,
                    "ms": 1e3 * statistics.median(times),
                    "times_as_fast": ratio,
                    "quartiles": quartiles,
                }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="*", help="names of models")
    parser.add_argument("--answer", help=argparse.SUPPRESS)
    parser.add_argument("--no-save", action="store_true", help="print only")
    arguments = parser.parse_args()
    if arguments.answer:
        answer(arguments.answer)
        return
    sys.path.insert(0, str(HERE))
    cells = []
    for subject in subjects():
        if arguments.only and subject.name not in arguments.only:
            continue
        for cell in measure(subject, arguments.rounds):
            cells.append(cell)
            low, high = cell["quartiles"]
            engine = f"{cell['target']} {cell['precision']}"
            print(
                f"{cell['model']:<12} {cell['request']:<22} {engine:<14} {cell['ms']:>8.1f} ms  "
                f"{cell['times_as_fast']:.2f} ({low:.2f} to {high:.2f})",
                flush=True,
            )
    if not cells:
        parser.error(f"no model is named {' or '.join(arguments.only)}")
    if not arguments.no_save:
        keep(RESULTS, cells)


if __name__ == "__main__":
    main()
