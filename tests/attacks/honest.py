"""Compile random tiny models that have no fault: parity must raise no alarm on any of them.

    python -m attacks.honest --start 0 --count 40 --out build/honest.jsonl   # one chunk
    python -m attacks.honest --summary build/honest.jsonl                    # what all found

Run from `tests/`. Model number i is the same on every machine: its architecture, task, shape,
prompt, options and precision are drawn from i. Each is compiled (which checks parity), verified on
its golden data, and in fp32 verified against its checkpoint too, where `--locate` must find no
first mismatch. Weights of random models mean nothing, so int8 and int4 are not asked to keep
an agreement.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

ENCODERS = ("bert", "distilbert", "electra", "roberta")
DECODERS = ("gpt2", "qwen2", "llama", "mistral", "opt", "bloom")
PRECISIONS = ("fp32", "fp32", "fp32", "int8", "int4")


def draw(number: int) -> dict[str, Any]:
    """Everything about honest model `number`."""
    rng = random.Random(number)
    architecture = rng.choice(ENCODERS + DECODERS)
    if architecture in ENCODERS:
        task = rng.choice(("SEQ_CLS", "TOKEN_CLS"))
    else:
        classifies = architecture in ("gpt2", "qwen2")
        task = rng.choice(("CAUSAL_LM", "CAUSAL_LM", "SEQ_CLS")) if classifies else "CAUSAL_LM"
    layers, heads = rng.choice((1, 2, 3)), rng.choice((2, 4))
    shape: dict[str, Any] = {"initializer_range": rng.choice((0.02, 0.1, 0.2))}
    if architecture == "distilbert":
        shape |= {"n_layers": layers, "n_heads": heads, "hidden_dim": rng.choice((48, 64))}
    elif architecture == "gpt2" or architecture == "bloom":
        shape |= {"n_layer": layers, "n_head": heads}
    else:
        wide = "ffn_dim" if architecture == "opt" else "intermediate_size"
        shape |= {"num_hidden_layers": layers, "num_attention_heads": heads}
        shape[wide] = rng.choice((48, 64, 96))
    if architecture in ("qwen2", "llama", "mistral"):
        shape |= {
            "num_key_value_heads": rng.choice([h for h in (1, 2, 4) if heads % h == 0]),
            "rms_norm_eps": rng.choice((1e-6, 1e-5)),
            "tie_word_embeddings": rng.random() < 0.5,
        }
    if architecture == "mistral":
        shape["sliding_window"] = rng.choice((16, 48))
    if architecture in ("bert", "electra", "roberta"):
        shape["hidden_act"] = rng.choice(("gelu", "relu", "silu", "gelu_new"))
    options: dict[str, Any] = {}
    if task == "CAUSAL_LM":
        if rng.random() < 0.2:
            options["freeze_kv"] = False
        if rng.random() < 0.3:
            options["max_batch"] = rng.choice((1, 2, 5, 12))
        if rng.random() < 0.3:
            options["max_context"] = 40
    return {
        "architecture": architecture,
        "task": task,
        "precision": rng.choice(PRECISIONS),
        "encoder": rng.choice(("MLP", "LSTM")),
        "virtual_tokens": rng.choice((1, 3, 8, 15)),
        "jitter": rng.random() < 0.7,
        "shape": shape,
        "options": options,
    }


def check(number: int) -> dict[str, Any]:
    """Compile and verify honest model `number`; says what was alarmed about, if anything."""
    from support import tiny

    import ptdeploy

    one, start = draw(number), time.perf_counter()
    result = {"number": number, **one, "alarm": ""}
    quantization = None
    if one["precision"] != "fp32":
        ratio = 1e9 if one["task"] == "CAUSAL_LM" else None
        quantization = ptdeploy.QuantizationOptions(min_agreement=0.0, max_perplexity_ratio=ratio)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            made = tiny.make(
                folder,
                one["architecture"],
                one["task"],
                encoder=one["encoder"],
                virtual_tokens=one["virtual_tokens"],
                seed=number,
                jitter=one["jitter"],
                **one["shape"],
            )
            bundle = ptdeploy.compile(
                made.adapter,
                target="ort",
                base=str(made.base),
                output=folder / "bundle",
                precision=one["precision"],
                quantization=quantization,
                **one["options"],
            )
            report = ptdeploy.verify(bundle.path)
            result["max_abs"] = report.max_abs
            if not report.passed:
                result["alarm"] = f"golden: {report.failures()[0]}"
            if one["precision"] == "fp32":
                report = ptdeploy.verify(
                    bundle.path, checkpoint=made.adapter, base=str(made.base), locate=True
                )
                assert report.located is not None
                if not report.passed:
                    result["alarm"] = f"checkpoint: {report.failures()[0]}"
                elif report.located.module:
                    result["alarm"] = f"located {report.located.module}: {report.located.cause}"
        except ptdeploy.ParityError as error:
            result["alarm"] = f"compile: {error.problem[:300]}"
        except Exception:
            result["alarm"] = f"failed: {traceback.format_exc()[-600:]}"
    result["seconds"] = round(time.perf_counter() - start, 1)
    return result


def summary(path: Path) -> dict[str, Any]:
    """What a results file says, with date and CPU."""
    rows = {row["number"]: row for row in map(json.loads, path.read_text().splitlines())}.values()
    import re

    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    exact = [row["max_abs"] for row in rows if row["precision"] == "fp32" and "max_abs" in row]
    return {
        "date": str(date.today()),
        "cpu": f"{cpu[1] if cpu else 'CPU'}, {os.cpu_count()} cores",
        "compilations": len(rows),
        "alarms": sum(bool(row["alarm"]) for row in rows),
        "alarmed": [{k: row[k] for k in ("number", "alarm")} for row in rows if row["alarm"]],
        "architectures": dict(
            sorted(Counter(f"{r['architecture']} {r['task']}" for r in rows).items())
        ),
        "precisions": dict(sorted(Counter(row["precision"] for row in rows).items())),
        "largest_fp32_max_abs": max(exact, default=None),
        "seconds": round(sum(row["seconds"] for row in rows)),
    }


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--out", type=Path, help="a JSONL file to append to; what is there is kept")
    parser.add_argument("--summary", type=Path, help="only summarise such a file")
    arguments = parser.parse_args()
    if arguments.summary:
        found = summary(arguments.summary)
        print(json.dumps(found, indent=2))
        return 1 if found["alarms"] else 0
    done = set()
    if arguments.out and arguments.out.exists():
        done = {json.loads(line)["number"] for line in arguments.out.read_text().splitlines()}
    alarms = 0
    for number in range(arguments.start, arguments.start + arguments.count):
        if number in done:
            continue
        result = check(number)
        alarms += bool(result["alarm"])
        line = json.dumps(result)
        if arguments.out:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            with arguments.out.open("a") as file:
                file.write(line + "\n")
        print(line if result["alarm"] else f"{number}: holds, {result['seconds']} s", flush=True)
    print(f"{alarms} alarms")
    return 1 if alarms else 0


if __name__ == "__main__":
    sys.exit(main())
