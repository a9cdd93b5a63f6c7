"""ptdeploy on a CPU beside its peers: OpenVINO, llama.cpp, CTranslate2, ONNX Runtime, its genai.

    python benchmarks/peers.py --python PEERS/bin/python [--rounds 7] [--models NAME ...]

PEERS is a virtual environment with benchmarks/peers/requirements.txt, which says how it is made.
All engines have the same random weights, made into each one's own format once and kept in the
cache. Those of one precision take turns, each in a process of its own (see turns.py). Virtual
tokens are in ptdeploy's KV cache only; a peer has as many tokens of text there, so that attention
does the same work. An encoder's peer has rows that are as much longer. Printed are medians; kept
in benchmarks/results/ are quartiles and the best too, of wall time and of the process's CPU time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from targets import HERE, TOPICS, Subject
from turns import ask, by_turns, process, ratios

CACHE = HERE.parent / ".cache" / "peers"
RESULTS = HERE / "results" / "peers-cpu.json"
VIRTUAL, STEPS = 100, 8
MODELS = ("topics", "qwen2-0.5b", "qwen2-100m", "qwen2-tiny")
GGUF = {"int8": "Q8_0", "int4": "Q4_0"}
PACKAGES = ("openvino", "nncf", "llama_cpp", "ctranslate2", "onnxruntime", "onnxruntime_genai")
NO_INT4 = "CTranslate2 has no int4 on a CPU"

DECODER = {
    "first token": (1, 16, 0),
    "prefill of 128": (1, 128, 0),
    "decode, 1 row": (1, 16, STEPS),
    "decode, 8 rows": (8, 16, STEPS),
    "prefill of 8x16": (8, 16, 0),
}
ENCODER = {f"{rows}x{tokens}": (rows, tokens, 0) for rows in (1, 16) for tokens in (32, 128)}


@dataclass(frozen=True)
class Contender:
    """An engine: which class of peers/ runs it, with whose Python, and on what."""

    name: str
    kind: str
    python: str
    path: Path | None
    refused: str = ""


@dataclass(frozen=True)
class Group:
    """Engines of one model in one precision, and what they are asked."""

    model: str
    precision: str
    vocabulary: int
    past: int
    requests: dict[str, tuple[int, int, int]]
    contenders: list[Contender]


class Workshop:
    """Makes each engine's files once; `peers` is the Python that has the peers' packages."""

    def __init__(self, peers: str) -> None:
        self.peers = peers
        self._packages = self._said("sysconfig.get_path('purelib')")
        self._missing = {
            one for one in PACKAGES if self._said(f"util.find_spec({one!r})") == "None"
        }

    def _said(self, what: str) -> str:
        code = f"import sysconfig\nfrom importlib import util\nprint({what})"
        return subprocess.check_output([self.peers, "-c", code], text=True).strip()

    def made(self, maker: str, source: Path, name: str, precision: str, own: bool = False) -> Path:
        """What peers/make.py makes of `source`, with this Python if `own`."""
        place = CACHE / name
        if place.exists():
            return place
        CACHE.mkdir(parents=True, exist_ok=True)
        begun = CACHE / f"begun-{name}"
        script = [str(HERE / "peers" / "make.py"), maker, str(source), str(begun), precision]
        command = [sys.executable, *script, self._packages] if own else [self.peers, *script]
        subprocess.run(command, check=True, stdout=sys.stderr)
        # Beside an OpenVINO graph its weights have its name.
        if begun.suffix == ".xml":
            begun.with_suffix(".bin").rename(place.with_suffix(".bin"))
        begun.rename(place)
        return place

    def peer(self, kind: str, package: str, make: Callable[[], Path], name: str = "") -> Contender:
        """An engine of the peers' environment, if it is there."""
        if package in self._missing:
            why = f"{package} is not installed in the peers' environment"
            return Contender(name or kind, kind, self.peers, None, why)
        return Contender(name or kind, kind, self.peers, make())

    def decoders(self, subject: Subject, precision: str) -> Iterator[Contender]:
        base, name = subject.base, subject.name

        def openvino() -> Path:
            plain = self.made("openvino_decoder", base, f"{name}-fp32.xml", "fp32", own=True)
            if precision == "fp32":
                return plain
            return self.made("openvino_compressed", plain, f"{name}-{precision}.xml", precision)

        def gguf() -> Path:
            plain = self.made("gguf", base, f"{name}-F32.gguf", "F32")
            if precision == "fp32":
                return plain
            kind = GGUF[precision]
            return self.made("gguf_quantized", plain, f"{name}-{kind}.gguf", kind)

        def ctranslate2() -> Path:
            kind = "float32" if precision == "fp32" else precision
            return self.made("ctranslate2", base, f"{name}-{kind}", kind)

        def genai() -> Path:
            return self.made("genai", base, f"{name}-genai-{precision}", precision, own=True)

        for target in ("ort", "openvino"):
            bundle = subject.bundle(target, precision)
            yield Contender(f"ptdeploy {target}", "ptdeploy", sys.executable, bundle)
        yield self.peer("OpenVINO", "openvino", openvino)
        yield self.peer("llama.cpp", "llama_cpp", gguf)
        if precision == "int4":
            yield Contender("CTranslate2", "CTranslate2", self.peers, None, NO_INT4)
        else:
            yield self.peer("CTranslate2", "ctranslate2", ctranslate2)
        yield self.peer("onnxruntime-genai", "onnxruntime_genai", genai)

    def encoders(self, subject: Subject, precision: str) -> Iterator[Contender]:
        for target in ("ort", "openvino"):
            bundle = subject.bundle(target, precision)
            yield Contender(f"ptdeploy {target}", "encoder", sys.executable, bundle)
            if precision == "int8":
                bundle, name = (
                    subject.bundle(target, precision, True),
                    f"ptdeploy {target} calibrated",
                )
                yield Contender(name, "encoder", sys.executable, bundle)
        onnx = self.made("plain_encoder", subject.base, "plain.onnx", "fp32", own=True)
        fused = self.made("onnxruntime_fused", onnx, "plain-fused.onnx", "fp32", own=True)
        openvino, onnxruntime = "OpenVINO, plain export", "ONNX Runtime, plain export"
        if precision == "fp32":
            ours = subject.bundle("openvino", "fp32")
            alone = "OpenVINO on our graph"
            yield Contender(alone, alone, sys.executable, ours)
            yield self.peer(openvino, "openvino", lambda: onnx)
            yield self.peer(onnxruntime, "onnxruntime", lambda: fused)
            return

        def static() -> Path:
            return self.made("openvino_quantized", onnx, "plain-int8.xml", "int8")

        def dynamic() -> Path:
            return self.made("onnx_dynamic", fused, "plain-int8.onnx", "int8", own=True)

        yield self.peer(openvino, "nncf", static, "OpenVINO, nncf's static int8")
        yield self.peer(onnxruntime, "onnxruntime", dynamic, "ONNX Runtime, dynamic int8")


