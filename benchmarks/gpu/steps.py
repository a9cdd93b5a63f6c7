"""The steps of prove.py: what is compiled, proven and timed on the GPU machine, in this order."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from prove import Context, Found, Incomplete, NoGpu, Step, says_no_gpu

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / one) for one in ("", "benchmarks", "benchmarks/gpu", "models/topics")]

PRECISIONS = {
    "ort": ("fp32", "fp16", "int4"),
    "trt": ("fp32", "fp16", "bf16", "int8", "int4", "fp8"),
}
QUANTIZED = ("int8", "int4", "fp8")
# What ONNX Runtime has for a CPU, on which a rehearsal does the rest of a step.
ON_A_CPU = ("fp32", "int4")
ROUNDS, REHEARSED = 9, 1
PACKAGES = (
    *("torch", "transformers", "peft", "onnx", "onnxruntime", "onnxruntime-gpu", "numpy"),
    *("tensorrt", "tensorrt_rtx_cu13", "cuda-bindings", "nvidia-cudnn-cu13"),
)


def machine(context: Context) -> Found:
    """The GPU, its driver, the packages, and how fast its memory is copied."""
    found: Found = {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "packages": {one: _version(one) for one in PACKAGES},
    }
    context.reach("packages were listed")
    torch = cuda()
    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    smi = subprocess.run(query, capture_output=True, text=True, check=False)
    return {
        **found,
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "memory_gb": round(properties.total_memory / 1e9, 1),
        "cuda": torch.version.cuda,
        "nvidia_smi": smi.stdout.strip(),
        "bandwidth_gb_s": round(bandwidth(torch) / 1e9, 1),
    }


def bandwidth(torch: Any) -> float:
    """Bytes a second, read and written, of the quickest of ten copies of 4 GB within the GPU."""
    source = torch.ones(1 << 30, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    quickest = float("inf")
    for _ in range(10):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize()
        quickest = min(quickest, begin.elapsed_time(end) / 1e3)
    moved: float = 2 * source.nbytes
    return moved / quickest


def starts(target: str) -> Any:
    """Whether a target's engine of a tiny model runs on this GPU at all.

    TensorRT-RTX is tried twice: its builder lists GPUs, and may take one that is not among them
    where it is told to build for the one at hand.
    """

    def work(context: Context) -> Found:
        import engines

        base, adapter = engines.shape("bert", tiny=True)
        make = partial(bundle, context, target, "fp32", f"starts-{target}", base, adapter)
        if target != "trt":
            return make()
        try:
            return {"built_for": "default", **make(capability=None)}
        except Exception as error:
            if says_no_gpu(error):
                raise
            refused = f"{type(error).__name__}: {error}"
        context.reach(f"built for what it builds for by default: {refused}")
        try:
            return {"built_for": "current", "default": refused, **make(capability="current")}
        except Exception as error:
            raise RuntimeError(f"nor does one for this GPU; by default: {refused}") from error

    return work


def chosen(context: Context) -> str | None:
    """The compute capability that `trt-starts` had to ask for, None for the builder's default."""
    file = context.folder / "state" / "trt-starts.json"
    found = json.loads(file.read_text()).get("found", {}) if file.is_file() else {}
    return "current" if found.get("built_for") == "current" else None


def topics(target: str, precision: str) -> Any:
    def work(context: Context) -> Found:
        from data import find_base_model

        adapter = ROOT / "models" / "topics" / "adapter"
        name = f"topics-{target}-{precision}"
        # A real model: once is enough of it where there is no GPU.
        rehearsed = "fp32" if precision == "fp32" else None
        return bundle(
            context, target, precision, name, find_base_model(), adapter, rehearsed=rehearsed
        )

    return work


def shaped(model: str, target: str, precision: str, frozen: bool = True) -> Any:
    """A bundle of a model of a real one's shape, that the timing steps run too."""

    def work(context: Context) -> Found:
        import engines

        base, adapter = engines.shape(model, tiny=context.rehearsal)
        options = engines.room() if model == "qwen2" else {}
        name = f"{model}-{target}-{precision}{'' if frozen else '-prefill'}"
        more = {**options, "freeze_kv": frozen}
        rehearsed = precision if precision in ON_A_CPU else "fp32"
        return bundle(context, target, precision, name, base, adapter, more, rehearsed)

    return work


