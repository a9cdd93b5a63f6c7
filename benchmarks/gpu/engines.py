"""TensorRT against PEFT (eager, torch.compile) and ONNX Runtime's CUDA provider, in one run.

    python benchmarks/gpu/engines.py --model bert|qwen2 [--precision fp16] [--rounds 15]
                                     [--contenders peft,compile,ort,trt] [--device cuda] [--out F]

BERT-base's and Qwen2.5-0.5B's shape, random weights, 20 and 100 virtual tokens. All contenders take
turns within each round; what is printed are medians, and ratios over PEFT eager. With `--device cpu
--precision fp32 --contenders peft,ort` the script itself can be tried without a GPU. Both bundles
are compiled first, which proves them; a contender that cannot run here ends the script.
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
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

REQUESTS = ((1, 32), (1, 128), (16, 128))
TEXT, STEPS = 16, 32
Timed = dict[str, Callable[[], float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("bert", "qwen2"), required=True)
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--contenders", default="peft,compile,ort,trt")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    import shapes

    base, adapter = shapes.bert_base(20) if arguments.model == "bert" else shapes.qwen2_05b(100)
    contenders = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.contenders.split(","):
            made = contender(name, arguments, base, adapter, Path(folder))
            contenders[name] = classify(made) if arguments.model == "bert" else generate(made)
    found = measure(contenders, arguments.rounds)
    facts = {
        "date": str(date.today()),
        "model": arguments.model,
        "precision": arguments.precision,
        "device": device_name(arguments.device),
        "rounds": arguments.rounds,
        "median_ms": found,
        "ratio_over_peft": {
            request: {name: round(times["peft"] / ms, 2) for name, ms in times.items()}
            for request, times in found.items()
            if "peft" in times
        },
    }
    print(json.dumps(facts, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(facts, indent=1) + "\n")


def contender(name: str, arguments: Any, base: Path, adapter: Path, folder: Path) -> Any:
    """PEFT's model on the device, or a loaded bundle."""
    import ptdeploy

    if name in ("peft", "compile"):
        return Peft(base, adapter, arguments, name == "compile")
    bundle = ptdeploy.compile(
        adapter,
        target=name,
        base=str(base),
        output=folder / name,
        device=arguments.device if name == "ort" else None,
        precision=arguments.precision,
        max_context=None if arguments.model == "bert" else 512,
    )
    return ptdeploy.load(bundle.path)


class Peft:
    """PEFT on PyTorch, eager or through torch.compile."""

    def __init__(self, base: Path, adapter: Path, arguments: Any, compiled: bool) -> None:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

        kinds = {"bert": AutoModelForSequenceClassification, "qwen2": AutoModelForCausalLM}
        options = {"num_labels": 4} if arguments.model == "bert" else {}
        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(arguments.precision)
        model = kinds[arguments.model].from_pretrained(
            base, dtype=dtype or torch.float32, **options
        )
        self.model = PeftModel.from_pretrained(model, adapter).eval().to(arguments.device)
        self.device = arguments.device
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


def classify(engine: Any) -> Timed:
    random = np.random.default_rng(0)
    requests: Timed = {}
    for rows, tokens in REQUESTS:
        ids = random.integers(0, 30000, (rows, tokens)).tolist()
        requests[f"{rows} x {tokens}"] = lambda ids=ids: timed(lambda: engine.logits(ids))
    return requests


def generate(engine: Any) -> Timed:
    ids = np.random.default_rng(0).integers(0, 151_936, (1, TEXT)).tolist()

    def first() -> float:
        return timed(lambda: engine.generate(ids, 1, eos_token_ids=()))

    def step() -> float:
        many = timed(lambda: engine.generate(ids, 1 + STEPS, eos_token_ids=()))
        return max(many - first(), 0.0) / STEPS

    return {"first token": first, "decode step": step}


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
