"""A decoder bundle in C++ and in Python, in one run: first token, decode, opening, memory, size.

    python benchmarks/cpp.py [--model qwen2|storyteller] [--rounds 7]

Models as in benchmarks/decoder.py. A C++ and a Python process hold the same bundle and take turns;
both answer through their public generate(). Opening and memory are measured in processes of their
own. What is printed are medians, kept in benchmarks/results/cpp-MODEL-cpu.json. Needs cmake, a
compiler and $ONNXRUNTIME_ROOT, as docs/cpp.md says.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
# Threads of one engine spin for a while after its run, and would take a core from the next.
REST = 0.1

PYTHON = """
import re, sys, time
engine = None
for line in sys.stdin:
    what, *given = line.split()
    start = time.perf_counter()
    if what == "open":
        import ptdeploy
        start = time.perf_counter()
        engine = ptdeploy.load(given[0])
        answer = time.perf_counter() - start
    elif what == "generate":
        ids = [int(part) for part in given[0].split(",")]
        engine.generate([ids], int(given[1]), eos_token_ids=())
        answer = time.perf_counter() - start
    else:
        answer = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
    print(answer, flush=True)
"""


class Child:
    """A process that answers one number for each request."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, *words: object) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(*words, file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


def commands() -> dict[str, list[str]]:
    """How to start each side; the C++ one is compiled as a release with its symbols stripped."""
    built = HERE.parent / ".cache" / "cpp" / "benchmark"
    library = HERE.parent / "ptdeploy" / "cpp" / "cmake"
    configure = ["cmake", "-S", str(HERE / "cpp"), "-B", str(built), f"-Dptdeploy_DIR={library}"]
    for command in ([*configure, "-DCMAKE_BUILD_TYPE=Release"], ["cmake", "--build", str(built)]):
        subprocess.run(command, check=True, stdout=sys.stderr)
    return {"C++": [str(built / "bench")], "Python": [sys.executable, "-c", PYTHON]}


def speeds(
    sides: dict[str, list[str]], path: Path, ids: str, steps: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Seconds to a first token, and tokens a second after it."""
    children = {name: Child(command) for name, command in sides.items()}
    first: dict[str, list[float]] = {name: [] for name in sides}
    rate: dict[str, list[float]] = {name: [] for name in sides}
    for child in children.values():
        child.ask("open", path)
        child.ask("generate", ids, steps)
    for _ in range(rounds):
        for name, child in children.items():
            time.sleep(REST)
            # The quickest of three: what another process took away is no part of the answer.
            one = min(child.ask("generate", ids, 1) for _ in range(3))
            whole = min(child.ask("generate", ids, 1 + steps) for _ in range(3))
            first[name].append(one)
            rate[name].append(steps / (whole - one))
    for child in children.values():
        child.close()
    return {
        "first_token_s": {name: float(np.median(found)) for name, found in first.items()},
        "decode_tok_s": {name: float(np.median(found)) for name, found in rate.items()},
        "decode_tok_s_spread": {
            name: [float(min(found)), float(max(found))] for name, found in rate.items()
        },
    }


def openings(
    sides: dict[str, list[str]], path: Path, ids: str, rounds: int
) -> dict[str, dict[str, float]]:
    """Seconds to open, and from a process's start to its first token; and its peak memory."""
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, command in sides.items():
            start = time.perf_counter()
            child = Child(command)
            opened = child.ask("open", path)
            child.ask("generate", ids, 1)
            begun = time.perf_counter() - start
            found[name].append((opened, begun, child.ask("peak")))
            child.close()
    return {
        key: {name: float(np.median([one[i] for one in runs])) for name, runs in found.items()}
        for i, key in enumerate(("open_s", "start_to_first_token_s", "peak_bytes"))
    }


def sizes(sides: dict[str, list[str]]) -> dict[str, int]:
    """Bytes on disk: the program, the engine's library, and what Python needs instead."""
    packages = ("onnxruntime", "numpy", "tokenizers", "safetensors", "msgspec", "jinja2")
    library = (Path(os.environ["ONNXRUNTIME_ROOT"]) / "lib" / "libonnxruntime.so").resolve()
    return {
        "C++ program": Path(sides["C++"][0]).stat().st_size,
        "libonnxruntime": library.stat().st_size,
        "Python packages, without Python": sum(_folder(name) for name in packages),
    }


def _folder(package: str) -> int:
    import importlib

    found = importlib.import_module(package).__file__
    assert found is not None
    folder = Path(found).parent
    libraries = folder.parent / f"{package}.libs"
    return sum(
        file.stat().st_size
        for place in (folder, libraries)
        for file in place.rglob("*")
        if file.is_file() and file.suffix != ".pyc"
    )


def main() -> None:
    import decoder

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("qwen2", "storyteller"), default="qwen2")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    if "ONNXRUNTIME_ROOT" not in os.environ:
        parser.error("ONNXRUNTIME_ROOT is not set: docs/cpp.md says to what")
    model, sides = decoder.subject(arguments.model), commands()
    ids = ",".join(map(str, model.ids))
    results: dict[str, Any] = {
        "date": str(date.today()),
        "cpu": decoder._cpu(),
        "model": model.name,
        "rounds": arguments.rounds,
        "tokens_of_text": len(model.ids),
        "steps": model.steps,
    }
    for precision in ("fp32", "int4"):
        path = model.bundle(precision)
        results[precision] = {
            **speeds(sides, path, ids, model.steps, arguments.rounds),
            **openings(sides, path, ids, arguments.rounds),
            "weights_bytes": (path / "model.onnx.data").stat().st_size,
        }
    results["size_bytes"] = sizes(sides)
    output = HERE / "results" / f"cpp-{model.name}-cpu.json"
    output.parent.mkdir(exist_ok=True)
    output.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
