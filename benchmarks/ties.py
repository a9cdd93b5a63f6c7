"""What PTDEPLOY_PIN=1 gives a single text, and what it takes from processes that share cores.

    python benchmarks/ties.py [--rounds 30] [--threads 2]

The encoder of models/topics in fp32, by the engines that benchmarks/targets.py compiled; each in a
process of its own, by turns (turns.py), so that a request comes after a pause. Beside them OpenVINO
alone over the same graph, which ties its threads by itself. Then four processes of one kind at
once, each with so many threads: how many requests they answer in a second. Kept in
benchmarks/results/: medians, and ratios to OpenVINO alone of the same round; of four processes the
rate, and its ratio to the untied engine's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from against import HERE, environment
from turns import ask, by_turns, process, ratios

RESULTS = HERE / "results" / "ties-cpu.json"
PROCESSES, SECONDS = 4, 6.0
TOKENS = (32, 128)
# A worker's kind, the target of its bundle, and what PTDEPLOY_PIN is.
ENGINES = {
    "OpenVINO alone": ("OpenVINO on our graph", "openvino", "0"),
    "openvino": ("encoder", "openvino", "0"),
    "openvino, tied": ("encoder", "openvino", "1"),
    "ort": ("encoder", "ort", "0"),
    "ort, tied": ("encoder", "ort", "1"),
}


def answering(name: str, threads: int) -> AbstractContextManager[subprocess.Popen[str]]:
    kind, target, tied = ENGINES[name]
    bundle = HERE.parent / ".cache" / "targets" / f"topics-{target}-fp32.bundle"
    worker = HERE / "peers" / "worker.py"
    command = [sys.executable, str(worker), kind, str(bundle), str(threads)]
    return process(command, HERE.parent, {**environment(HERE.parent), "PTDEPLOY_PIN": tied})


def request(tokens: int) -> dict[str, int]:
    return {"rows": 1, "tokens": tokens, "vocabulary": 20000}


def alone(rounds: int, threads: int) -> list[dict[str, Any]]:
    cells = []
    with ExitStack() as stack:
        running = [stack.enter_context(answering(name, threads)) for name in ENGINES]
        for tokens in TOKENS:
            found = by_turns(running, request(tokens), rounds)
            times = [[answer["wall"] for answer in answers] for answers in found]
            for name, own in zip(ENGINES, times, strict=True):
                ratio, quartiles = ratios(own, times[0])
                cells.append(
                    {
                        "engine": name,
                        "tokens": tokens,
                        "median_ms": 1e3 * statistics.median(own),
                        "best_ms": 1e3 * min(own),
                        "ratio": ratio,
                        "ratio_quartiles": quartiles,
                    }
                )
                print(f"1x{tokens}", json.dumps(cells[-1]), flush=True)
    return cells


def rate(name: str, threads: int) -> float:
    """Requests a second of several processes at once."""
    answered = [0] * PROCESSES
    with ExitStack() as stack:
        running = [stack.enter_context(answering(name, threads)) for _ in range(PROCESSES)]
        for one in running:
            ask(one, request(TOKENS[0]))
        end = time.monotonic() + SECONDS

        def load(index: int) -> None:
            one = running[index]
            assert one.stdin is not None
            assert one.stdout is not None
            while time.monotonic() < end:
                one.stdin.write(json.dumps(request(TOKENS[0])) + "\n")
                one.stdin.flush()
                one.stdout.readline()
                answered[index] += 1

        clients = [threading.Thread(target=load, args=(index,)) for index in range(PROCESSES)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
    return sum(answered) / SECONDS


def together(rounds: int, threads: int) -> list[dict[str, Any]]:
    names = [name for name in ENGINES if name != "OpenVINO alone"]
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            found[name].append(rate(name, threads))
    cells = []
    for name, rates in found.items():
        ratio, quartiles = ratios(rates, found[name.partition(",")[0]])
        cells.append(
            {
                "engine": name,
                "per_second": statistics.median(rates),
                "ratio": ratio,
                "ratio_quartiles": quartiles,
            }
        )
        print(f"{PROCESSES} processes", json.dumps(cells[-1]), flush=True)
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-save", action="store_true", help="print only")
    arguments = parser.parse_args()
    load = os.getloadavg()
    cells = alone(arguments.rounds, arguments.threads)
    several = together(max(arguments.rounds // 6, 3), arguments.threads)
    if not arguments.no_save:
        kept = {"threads": arguments.threads, "load_before": load, "alone": cells}
        RESULTS.write_text(json.dumps({**kept, "four_processes": several}, indent=1) + "\n")


if __name__ == "__main__":
    main()
