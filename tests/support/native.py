"""What the C++ tests compile with and against: headers, library, builds, and the probe program.

`python -m support.native`, from tests/, prints the folder to give as ONNXRUNTIME_ROOT.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from support.tools import find, missing, tool

import ptdeploy
from ptdeploy.bundle.quantization import QuantizationOptions

REPOSITORY = Path(__file__).parents[2]
TESTS = REPOSITORY / "tests" / "cpp"
CACHE = REPOSITORY / ".cache"
# ONNX Runtime's headers, API version 29; any library from 1.29 on runs what they compile.
HEADERS_PACKAGE = "com.github.asus4.onnxruntime@0.4.9"
HEADERS_SHA256 = "e59788788818fdde1b2e522e766a21ba0f7d8391de55737abf81e32cc801785d"
# CUDA's headers and runtime library, from PyPI.
CUDA_VERSION = "13.5.37"
CUDA_WHEELS = {
    "nvidia-cuda-runtime": "df2b79a8852f10d1fef8c848489c49eebb5754051bf870202a862831412b179d",
    "nvidia-cuda-crt": "e898b7f73d3035fa89915a3f7bf3b54a73e90249746111aed295822c4729bb29",
}
# Without optimization sanitizers compile in half the time. UndefinedBehaviorSanitizer then does not
# look for accesses past an object's end; AddressSanitizer does.
FLAGS = {
    "plain": "-O1",
    "address": "-O0 -fsanitize=address,undefined -fno-sanitize-recover=all",
    "thread": "-O0 -fsanitize=thread",
}
# Each program and the library as one file: headers, and what sanitizers add to them, are compiled
# once.
WHOLE = {"CMAKE_UNITY_BUILD": "ON", "CMAKE_UNITY_BUILD_BATCH_SIZE": "0"}


ROWS = [[5, 6, 7], [40], [9, 10, 11, 12, 13, 14, 15, 16], [99, 100]]
LOOSE = QuantizationOptions(min_agreement=0, max_perplexity_ratio=1e9)
LOOSE_CLASSIFIER = QuantizationOptions(min_agreement=0)
# Every kind of bundle: tiny models, the causal ones with room for 64 new tokens.
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "encoder classifier": ("bert", "SEQ_CLS", {}),
    "encoder classifier without segments": ("distilbert", "SEQ_CLS", {}),
    "token classifier": ("bert", "TOKEN_CLS", {}),
    "decoder classifier": ("qwen2", "SEQ_CLS", {}),
    "fused": ("qwen2", "CAUSAL_LM", {}),
    "fused, wide heads": ("qwen2", "CAUSAL_LM", {}),
    "fused, learned positions": ("gpt2", "CAUSAL_LM", {}),
    "fused, sliding window": ("mistral", "CAUSAL_LM", {}),
    "plain": ("bloom", "CAUSAL_LM", {}),
    "fused, not frozen": ("qwen2", "CAUSAL_LM", {"freeze_kv": False}),
    "plain, not frozen": ("bloom", "CAUSAL_LM", {"freeze_kv": False}),
    "int8": ("qwen2", "CAUSAL_LM", {"precision": "int8", "quantization": LOOSE}),
    "int4": ("qwen2", "CAUSAL_LM", {"precision": "int4", "quantization": LOOSE}),
    "int8 classifier": (
        "bert",
        "SEQ_CLS",
        {"precision": "int8", "quantization": LOOSE_CLASSIFIER},
    ),
}
# What else the causal models of a kind are configured with. Attention turns heads of 16 itself.
CONFIGURED = {"fused, wide heads": {"hidden_size": 64}}
CAUSAL = [kind for kind, (_, task, _) in KINDS.items() if task == "CAUSAL_LM"]


@contextmanager
def one_process(name: str) -> Iterator[None]:
    """What several test processes would make at once is made by one, while the others wait."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / f".{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def onnxruntime_root() -> Path:
    """A folder with `include` and `lib`: $ONNXRUNTIME_ROOT, or one made from packages, kept."""
    if given := os.environ.get("ONNXRUNTIME_ROOT"):
        return Path(given)
    root = CACHE / "onnxruntime-cpp"
    with one_process("onnxruntime"):
        if not (root / "include" / "onnxruntime_cxx_api.h").exists():
            _fetch_headers(root / "include")
        _link_library(root / "lib")
    return root


def _fetch_headers(include: Path) -> None:
    include.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=include.parent) as folder:
        command = [tool("npm"), "pack", HEADERS_PACKAGE, "--silent"]
        try:
            subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300)
        except (OSError, subprocess.SubprocessError) as error:
            raise RuntimeError(
                f"The C++ tests need ONNX Runtime's headers, and `{' '.join(command)}` failed "
                f"({error}). Set ONNXRUNTIME_ROOT to an unpacked official archive instead."
            ) from error
        (archive,) = Path(folder).glob("*.tgz")
        with archive.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        assert digest == HEADERS_SHA256, f"{HEADERS_PACKAGE} has another SHA-256: {digest}"
        new = Path(folder) / "include"
        new.mkdir()
        with tarfile.open(archive) as packed:
            for member in packed:
                # Several platforms carry the same headers.
                if "/ios-arm64/" in member.name and member.name.endswith(".h"):
                    source = packed.extractfile(member)
                    assert source is not None
                    (new / Path(member.name).name).write_bytes(source.read())
        assert (new / "onnxruntime_cxx_api.h").exists(), "the package's layout has changed"
        shutil.rmtree(include, ignore_errors=True)
        new.rename(include)