def groups(workshop: Workshop, only: list[str], precisions: list[str]) -> Iterator[Group]:
    """What is compared, one model and precision after another; each is made when it is asked."""
    import shapes

    sys.path.insert(0, str(TOPICS))
    from data import find_base_model

    if "topics" in only:
        topics = Subject("topics", find_base_model(), TOPICS / "adapter", (), {})
        # An encoder has no int4.
        for precision in (one for one in precisions if one != "int4"):
            found = list(workshop.encoders(topics, precision))
            yield Group("topics", precision, 30_522, 0, ENCODER, found)
    decoders = {
        "qwen2-0.5b": shapes.qwen2_05b,
        "qwen2-100m": shapes.qwen2_100m,
        "qwen2-tiny": shapes.qwen2_tiny,
    }
    for name, shape in decoders.items():
        if name not in only:
            continue
        subject = Subject(name, *shape(VIRTUAL), (), {})
        config = json.loads((subject.base / "config.json").read_text())
        for precision in precisions:
            found = list(workshop.decoders(subject, precision))
            yield Group(name, precision, config["vocab_size"], VIRTUAL, DECODER, found)


def check_tokens(group: Group, names: list[str], running: list[Any]) -> None:
    """Raises AssertionError if engines in fp32 do not write the same."""
    if group.requests is not DECODER or group.precision != "fp32":
        return
    sizes = {"rows": 1, "tokens": 16, "new": STEPS, "past": group.past}
    request = {"greedy": True, "vocabulary": group.vocabulary, **sizes}
    written = {name: ask(one, request) for name, one in zip(names, running, strict=True)}
    assert len({tuple(tokens) for tokens in written.values()}) == 1, written


