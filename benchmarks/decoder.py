"""First token, decode, overhead, load and memory of a decoder bundle, as ratios in one run.

    python benchmarks/decoder.py [--model qwen2|storyteller] [--rounds 7] [--genai FOLDER]

Models: Qwen2.5-0.5B's shape with random weights and 100 virtual tokens, or models/storyteller. All
variants take turns within each round, and what is printed are medians. `--genai` is a folder that
holds onnxruntime-genai (pip install --no-deps --target FOLDER), to compare its own generate loop on
the same weights; its builder makes its models in the cache once. Memory and opening are measured
in processes of their own. They are printed as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("HF_HUB_OFFLINE", "1")
HERE = Path(__file__).parent
CACHE = HERE.parent / ".cache" / "shapes"
sys.path.insert(0, str(HERE))
REAL, VIRTUAL = 16, 100
# Threads of one engine spin for a while after its run, and would take a core from the next.
REST = 0.05


@dataclass(frozen=True)
class Subject:
    """A P-Tuned model: folders of its base and adapter, and how many tokens it knows.

    `steps` is how many tokens are decoded to time one.
    """

    name: str
    base: Path
    adapter: Path
    vocabulary: int
    steps: int

    @property
    def ids(self) -> np.ndarray:
        return np.random.default_rng(0).integers(0, self.vocabulary, REAL)

    def output(self, precision: str, freeze_kv: bool = True) -> Path:
        return CACHE / f"{self.name}-{precision}{'' if freeze_kv else '-unfrozen'}.bundle"

    def command(self, precision: str, freeze_kv: bool = True) -> list[str]:
        """The command that compiles it. Random weights are no test of quality: any is accepted."""
        command = [sys.executable, "-m", "ptdeploy", "compile", str(self.adapter)]
        command += ["--target", "ort", "--base", str(self.base), "--force"]
        command += ["-o", str(self.output(precision, freeze_kv)), "--precision", precision]
        if precision != "fp32":
            command += ["--min-agreement", "0", "--max-perplexity-ratio", "1e9"]
        return command if freeze_kv else [*command, "--no-freeze-kv"]

    def bundle(self, precision: str, freeze_kv: bool = True) -> Path:
        """Compile once; the cache keeps it."""
        path = self.output(precision, freeze_kv)
        if not path.exists():
            subprocess.run(self.command(precision, freeze_kv), check=True, stdout=sys.stderr)
        return path


def subject(name: str) -> Subject:
    if name == "qwen2":
        import shapes

        return Subject(name, *shapes.qwen2_05b(VIRTUAL), 151_936, 8)
    folder = HERE.parent / "models" / "storyteller"
    return Subject(name, folder / "base", folder / "adapter", 2048, 64)


def read_bandwidth() -> float:
    """Bytes a second that two threads read, the best of a few products over 2 GB."""
    from concurrent.futures import ThreadPoolExecutor

    arrays = [np.ones(1 << 27, np.float32) for _ in range(4)]
    best = 0.0
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            start = time.perf_counter()
            list(pool.map(np.dot, arrays[:2], arrays[2:]))
            best = max(best, sum(a.nbytes for a in arrays) / (time.perf_counter() - start))
    return best


class Ours:
    """A bundle: the time to a first token, and of each further one."""

    def __init__(self, model: Subject, path: Path, prompt: bool = True, **options: Any) -> None:
        import ptdeploy

        self.engine = ptdeploy.load(path, **options)
        self.ids, self.steps = model.ids, model.steps
        rows = self.engine.buffers.own(self.engine.prompt, REAL + self.steps)
        self.kv, self.fed = rows.kv, rows.fed(0, self.ids)
        self.prompt = prompt

    def first(self) -> float:
        self.kv.reset()
        if not self.prompt:
            self.kv.lengths[:] = 0
        start = time.perf_counter()
        self.kv.prefill(0, self.fed if self.prompt else self.ids)[0].argmax()
        return time.perf_counter() - start

    def decode(self) -> float:
        """Seconds a token, through the public generate: sampling and loop included."""
        for _ in range(2):
            one = time.perf_counter()
            self.engine.generate([self.ids], 1, do_sample=False, eos_token_ids=())
            first = time.perf_counter() - one
        start = time.perf_counter()
        self.engine.generate([self.ids], 1 + self.steps, do_sample=False, eos_token_ids=())
        return (time.perf_counter() - start - first) / self.steps

    def overhead(self) -> float:
        """The share of a decode step that is not the engine's run."""
        from ptdeploy.runtime.generation import GeneratingRow, decode

        inside = 0.0
        kv = self.engine.buffers.own(self.engine.prompt, REAL + 4 * self.steps).kv
        logits = kv.prefill(0, self.fed)
        run = kv._decode

        def timed() -> None:
            nonlocal inside
            start = time.perf_counter()
            run()
            inside += time.perf_counter() - start

        kv._decode = timed
        options = self.engine.options(4 * self.steps, {"do_sample": False, "eos_token_ids": ()})
        row = GeneratingRow(self.ids.tolist(), options, None, (), False, None, 4 * self.steps)
        start = time.perf_counter()
        for _ in decode(kv, logits, [row], self.engine.buffers.words, None):
            pass
        total = time.perf_counter() - start
        return (total - inside) / total