def _link_library(lib: Path) -> None:
    """The library of the installed wheel, under the names that linkers and loaders ask for."""
    import onnxruntime

    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    lib.mkdir(parents=True, exist_ok=True)
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        link = lib / name
        if not link.is_symlink() or link.readlink() != library:
            link.unlink(missing_ok=True)
            link.symlink_to(library)


def cuda_root() -> Path:
    """A folder with `include` and `lib`: $CUDA_ROOT, or one made from packages, kept."""
    if given := os.environ.get("CUDA_ROOT"):
        return Path(given)
    root = CACHE / "cuda"
    with one_process("cuda"):
        if root.exists():
            return root
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            for name, sha256 in CUDA_WHEELS.items():
                _fetch_wheel(f"{name}=={CUDA_VERSION}", sha256, Path(folder))
            found = Path(folder) / "nvidia" / "cu13"
            (found / "lib" / "libcudart.so").symlink_to("libcudart.so.13")
            found.rename(root)
    return root


def _fetch_wheel(wheel: str, sha256: str, folder: Path) -> None:
    """Unpack a wheel of PyPI into a folder."""
    fetched = folder / "wheels"
    shutil.rmtree(fetched, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", wheel]
    checked([*command, "--only-binary=:all:", "-d", str(fetched)])
    (archive,) = fetched.iterdir()
    with archive.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    assert digest == sha256, f"{archive.name} has another SHA-256: {digest}. Set CUDA_ROOT instead."
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(folder)


# TensorRT's own headers where they are at hand, else declarations of what is used of either flavor.
TENSORRT = ["given"] if os.environ.get("TENSORRT_ROOT") else ["full", "rtx"]


def tensorrt_root(flavor: str, folder: Path) -> Path:
    """A folder with `include` and `lib`: $TENSORRT_ROOT, or one made of declarations."""
    if flavor == "given":
        return Path(os.environ["TENSORRT_ROOT"])
    (folder / "lib").mkdir(parents=True)
    name = {"full": "libnvinfer.so", "rtx": "libtensorrt_rtx.so"}[flavor]
    (folder / "lib" / name).touch()  # nothing is ever linked with it
    shutil.copytree(TESTS / "tensorrt_declared" / flavor, folder / "include")
    shutil.copy(TESTS / "tensorrt_declared" / "NvInferRuntime.h", folder / "include")
    return folder


def with_openvino() -> dict[str, str]:
    """CMake variables that build the backend for OpenVINO, where its Python packages are."""
    found, more = map(importlib.util.find_spec, ("openvino", "openvino_tokenizers"))
    if found is None or found.origin is None or more is None:
        return {}
    packages = Path(found.origin).parent.parent
    (library,) = (packages / "openvino_tokenizers" / "lib").glob("libopenvino_tokenizers.*")
    return {
        "PTDEPLOY_OPENVINO": "ON",
        "OpenVINO_DIR": str(packages / "openvino" / "cmake"),
        "PTDEPLOY_OPENVINO_TOKENIZERS": str(library),
    }


def need_openvino() -> None:
    """For a test of that backend: skip it where there is none."""
    if not with_openvino():
        missing("OpenVINO's tokenizers are not installed (pip install 'ptdeploy[cpp-tokenizer]')")


def build(
    source: Path, flavour: str = "plain", targets: tuple[str, ...] = (), **variables: str
) -> Path:
    """Configure a CMake project and build these of its targets, all of them where none is named.

    Gives its build folder, kept from run to run.
    """
    key = hashlib.sha256(f"{source}{variables}".encode()).hexdigest()[:8]
    folder = CACHE / "cpp" / f"{source.name}-{flavour}-{key}"
    with one_process(folder.name):
        configure(source, folder, flavour, **variables)
        compile_(folder, *targets)
    return folder


def configure(source: Path, folder: Path, flavour: str = "plain", **variables: str) -> None:
    settings = {
        "ptdeploy_DIR": str(REPOSITORY / "ptdeploy" / "cpp" / "cmake"),
        "ONNXRUNTIME_ROOT": str(onnxruntime_root()),
        "CMAKE_CXX_FLAGS": f"-g1 -Werror {FLAGS[flavour]}",
        **WHOLE,
        **variables,
    }
    defines = [f"-D{name}={value}" for name, value in settings.items()]
    tool("c++")
    # A folder keeps what it was configured for.
    ninja = None if (folder / "CMakeCache.txt").exists() else find("ninja")
    if ninja:
        defines += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    checked([tool("cmake"), "-S", str(source), "-B", str(folder), *defines])


def compile_(folder: Path, *targets: str) -> None:
    named = ["--target", *targets] if targets else []
    checked([tool("cmake"), "--build", str(folder), "--parallel", "2", *named])


def checked(command: list[str], **options: Any) -> str:
    """Run a command and give its output; on failure the output is the message."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}"
    return done.stdout


class Probe:
    """A running `probe`: one request a line, one JSON answer a line."""

    def __init__(self, *command: str, env: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )

    def ask(self, *words: object) -> Any:
        """One request, its words apart by tabs."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = "\t".join(str(word) for word in words)
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise AssertionError(f"the probe died at {line!r}:\n{self._process.communicate()[1]}")
        return json.loads(answer)

    @property
    def process_id(self) -> int:
        return self._process.pid

    def memory(self) -> int:
        """Bytes that it holds in memory just now."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        (kilobytes,) = re.findall(r"VmRSS:\s+(\d+) kB", status)
        return int(kilobytes) * 1024

    def close(self) -> str:
        """End it; gives what it wrote to standard error, where sanitizers report."""
        _, errors = self._process.communicate()
        assert self._process.returncode == 0, errors
        return errors


def opened(probe: Probe, bundle: Path) -> ptdeploy.runtime.Engine:
    """Open a bundle as `e` in the probe, and in Python."""
    assert probe.ask("open", "e", bundle) == {}
    return ptdeploy.load(bundle)


def text_of(rows: list[list[int]]) -> str:
    return ";".join(",".join(map(str, row)) for row in rows)


def options_text(options: dict[str, Any]) -> str:
    def word(value: Any) -> str:
        return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)

    return " ".join(f"{name}={word(value)}" for name, value in options.items() if value is not None)


def bits(array: np.ndarray) -> list[int]:
    return array.astype(np.float32).view(np.uint32).ravel().tolist()


if __name__ == "__main__":
    print(onnxruntime_root())
