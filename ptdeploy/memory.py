"""Memory that ran out, told from other failures: each library says it in an error of its own."""

from __future__ import annotations

import errno
import os
import re

from ptdeploy.errors import OutOfMemory

# As torch, numpy, ONNX Runtime, the C++ library, CUDA, TensorRT, safetensors (Rust) and the system
# say it.
_RAN_OUT = re.compile(
    r"can(?:'|no)t allocate memory|(?:unable|failed) to allocate|std::bad_alloc|bad allocation"
    r"|out ?of ?memory|not enough memory|\(os error 12\)",
    re.IGNORECASE,
)
_ASKED = re.compile(
    r"allocate ([\d.]+ [KMGTP]i?B)|(?:allocate|size|mmap) (\d+)\b(?!\.\d)", re.IGNORECASE
)

_GPU = re.compile(r"\bGPU\b|CUDA", re.IGNORECASE)


def ran_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, is that memory ran out."""
    while error is not None:
        if isinstance(error, MemoryError | OutOfMemory):
            return True
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno == errno.ENOMEM
        if isinstance(error, Exception) and _RAN_OUT.search(str(error)):
            return True
        error = error.__cause__
    return False


def out_of_memory(
    doing: str, error: BaseException, fix: str = "", device: str = "cpu"
) -> OutOfMemory:
    """That memory ran out while `doing`, with what was asked for at once where it is known.

    How much the machine has is said where it was the machine's, not that of a `device` of its own.
    """
    if isinstance(error, OutOfMemory):
        return error
    if device == "cpu" and _on_gpu(error):
        device = "the GPU"
    asked = _asked(error)
    where = "" if device == "cpu" else f" on {device}"
    machine = f"This machine has {_machine()} of memory." if device == "cpu" else ""
    return OutOfMemory(
        f"Memory ran out{where}: {doing}{f' ({asked} asked for at once)' if asked else ''}.",
        " ".join(filter(None, (fix, machine))),
    )


def _on_gpu(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, names a GPU."""
    while error is not None:
        if _GPU.search(str(error)):
            return True
        error = error.__cause__
    return False


def _asked(error: BaseException | None) -> str:
    while error is not None:
        if found := _ASKED.search(str(error)):
            return found[1] or _size(int(found[2]))
        error = error.__cause__
    return ""


def _machine() -> str:
    return _size(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _size(count: float) -> str:
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while count >= 1000 and len(units) > 1:
        count /= 1000
        units.pop(0)
    return f"{count:.3g} {units[0]}"
