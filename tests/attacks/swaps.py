"""Replace a bundle at random moments of loads, and see which bundle each load is of.

`python -m attacks.swaps BUNDLE [PROBE]` from tests/ takes a bundle of a causal model,
loads it 1,000 times in Python and, with the C++ tests' `probe`, 1,000 times in C++, and prints a
table: every load is all of one bundle, and none is called damaged. Where files are replaced one by
one there is a mixture for a moment, which may be refused, but is never loaded.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save
from support import native
from support.damage import PROMPT, edit, replace, the_prompt

import ptdeploy
from ptdeploy.bundle import check_destination, publish, read_bundle, stage_bundle
from ptdeploy.files import exchange

ROW = [5, 6, 7, 8]


def second_version(source: Path, folder: Path) -> Path:
    """A bundle of the same shapes and sizes with other weights and another prompt."""
    import onnx

    shutil.copytree(source, folder)
    weights = bytearray((source / "model.onnx.data").read_bytes())
    model = onnx.load(source / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        place = {one.key: one.value for one in tensor.external_data}
        if tensor.data_type == onnx.TensorProto.FLOAT and place:
            start, size = int(place["offset"]), int(place["length"])
            values = np.frombuffer(bytes(weights[start : start + size]), np.float32)
            weights[start : start + size] = (values * np.float32(1.25)).tobytes()
    replace(folder, "model.onnx.data", bytes(weights))
    prompt = load_file(source / PROMPT)
    prompt = {name: array * np.float32(0.5) for name, array in prompt.items()}
    replace(folder, PROMPT, save(prompt))
    digest = hashlib.sha256(prompt["virtual_tokens"].tobytes()).hexdigest()
    edit(folder, lambda manifest: the_prompt(manifest).update(sha256=digest))
    return folder


def turn_a_link(live: Path, versions: tuple[Path, Path], number: int) -> None:
    """`ln -s v2 new; mv -T new live`, the usual deployment."""
    new = live.with_name("new")
    new.symlink_to(versions[number % 2])
    os.replace(new, live)


def exchange_folders(live: Path, versions: tuple[Path, Path], number: int) -> None:
    """The folders themselves take each other's place."""
    assert exchange(live, live.with_name("other"))


def publish_over(live: Path, versions: tuple[Path, Path], number: int) -> None:
    """What `compile --force` does: the older bundle's files are removed while it is loaded."""
    bundle = read_bundle(versions[number % 2])
    destination = check_destination(live, True)
    with stage_bundle(destination) as staging:
        for entry in bundle.manifest.files:
            bundle.copy(entry, staging / entry.path)
        publish(staging, bundle.manifest, destination)


def replace_files(live: Path, versions: tuple[Path, Path], number: int) -> None:
    """As rsync does: file by file beside each and renamed, the manifest last."""
    source = versions[number % 2]
    for file in (*data_files(source), Path("manifest.json")):
        beside = live / file.with_name(f".{file.name}.new")
        shutil.copyfile(source / file, beside)
        os.replace(beside, live / file)


def data_files(bundle: Path) -> list[Path]:
    """All files below a bundle's folder but its manifest, by their paths inside it."""
    found = (one.relative_to(bundle) for one in bundle.rglob("*") if one.is_file())
    return sorted(one for one in found if one != Path("manifest.json"))


Swap = Callable[[Path, tuple[Path, Path], int], None]
SWAPS: dict[str, Swap] = {
    "a link is turned": turn_a_link,
    "folders are exchanged": exchange_folders,
    "compile --force": publish_over,
    "files are replaced one by one": replace_files,
}


@contextmanager
def swapped(kind: str, live: Path, versions: tuple[Path, Path], pause: float) -> Iterator[Any]:
    """Another process swaps `live` again and again, after pauses at random; gives its count."""
    if kind == "a link is turned":
        live.symlink_to(versions[0])
    else:
        shutil.copytree(versions[0], live)
        if kind == "folders are exchanged":
            shutil.copytree(versions[1], live.with_name("other"))
    context = multiprocessing.get_context("fork")
    count, ended = context.Value("q", 0), context.Event()

    def swap() -> None:
        chance = random.Random(7)
        while not ended.is_set():
            count.value += 1
            SWAPS[kind](live, versions, count.value)
            time.sleep(chance.random() * pause)

    process = context.Process(target=swap)
    process.start()
    try:
        yield count
    finally:
        ended.set()
        process.join()
        assert process.exitcode == 0


MIXTURES = {"files are replaced one by one"}
# The longest pause between swaps, in seconds. Files replaced one by one are a mixture for a moment,
# so that a reader needs pauses to wait for.
PAUSES = dict.fromkeys(SWAPS, 0.01) | {"files are replaced one by one": 0.1}


def attack(
    source: Path, kind: str, least: int, load: Callable[[Path], object]
) -> tuple[Counter[str], int]:
    """Load until there were `least` loads and as many swaps; counts of which bundle each was."""
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="swap-") as name:
        folder = Path(name)
        versions = folder / "v1", second_version(source, folder / "v2")
        shutil.copytree(source, versions[0])
        wanted = {str(load(version)): version.name for version in versions}
        assert len(wanted) == 2, "the two versions answer alike"
        with swapped(kind, folder / "live", versions, PAUSES[kind]) as count:
            while sum(found.values()) < least or count.value < least:
                try:
                    answer = str(load(folder / "live"))
                except ptdeploy.BundleError as error:
                    if kind in MIXTURES:
                        found["refused"] += 1
                    else:
                        words = error.problem.replace(str(folder / "live"), "")
                        found[f"DAMAGED: {words}"] += 1
                else:
                    found[wanted.get(answer, "MIXED")] += 1
            swaps = count.value
    return found, swaps


def in_python(bundle: Path) -> object:
    """Which bundle is loaded, by its answers and by its manifest."""
    engine = ptdeploy.load(bundle, threads=1)
    (logits,) = engine.logits([ROW])
    return hashlib.sha256(logits.tobytes()).hexdigest(), files_of(engine.manifest)


def files_of(manifest: Any) -> str:
    return json.dumps(sorted(entry.sha256 for entry in manifest.files))


def in_cpp(probe: native.Probe) -> Callable[[Path], object]:
    """The same through the C++ library; the probe's refusals are raised."""

    def load(bundle: Path) -> object:
        refused = probe.ask("open", "e", bundle)
        if refused:
            assert refused["error"] == "BundleError", refused
            raise ptdeploy.BundleError(refused["problem"])
        return probe.ask("logits", "e", native.text_of([ROW]))

    return load


def main() -> int:
    source = Path(sys.argv[1])
    loaders: dict[str, Callable[[Path], object]] = {"Python": in_python}
    if len(sys.argv) > 2:
        loaders["C++"] = in_cpp(native.Probe(sys.argv[2]))
    wrong = 0
    for language, load in loaders.items():
        for kind in SWAPS:
            found, swaps = attack(source, kind, 1000, load)
            loads = sum(found.values())
            wrong += loads - found["v1"] - found["v2"] - found["refused"]
            counts = ", ".join(f"{words}: {number}" for words, number in sorted(found.items()))
            print(f"{language:7} {kind:30} {loads} loads, {swaps} swaps: {counts}", flush=True)
    print(f"mixed or damaged: {wrong}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