def weights(context: Context) -> Found:
    """The shapes' weights, made before steps that run together want them."""
    import engines

    for model in ("bert", "qwen2"):
        engines.shape(model, tiny=context.rehearsal)
        context.reach(f"{model} was made")
    return {}


def bundle(
    context: Context,
    target: str,
    precision: str,
    name: str,
    base: Path,
    adapter: Path,
    options: dict[str, Any] | None = None,
    rehearsed: str | None = "fp32",
    capability: str | None = "",
) -> Found:
    """Compile for the GPU, which proves the engine; verify what was written; say what it showed.

    A rehearsal for ONNX Runtime first does all of it on the CPU, in the precision `rehearsed`.
    An engine of TensorRT-RTX is for `capability`; "" is the one that `trt-starts` found to run.
    """
    options = dict(options or {})
    if precision in QUANTIZED:
        from ptdeploy import QuantizationOptions

        # Random weights are no test of quality, and what is to be seen is how they do here.
        task = json.loads((adapter / "adapter_config.json").read_text())["task_type"]
        bound = "max_perplexity_ratio" if task == "CAUSAL_LM" else "max_logits_error"
        options["quantization"] = QuantizationOptions(min_agreement=0, **{bound: 1e9})
    if target == "trt" and (for_ := chosen(context) if capability == "" else capability):
        from ptdeploy import TrtOptions

        options["engine"] = TrtOptions(compute_capability=for_)
    made = {"base": str(base), "precision": precision, "force": True, **options}
    output = context.folder / "bundles" / name
    output.parent.mkdir(parents=True, exist_ok=True)
    if target == "ort" and context.rehearsal and rehearsed:
        given = {**made, "precision": rehearsed, "target": "ort", "device": "cpu"}
        build(context, adapter, output, given, "on the CPU")
    device = "cuda" if target == "ort" else None
    return build(context, adapter, output, {**made, "target": target, "device": device}, "")


def build(
    context: Context, adapter: Path, output: Path, options: dict[str, Any], where: str
) -> Found:
    import msgspec

    import ptdeploy

    start = time.perf_counter()
    made = ptdeploy.compile(adapter, output=output, **options)
    compiled = time.perf_counter()
    manifest = made.manifest
    context.reach(f"{manifest.precision} was compiled {where}".rstrip())
    report = ptdeploy.verify(made.path)
    verified = time.perf_counter()
    if not report.passed or manifest.prompt.parity is None:
        parity = manifest.prompt.parity
        # The timing steps take what lies there for proven.
        shutil.rmtree(made.path)
        raise RuntimeError(f"parity was not shown: verify {report.passed}, compile {parity}")
    context.reach(f"{manifest.precision} was verified {where}".rstrip())
    return {
        "compile_s": round(compiled - start, 1),
        "verify_s": round(verified - compiled, 1),
        "megabytes": round(sum(one.size for one in manifest.files) / 1e6, 1),
        "parity": msgspec.to_builtins(manifest.prompt.parity),
        "verify_max_abs": report.max_abs,
        "verify_top1_agreement": report.top1_agreement,
        "device": manifest.device,
        "versions": msgspec.to_builtins(manifest.versions),
    }


