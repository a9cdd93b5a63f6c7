"""TensorRT against PEFT (eager, torch.compile) and ONNX Runtime's CUDA provider, in one run.

    python benchmarks/gpu/engines.py --model bert|qwen2 [--precision fp16] [--rounds 15]
                                     [--contenders peft,compile,ort,trt] [--device cuda] [--out F]

BERT-base's and Qwen2.5-0.5B's shape, random weights, 20 and 100 virtual tokens. All contenders take
turns within each round; what is printed are medians, and ratios over PEFT eager. With `--tiny
--device cpu --precision fp32 --contenders peft,ort` the script itself can be tried without a GPU.
Both bundles are compiled first, which proves them; a contender that cannot run here ends the
script. `ort-prefill` and `trt-prefill` run the prompt before every text instead of freezing it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

REQUESTS = ((1, 32), (16, 128), (64, 128))
TEXTS, BATCHES, STEPS = (16, 512), (1, 8, 32), 32
# Room for the longest text and what is written to it, and for the largest batch.
ROOM, ROWS = 1024, 32
VIRTUAL = {"bert": 20, "qwen2": 100}
Timed = dict[str, Callable[[], float]]


@dataclass(frozen=True)
class Setting:
    """A model's shape, the folders of its base and adapter, and what it is run in and on."""

    model: str
    base: Path
    adapter: Path
    precision: str
    device: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("bert", "qwen2"), required=True)
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--contenders", default="peft,compile,ort,trt")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny model of the same kind")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    folders = shape(arguments.model, arguments.tiny)
    setting = Setting(arguments.model, *folders, arguments.precision, arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        contenders = {
            name: contender(name, setting, Path(folder)) for name in arguments.contenders.split(",")
        }
        facts = compare(setting, contenders, arguments.rounds)
    print(json.dumps(facts, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(facts, indent=1) + "\n")


def shape(model: str, tiny: bool) -> tuple[Path, Path]:
    """The folders of a model's base and adapter, made where they are not there yet."""
    import shapes

    made = {
        ("bert", False): shapes.bert_base,
        ("bert", True): shapes.bert_tiny,
        ("qwen2", False): shapes.qwen2_05b,
        ("qwen2", True): shapes.qwen2_tiny,
    }
    base, adapter = made[model, tiny](VIRTUAL[model])
    return base, adapter


def compare(setting: Setting, contenders: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Medians of every request by contender, and how often each is as fast as PEFT eager."""
    found = measure({name: asked(setting, one) for name, one in contenders.items()}, rounds)
    return {
        "date": str(date.today()),
        "model": setting.model,
        "precision": setting.precision,
        "device": device_name(setting.device),
        "rounds": rounds,
        "median_ms": found,
        "ratio_over_peft": {
            request: {name: round(times["peft"] / ms, 2) for name, ms in times.items() if ms}
            for request, times in found.items()
            if "peft" in times
        },
    }


def asked(setting: Setting, engine: Any) -> Timed:
    """The requests of a contender, each of which gives its seconds."""
    vocabulary = json.loads((setting.base / "config.json").read_text())["vocab_size"]
    return (classify if setting.model == "bert" else generate)(engine, vocabulary)


def contender(name: str, setting: Setting, folder: Path) -> Any:
    """PEFT's model on the device, or a bundle, compiled and loaded."""
    import ptdeploy

    if name in ("peft", "compile"):
        return Peft(setting, name == "compile")
    target, _, prefill = name.partition("-")
    bundle = ptdeploy.compile(
        setting.adapter,
        target=target,
        base=str(setting.base),
        output=folder / name,
        device=setting.device if target == "ort" else None,
        precision=setting.precision,
        freeze_kv=not prefill,
        **(room() if setting.model == "qwen2" else {}),
    )
    return ptdeploy.load(bundle.path)


def room() -> dict[str, Any]:
    """The options that give a decoder room for every request here."""
    return {"max_context": ROOM, "max_batch": ROWS}


class Peft:
    """PEFT on PyTorch, eager or through torch.compile."""

    def __init__(self, setting: Setting, compiled: bool) -> None:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

        kinds = {"bert": AutoModelForSequenceClassification, "qwen2": AutoModelForCausalLM}
        options = {"num_labels": 4} if setting.model == "bert" else {}
        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(setting.precision)
        model = kinds[setting.model].from_pretrained(
            setting.base, dtype=dtype or torch.float32, **options
        )
        self.model = PeftModel.from_pretrained(model, setting.adapter).eval().to(setting.device)
        self.device = setting.device
        if compiled:
            model.forward = torch.compile(model.forward, dynamic=True)

    def logits(self, rows: list[list[int]]) -> Any:
        import torch

        ids = torch.tensor(rows, device=self.device)
        with torch.no_grad():
            # The copy back waits for the GPU, as a caller does.
            return self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.cpu()

    def generate(self, rows: list[list[int]], tokens: int, **_: Any) -> Any:
        import torch

        ids = torch.tensor(rows, device=self.device)
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pad_token_id": 0}
        lengths = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
        return self.model.generate(**given, **lengths).cpu()


def classify(engine: Any, vocabulary: int) -> Timed:
    random = np.random.default_rng(0)
    requests: Timed = {}
    for rows, tokens in REQUESTS:
        ids = random.integers(0, vocabulary, (rows, tokens)).tolist()
        requests[f"{rows} x {tokens}"] = lambda ids=ids: timed(lambda: engine.logits(ids))
    return requests


def generate(engine: Any, vocabulary: int) -> Timed:
    random = np.random.default_rng(0)

    def write(ids: list[list[int]], tokens: int) -> float:
        return timed(lambda: engine.generate(ids, tokens, eos_token_ids=()))

    def step(ids: list[list[int]]) -> float:
        return max(write(ids, 1 + STEPS) - write(ids, 1), 0.0) / STEPS

    requests: Timed = {}
    for tokens in TEXTS:
        text = random.integers(0, vocabulary, (1, tokens)).tolist()
        requests[f"first token, {tokens} tokens"] = lambda ids=text: write(ids, 1)
    for rows in BATCHES:
        batch = random.integers(0, vocabulary, (rows, TEXTS[0])).tolist()
        requests[f"decode step, batch {rows}"] = lambda ids=batch: step(ids)
    return requests


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(contenders: dict[str, Timed], rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds by request and contender, all of them by turns."""
    times: dict[str, dict[str, list[float]]] = {}
    # Kernels are compiled, graphs recorded and caches filled before anything counts.
    for turn in range(-3, rounds):
        for name, requests in contenders.items():
            for request, work in requests.items():
                spent = work()
                if turn >= 0:
                    times.setdefault(request, {}).setdefault(name, []).append(spent)
    return {
        request: {name: round(1e3 * statistics.median(all_), 3) for name, all_ in by_name.items()}
        for request, by_name in times.items()
    }


def device_name(device: str) -> str:
    if device == "cpu":
        return f"CPU, {os.cpu_count()} cores"
    import torch

    return str(torch.cuda.get_device_name())


if __name__ == "__main__":
    main()
