"""What compiling for TensorRT-RTX without a GPU gives and costs, on the two real models.

For each model and precision: parity of the graph the parser got (run by ONNX Runtime), the plan's
size, how long a rebuild takes whose plan is built, and one whose plan comes from the cache; and how
many operators compute in what.

    python benchmarks/trt_build.py [--precisions fp32,fp16,...] [--out benchmarks/results/FILE.json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "models" / "topics"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from data import find_base_model  # noqa: E402  (topics/ is a folder of scripts, not a package)

import ptdeploy  # noqa: E402
from ptdeploy import QuantizationOptions, TrtOptions  # noqa: E402
from ptdeploy.backends.trt.engine_file import read_info  # noqa: E402

PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8", "int4", "fp8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    topics, storyteller = ROOT / "models" / "topics", ROOT / "models" / "storyteller"
    models = {
        "topics": (topics / "adapter", find_base_model()),
        "storyteller": (storyteller / "adapter", storyteller / "base"),
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PTDEPLOY_CACHE"] = str(Path(folder) / "cache")
        for name, (adapter, base) in models.items():
            for precision in arguments.precisions.split(","):
                row = measure(name, adapter, base, precision, Path(folder) / f"{name}-{precision}")
                print(json.dumps(row), flush=True)
                rows.append(row)
    if arguments.out:
        facts = {"date": str(date.today()), "machine": platform.platform(), "rows": rows}
        arguments.out.write_text(json.dumps(facts, indent=1) + "\n")


def measure(name: str, adapter: Path, base: Path, precision: str, out: Path) -> dict[str, object]:
    """Compile, then rebuild twice: from nothing, and from the cache."""
    rounds = precision in ("int8", "int4", "fp8")
    row: dict[str, object] = {"model": name, "precision": precision}
    try:
        bundle = ptdeploy.compile(
            adapter,
            target="trt",
            base=str(base),
            output=out,
            precision=precision,
            quantization=QuantizationOptions() if rounds else None,
            engine=TrtOptions(keep_onnx=True, flavor="rtx", cache=False),
        )
    except ptdeploy.ParityError as error:
        return {**row, "refused": error.problem.splitlines()[:3]}
    times = []
    for _ in range(2):
        start = time.perf_counter()
        ptdeploy.rebuild(bundle.path, output=out.with_suffix(".again"), force=True)
        times.append(round(time.perf_counter() - start, 2))
    found, info = bundle.manifest.prompt.graph_parity, read_info(bundle.file("engine_info"))
    assert found is not None
    onnx = sum(one.size for one in bundle.manifest.files if one.role in ("model", "weights"))
    return {
        **row,
        "graph_max_abs": found.max_abs,
        "top1_agreement": found.top1_agreement,
        "perplexity_ratio": found.perplexity_ratio,
        "plan_mb": round(bundle.file("engine").stat().st_size / 1e6, 2),
        "onnx_mb": round(onnx / 1e6, 2),
        "rebuild_s": times[0],
        "rebuild_from_cache_s": times[1],
        "operators": {dtype: sum(counts.values()) for dtype, counts in info.precisions.items()},
        "version": info.version,
    }


if __name__ == "__main__":
    main()