def gpu_tests(context: Context) -> Found:
    """pytest -m gpu: none may fail, and none that needs a GPU alone may be skipped."""
    workers = str(min(max((os.cpu_count() or 1) // 4, 1), 4))
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu", "-rsfE", "-n", workers]
    # The end of each line is why a test failed.
    wide = {**os.environ, "COLUMNS": "400"}
    done = subprocess.run(command, cwd=ROOT, env=wide, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    words = r"(\d+) (passed|failed|skipped|error)"
    counts = {word: int(number) for number, word in re.findall(words, done.stdout)}
    context.reach(f"pytest ended with {done.returncode}: {counts}")
    if not counts.get("passed") and only_without_gpu(done.stdout, done.returncode):
        raise NoGpu("every test was skipped, or found none")
    if done.returncode:
        raise RuntimeError(done.stdout[-8000:] + done.stderr[-2000:])
    reasons = sorted(set(re.findall(r"^SKIPPED .*?: (.*)$", done.stdout, re.M)))
    return {**counts, "skipped_because": reasons}


def only_without_gpu(printed: str, code: int) -> bool:
    """Whether a GPU is all that pytest's tests lacked, by the summary it printed."""
    failed = re.findall(r"^(?:FAILED|ERROR) .*", printed, re.M)
    return code == 0 or (bool(failed) and all("did not start on this machine" in f for f in failed))


def numbers(model: str) -> Any:
    """PEFT, torch.compile and every bundle in fp16 by turns, and the share of the bandwidth."""

    def work(context: Context) -> Found:
        import engines

        import ptdeploy

        folders = engines.shape(model, tiny=context.rehearsal)
        if context.rehearsal:
            here = engines.Setting(model, *folders, "fp32", "cpu")
            folder = context.folder / f"{model}-numbers"
            made = {one: engines.contender(one, here, folder) for one in ("peft", "ort")}
            context.reach(f"on the CPU: {engines.compare(here, made, REHEARSED)['median_ms']}")
        torch = cuda()
        setting = engines.Setting(model, *folders, "fp16", "cuda")
        makers: dict[str, Callable[[], Any]] = {
            one: partial(engines.contender, one, setting, context.folder)
            for one in ("peft", "compile")
        }
        for target in PRECISIONS:
            for kind in ("", "-prefill"):
                path = context.folder / "bundles" / f"{model}-{target}-fp16{kind}"
                if (path / "manifest.json").is_file():
                    makers[target + kind] = partial(ptdeploy.load, path)
        contenders, left_out = able(makers, partial(engines.asked, setting))
        for name, why in left_out.items():
            context.reach(f"{name} is left out: {why}")
        context.reach(f"contenders: {', '.join(contenders)}")
        found = {**engines.compare(setting, contenders, ROUNDS), "left_out": left_out}
        if model == "qwen2":
            found["bandwidth_share"] = shares(found, folders[0], bandwidth(torch))
        if set(left_out) - {"compile"}:
            raise Incomplete(f"without {', '.join(left_out)}", found)
        return found

    return work


def able(
    makers: dict[str, Callable[[], Any]], asked: Callable[[Any], dict[str, Callable[[], float]]]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The contenders that answer every request, and why the others do not.

    One that cannot, such as torch.compile without a C compiler, takes no numbers from the rest.
    """
    found: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for name, make in makers.items():
        try:
            one = make()
            for request in asked(one).values():
                request()
            found[name] = one
        except Exception as error:
            left_out[name] = f"{type(error).__name__}: {error}"
    return found, left_out


def shares(found: Found, base: Path, measured: float) -> dict[str, float]:
    """How much of the bandwidth a step takes that reads every weight once, in 16 bits.

    The head is tied to the embeddings, so that they are read as well.
    """
    stored = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    times: dict[str, float] = found["median_ms"]["decode step, batch 1"]
    return {name: stored / 2 / (ms / 1e3) / measured for name, ms in times.items() if ms}


def cuda() -> Any:
    """torch, its first CUDA call made. Raises NoGpu."""
    import torch

    if not torch.cuda.is_available():
        raise NoGpu("torch finds no GPU")
    return torch


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _compiled(model: str, seconds: int) -> list[Step]:
    """A step for each target and precision of a model, side by side."""
    steps = []
    for target, precisions in PRECISIONS.items():
        for precision in precisions:
            work = (
                topics(target, precision) if model == "topics" else shaped(model, target, precision)
            )
            needs = (f"{target}-starts", *(() if model == "topics" else ("weights",)))
            steps.append(Step(f"{model}-{target}-{precision}", seconds, work, needs, together=True))
    return steps


def _fp16(model: str, target: str, seconds: int, frozen: bool = True) -> Step:
    name = f"{model}-{target}-fp16{'' if frozen else '-prefill'}"
    needs = (f"{target}-starts", "weights")
    return Step(name, seconds, shaped(model, target, "fp16", frozen), needs, together=True)


def _numbers(model: str, seconds: int, bundles: list[Step]) -> Step:
    waited = tuple(step.name for step in bundles if "-fp16" in step.name)
    return Step(f"{model}-numbers", seconds, numbers(model), ("weights",), waited)


BERT = [_fp16("bert", target, 90) for target in PRECISIONS]
QWEN2 = [
    *_compiled("qwen2", 150),
    *(_fp16("qwen2", target, 150, frozen=False) for target in PRECISIONS),
]
STEPS = [
    Step("machine", 30, machine),
    *(Step(f"{target}-starts", 45, starts(target)) for target in PRECISIONS),
    Step("gpu-tests", 240, gpu_tests),
    Step("weights", 60, weights),
    *_compiled("topics", 60),
    *BERT,
    *QWEN2,
    _numbers("bert", 120, BERT),
    _numbers("qwen2", 300, QWEN2),
]