class Peft:
    """PEFT on PyTorch, eager, fp32."""

    def __init__(self, model: Subject) -> None:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(2)
        base = AutoModelForCausalLM.from_pretrained(model.base, dtype=torch.float32)
        self.model = PeftModel.from_pretrained(base, model.adapter).eval()
        self.ids, self.steps = torch.from_numpy(model.ids)[None], model.steps

    def generate(self, tokens: int) -> float:
        import torch

        start = time.perf_counter()
        self.model.generate(
            input_ids=self.ids,
            attention_mask=torch.ones_like(self.ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )
        return time.perf_counter() - start

    def decode(self) -> float:
        self.generate(1)
        first = self.generate(1)
        return (self.generate(1 + self.steps) - first) / self.steps


class Genai:
    """onnxruntime-genai's builder and generate loop, on the base model without a prompt."""

    def __init__(self, model: Subject, precision: str) -> None:
        import onnxruntime_genai as genai

        path = CACHE / f"genai-{model.name}-{precision}"
        if not (path / "genai_config.json").exists():
            builder = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
            builder += ["-i", str(model.base)]
            builder += ["-o", str(path), "-p", precision, "-e", "cpu", "-c", str(path / "cache")]
            paths = os.pathsep.join(sys.path)
            subprocess.run(
                builder,
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": paths},
            )
        self.genai, self.model = genai, genai.Model(str(path))
        self.ids, self.steps = model.ids.astype(np.int32), model.steps

    def decode(self) -> float:
        parameters = self.genai.GeneratorParams(self.model)
        parameters.set_search_options(
            max_length=REAL + self.steps + 8, min_length=REAL + self.steps + 4, do_sample=False
        )
        generator = self.genai.Generator(self.model, parameters)
        generator.append_tokens(self.ids)
        generator.generate_next_token()
        start = time.perf_counter()
        for _ in range(self.steps):
            generator.generate_next_token()
        return (time.perf_counter() - start) / self.steps


def loaded(path: Path, map_weights: bool) -> list[float]:
    """Seconds to open a bundle in a fresh process, and the bytes it then holds resident."""
    code = f"""
import re, time, json, numpy, tokenizers, ptdeploy
from ptdeploy.backends.telemetry import import_onnxruntime
import_onnxruntime()
def kb(name): return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
before, start = kb("VmRSS"), time.perf_counter()
engine = ptdeploy.load({str(path)!r}, map_weights={map_weights})
seconds = time.perf_counter() - start
engine.generate([[1, 2, 3]], 2, eos_token_ids=())
print(json.dumps([seconds, (kb("VmRSS") - before) * 1024]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found: list[float] = json.loads(done.stdout)
    return found


def opening(paths: dict[str, tuple[Path, bool]], rounds: int) -> dict[str, dict[str, float]]:
    """Every bundle opened once in each round; medians, the quickest, and memory over weights."""
    runs: dict[str, list[list[float]]] = {name: [] for name in paths}
    for _ in range(rounds):
        for name, (path, map_weights) in paths.items():
            runs[name].append(loaded(path, map_weights))
    return {
        name: {
            "median_s": float(np.median([one[0] for one in found])),
            "quickest_s": min(one[0] for one in found),
            "resident_over_weights": float(np.median([one[1] for one in found]))
            / (paths[name][0] / "model.onnx.data").stat().st_size,
        }
        for name, found in runs.items()
    }


def compile_peak(model: Subject, precision: str) -> float:
    """The most memory that a compilation held resident, over the bytes of the model's weights."""
    # A child of its own that waits for no other: then its peak is that of its only child.
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, "
        "stdout=sys.stderr); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *model.command(precision)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    weights = sum(file.stat().st_size for file in model.base.glob("*.safetensors"))
    return int(done.stdout) * 1024 / weights


def take_turns(measures: dict[str, Any], rounds: int) -> dict[str, float]:
    """Every measure once in each round, after one unmeasured round; medians."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for index in range(rounds + 1):
        for name, measure in measures.items():
            time.sleep(REST)
            value = measure()
            if index:
                found[name].append(value)
    return {name: float(np.median(values)) for name, values in found.items()}


def bytes_read(path: Path) -> int:
    """Weights that a decode step of the Qwen2 shape reads: of the embeddings, only one row.

    fp32 ties its head to the embeddings, and reads it; int4 has a head of its own.
    """
    size = (path / "model.onnx.data").stat().st_size
    return size if "fp32" in path.name else size - 151_936 * 896 * 4


def ceilings(model: Subject, paths: dict[str, Path], results: dict[str, Any]) -> dict[str, float]:
    """How much of the memory's bandwidth decoding uses; nothing for a model that fits a cache."""
    if model.name != "qwen2":
        return {}
    ceiling = max(results["bandwidth_gb_s"]) * 1e9
    return {
        f"decode, {name} of the bandwidth ceiling": bytes_read(path)
        / ceiling
        / results["decode_s"][name]
        for name, path in paths.items()
    }


def ratios(results: dict[str, Any]) -> dict[str, float]:
    """How the measured seconds lie to one another."""
    first, decode = results["first_token_s"], results["decode_s"]
    return {
        "first token, frozen over no prompt": first["frozen"] / first["no prompt"],
        "first token, prompt in the prefill over frozen": first["prompt in the prefill"]
        / first["frozen"],
        **{
            f"decode, {name} over PEFT eager": decode["PEFT eager fp32"] / seconds
            for name, seconds in decode.items()
            if not name.startswith("PEFT")
        },
        **{
            f"decode, {name} over genai's loop": decode[f"genai {name}"] / decode[name]
            for name in ("fp32", "int4")
            if f"genai {name}" in decode
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("qwen2", "storyteller"), default="qwen2")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--genai")
    parser.add_argument("--compile-peak", action="store_true", help="compile again, for its memory")
    arguments = parser.parse_args()
    if arguments.genai:
        sys.path.append(arguments.genai)
    model, rounds = subject(arguments.model), arguments.rounds
    results: dict[str, Any] = {
        "date": str(date.today()),
        "cpu": _cpu(),
        "model": model.name,
        "rounds": rounds,
    }
    if arguments.compile_peak:
        results["compile_peak_over_weights"] = {
            name: compile_peak(model, name) for name in ("fp32", "int4")
        }
    paths = {name: model.bundle(name) for name in ("fp32", "int4")}
    unfrozen = model.bundle("fp32", freeze_kv=False)

    fp32, plain = Ours(model, paths["fp32"]), Ours(model, unfrozen)
    bare = Ours(model, paths["fp32"], prompt=False)
    results["first_token_s"] = take_turns(
        {"frozen": fp32.first, "no prompt": bare.first, "prompt in the prefill": plain.first},
        rounds,
    )
    del plain, bare
    int4 = Ours(model, paths["int4"])
    mapped = Ours(model, paths["fp32"], map_weights=True)
    measures = {
        "PEFT eager fp32": Peft(model).decode,
        "fp32": fp32.decode,
        "fp32 mapped": mapped.decode,
        "int4": int4.decode,
    }
    if arguments.genai:
        measures |= {f"genai {p}": Genai(model, p).decode for p in ("fp32", "int4")}
    before = read_bandwidth()
    results["decode_s"] = take_turns(measures, rounds)
    results["bandwidth_gb_s"] = [before / 1e9, read_bandwidth() / 1e9]
    results["overhead"] = take_turns({"fp32": fp32.overhead, "int4": int4.overhead}, rounds)
    del fp32, int4, mapped, measures
    results["open"] = opening(
        {
            "fp32": (paths["fp32"], False),
            "fp32 mapped": (paths["fp32"], True),
            "int4": (paths["int4"], False),
        },
        rounds,
    )
    results["ratios"] = ratios(results) | ceilings(model, paths, results)
    print(json.dumps(results, indent=2))


def _cpu() -> str:
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{found[1] if found else 'CPU'}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
