"""What many prompts over one engine cost: memory, loading one more, a step, a mixed batch.

    python benchmarks/prompts.py [--model qwen2|storyteller] [--prompts 1000] [--rounds 15]

The prompts are packs of random numbers in the shape of the bundle's own, which cost what trained
ones cost. All variants take turns within each round, and what is printed are medians; ratios are
medians of each round's own. Results are kept in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).parent))
from decoder import HERE, subject

import ptdeploy
from ptdeploy.bundle import Manifest, engine_sha256, read_bundle, staged
from ptdeploy.bundle.pack import PackManifest
from ptdeploy.files import sha256_of
from ptdeploy.runtime.prompts import prompt_sha256

ROWS, TEXT, NEW = 8, 16, 8


def write_pack(folder: Path, manifest: Manifest, name: str, seed: int) -> Path:
    """A pack of random numbers over a bundle's engine."""
    random, info = np.random.default_rng(seed), manifest.prompt
    assert info.token_dim is not None
    assert info.prefix_kv is not None
    tokens = random.normal(size=(info.num_virtual_tokens, info.token_dim)).astype(np.float32)
    kv = random.normal(size=info.prefix_kv).astype(np.float32)
    place = folder / f"{name}.prompt"
    place.mkdir()
    save_file({"virtual_tokens": tokens, "prefix_kv": kv}, place / "prompt.safetensors")
    (place / "reference.safetensors").write_bytes(b"of nothing")
    files = tuple(
        msgspec.structs.replace(
            staged(file, role, name),
            size=(place / file).stat().st_size,
            sha256=sha256_of(place / file),
        )
        for file, role in (
            ("prompt.safetensors", "prompt"),
            ("reference.safetensors", "reference"),
        )
    )
    pack = PackManifest(
        versions={},
        name=name,
        task=manifest.task,
        target=manifest.target,
        device=manifest.device,
        precision=manifest.precision,
        engine_sha256=engine_sha256(manifest),
        base=manifest.base,
        prompt=msgspec.structs.replace(info, sha256=prompt_sha256(tokens, kv), parity=None),
        files=files,
    )
    (place / "manifest.json").write_bytes(msgspec.json.encode(pack))
    return place


def resident() -> int:
    """Bytes of this process in memory."""
    found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def turns(measures: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each variant once in each round, in either order, after one that does not count."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for measure in measures.values():
        measure()
    for number in range(rounds):
        for name in list(measures) if number % 2 else reversed(measures):
            found[name].append(measures[name]())
    return found


def ratio(found: dict[str, list[float]], one: str, other: str) -> float:
    return statistics.median(a / b for a, b in zip(found[one], found[other], strict=True))


def step(engine: Any, prompt: str | None) -> Callable[[], float]:
    """Seconds of a decode step of one row behind a prompt and 32 tokens."""
    *_, decode = engine.step_requests(1, 32, prompt)

    def measure() -> float:
        decode.reset()
        return min(seconds(decode.run) for _ in range(3))

    return measure


def batch(engine: Any, rows: list[list[int]], names: list[str]) -> Callable[[], float]:
    """Seconds of a request whose KV buffer has its prompts' prefixes from the one before."""

    def measure() -> float:
        engine.greedy(rows, 1, prompt=names)
        return seconds(lambda: engine.greedy(rows, NEW, prompt=names))

    return measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("qwen2", "storyteller"), default="qwen2")
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=15)
    told = parser.parse_args()
    model = subject(told.model)
    path = model.bundle("fp32")
    manifest = read_bundle(path, hashes=False).manifest
    with tempfile.TemporaryDirectory() as folder:
        results = measured(model, path, manifest, Path(folder), told)
    print(json.dumps(results, indent=2))
    file = HERE / "results" / f"prompts-{told.model}-cpu.json"
    file.write_text(json.dumps(results, indent=1) + "\n")


def measured(
    model: Any, path: Path, manifest: Manifest, folder: Path, told: argparse.Namespace
) -> dict[str, Any]:
    names = [f"p{number:04}" for number in range(told.prompts)]
    packs = [write_pack(folder, manifest, name, seed) for seed, name in enumerate(names)]
    size = (packs[0] / "prompt.safetensors").stat().st_size
    one, many = ptdeploy.load(path), ptdeploy.load(path)
    before = resident()
    loading = [seconds(lambda pack=pack: many.load_prompt(pack)) for pack in packs]
    after = resident()
    rows = np.random.default_rng(0).integers(0, model.vocabulary, (ROWS, TEXT)).tolist()
    steps = turns({"one": step(one, "default"), "many": step(many, names[-1])}, told.rounds)
    batches = turns(
        {
            "one prompt": batch(many, rows, [names[0]] * ROWS),
            "a prompt each": batch(many, rows, names[:ROWS]),
        },
        told.rounds,
    )
    others = turns(
        {
            # No row has the prompt that it had in the request before.
            "changing": batch_of_others(many, rows, names),
            "one prompt": batch(many, rows, [names[0]] * ROWS),
        },
        told.rounds,
    )
    return {
        "date": date.today().isoformat(),
        "model": told.model,
        "prompts": told.prompts,
        "virtual_tokens": manifest.prompt.num_virtual_tokens,
        "bytes_of_a_prompts_file": size,
        "resident_bytes_before": before,
        "resident_bytes_a_prompt": (after - before) / told.prompts,
        "load_ms": {
            "median": 1e3 * statistics.median(loading),
            "99th of 100": 1e3 * float(np.percentile(loading, 99)),
        },
        "step_ms": {name: 1e3 * statistics.median(times) for name, times in steps.items()},
        "step_many_over_one": ratio(steps, "many", "one"),
        "batch_s": {name: statistics.median(times) for name, times in batches.items()},
        "tokens_per_second_mixed_over_same": ratio(batches, "one prompt", "a prompt each"),
        "tokens_per_second_changing_over_same": ratio(others, "one prompt", "changing"),
    }


def batch_of_others(engine: Any, rows: list[list[int]], names: list[str]) -> Callable[[], float]:
    """Seconds of one with prompts that the request before did not have."""
    first = 0

    def measure() -> float:
        nonlocal first
        engine.greedy(rows, 1, prompt=[names[(first + i) % len(names)] for i in range(ROWS)])
        first += ROWS
        chosen = [names[(first + i) % len(names)] for i in range(ROWS)]
        return seconds(lambda: engine.greedy(rows, NEW, prompt=chosen))

    return measure


if __name__ == "__main__":
    main()