def measure(group: Group, threads: int, rounds: int) -> Iterator[dict[str, Any]]:
    """All engines of a group by turns; a cell for each request and engine."""
    able = [one for one in group.contenders if one.path is not None]
    with ExitStack() as stack:
        running = []
        for one in able:
            script = [str(HERE / "peers" / "worker.py"), one.kind, str(one.path), str(threads)]
            environment = {"PYTHONPATH": str(HERE.parent)} if one.python == sys.executable else {}
            command = [one.python, *script]
            running.append(stack.enter_context(process(command, environment=environment)))
        check_tokens(group, [one.name for one in able], running)
        for name, (rows, tokens, new) in group.requests.items():
            sizes = {"rows": rows, "tokens": tokens, "new": new, "past": group.past}
            found = by_turns(running, {"vocabulary": group.vocabulary, **sizes}, rounds)
            told = {one.name: times for one, times in zip(able, found, strict=True)}
            for one in group.contenders:
                yield {
                    "model": group.model,
                    "precision": group.precision,
                    "threads": threads,
                    "request": name,
                    "engine": one.name,
                    # Of an engine that cannot do the precision nothing was asked.
                    "asked": one.name in told,
                    **(summary(told[one.name]) if one.name in told else {"refused": one.refused}),
                }
            yield from compared(group, threads, name, told)


def summary(times: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians, quartiles and the best in milliseconds, or why there are none."""
    if "refused" in times[0]:
        return {"refused": times[0]["refused"]}
    found = {}
    for kind in ("wall", "cpu"):
        own = sorted(1e3 * one[kind] for one in times)
        quarter = len(own) // 4
        found[f"{kind}_ms"] = {
            "median": statistics.median(own),
            "quartiles": [own[quarter], own[-1 - quarter]],
            "best": own[0],
        }
    return found


def compared(
    group: Group, threads: int, request: str, told: dict[str, list[dict[str, Any]]]
) -> Iterator[dict[str, Any]]:
    """The fastest of ptdeploy's targets over each peer, round by round: under 1 is faster."""
    walls = {
        name: [one["wall"] for one in times]
        for name, times in told.items()
        if "refused" not in times[0]
    }
    ours = min((n for n in walls if n.startswith("ptdeploy")), key=lambda n: _median(walls[n]))
    for name, wall in walls.items():
        if not name.startswith("ptdeploy"):
            ratio, quartiles = ratios(walls[ours], wall)
            spent, _ = ratios(*([one["cpu"] for one in told[which]] for which in (ours, name)))
            yield {
                "model": group.model,
                "precision": group.precision,
                "threads": threads,
                "request": request,
                "ours": ours,
                "peer": name,
                "ratio": ratio,
                "ratio_quartiles": quartiles,
                "cpu_ratio": spent,
            }


def _median(values: list[float]) -> float:
    return statistics.median(values)


def show(cell: dict[str, Any]) -> None:
    where = f"{cell['model']:<11}{cell['precision']:<5}{cell['threads']} {cell['request']:<16}"
    if "peer" in cell:
        low, high = cell["ratio_quartiles"]
        print(
            f"{where}{cell['ours']:<18} over {cell['peer']:<28} {cell['ratio']:.2f} "
            f"({low:.2f} to {high:.2f}); CPU {cell['cpu_ratio']:.2f}",
            flush=True,
        )
    elif "refused" in cell:
        print(f"{where}{cell['engine']:<29} {cell['refused']}", flush=True)
    else:
        wall, cpu = cell["wall_ms"], cell["cpu_ms"]
        print(
            f"{where}{cell['engine']:<29}{wall['median']:9.1f} ms ({wall['quartiles'][0]:.1f} to "
            f"{wall['quartiles'][1]:.1f}), best {wall['best']:.1f}; CPU {cpu['median']:.1f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", required=True, help="of the environment with the peers")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="*", default=[2, 1])
    parser.add_argument(
        "--models",
        nargs="*",
        default=["topics", "qwen2-0.5b"],
        choices=MODELS,
        help="by default topics and qwen2-0.5b; qwen2-tiny is for trying it out",
    )
    parser.add_argument(
        "--precisions", nargs="*", default=["fp32", "int8", "int4"], help="by default all"
    )
    parser.add_argument("--make", action="store_true", help="make all engines, and stop")
    parser.add_argument("--no-save", action="store_true", help="print only")
    told = parser.parse_args()
    cells: list[dict[str, Any]] = []
    for group in groups(Workshop(told.python), told.models, told.precisions):
        for threads in () if told.make else told.threads:
            run = {"rounds": told.rounds, "load": round(os.getloadavg()[0], 1), "cpu": cpu()}
            for cell in measure(group, threads, told.rounds):
                cells.append({**cell, **run})
                show(cell)
    if cells and not told.no_save:
        found = {"cells": [*others(cells), *cells]}
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def others(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is kept of other models, precisions and numbers of threads."""
    kept = json.loads(RESULTS.read_text())["cells"] if RESULTS.exists() else []

    def place(cell: dict[str, Any]) -> tuple[str, str, int]:
        return cell["model"], cell["precision"], cell["threads"]

    measured = {place(cell) for cell in cells}
    return [cell for cell in kept if place(cell) not in measured]


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{names[0] if names else 'CPU'}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
