"""TensorRT's two Python modules behind one seam: which are here, and the one that is taken.

`tensorrt` (10.15 and later) and `tensorrt_rtx` have the same API where this project uses it.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from dataclasses import dataclass, field
from typing import Any

from ptdeploy.backends.trt import cuda
from ptdeploy.backends.trt.engine_file import Flavor
from ptdeploy.errors import TargetUnavailable

MODULES: dict[Flavor, str] = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
NAMES: dict[Flavor, str] = {"tensorrt": "TensorRT", "rtx": "TensorRT-RTX"}
INSTALL: dict[Flavor, str] = {
    "tensorrt": "pip install 'ptdeploy[trt]'",
    "rtx": "pip install 'ptdeploy[rtx]'",
}
# The first full TensorRT with KVCacheUpdate, which a decoder's buffer is updated by.
_OLDEST = (10, 15)
# "... not be able to run on target(s): sm80, sm86, because the model contains HW-specific ..."
_LEFT_OUT = re.compile(r"not be able to run on target\(s\): (sm\d+(?:, sm\d+)*)")


@dataclass(frozen=True)
class Vendor:
    """One of the two modules, and what it logged since it was last cleared: `errors`, and the
    compute capabilities that it `left_out` of an engine, such as "8.6"."""

    flavor: Flavor
    module: Any = field(repr=False)
    version: str
    logger: Any = field(repr=False)
    errors: list[str] = field(repr=False)
    left_out: list[str] = field(repr=False, default_factory=list)

    @property
    def name(self) -> str:
        return f"{NAMES[self.flavor]} {self.version}"


def open_vendor(flavor: Flavor) -> Vendor:
    """Import a flavor. Raises TargetUnavailable, with the pip command, if it is not installed."""
    try:
        module = importlib.import_module(MODULES[flavor])
        if module.__file__ is None:
            # Any folder of that name where Python looks, such as the one that it was started in.
            raise ImportError(f"{next(iter(module.__path__))} is only a folder of its name")
    except (ImportError, OSError) as error:
        raise TargetUnavailable(
            f"{NAMES[flavor]} is not installed here ({error}).", INSTALL[flavor]
        ) from error
    version = str(module.__version__)
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if flavor == "tensorrt" and numbers < _OLDEST:
        raise TargetUnavailable(
            f"TensorRT {version} is too old: 10.15 is the first that updates a KV buffer in place.",
            "pip install --upgrade 'ptdeploy[trt]'",
        )
    logger, errors, left_out = _logger(module)
    return Vendor(flavor, module, version, logger, errors, left_out)


def choose_builder(asked: str) -> tuple[Vendor, str]:
    """The flavor to build with, and why in words. `asked` is "auto", "tensorrt" or "rtx".

    "auto" takes full TensorRT where it can build, which needs a GPU, and TensorRT-RTX otherwise.
    Raises TargetUnavailable if the one that was asked for, or with "auto" any, cannot build here.
    """
    for flavor in MODULES:
        if asked == flavor:
            vendor = open_vendor(flavor)
            if problem := _cannot_build(flavor):
                raise TargetUnavailable(*problem)
            return vendor, "as asked"
    reasons = []
    for flavor in MODULES:
        try:
            vendor = open_vendor(flavor)
        except TargetUnavailable as error:
            reasons.append(error.problem.rstrip("."))
            continue
        if problem := _cannot_build(flavor):
            reasons.append(problem[0].rstrip("."))
            continue
        return vendor, "; ".join([*reasons, f"{NAMES[flavor]} builds here"])
    raise TargetUnavailable(
        f"No TensorRT can build here: {'; '.join(reasons)}.",
        f"{INSTALL['rtx']} builds without a GPU; {INSTALL['tensorrt']} needs one.",
    )


def is_installed(flavor: Flavor) -> bool:
    """Whether the module is there, without importing it."""
    return importlib.util.find_spec(MODULES[flavor]) is not None


def _cannot_build(flavor: Flavor) -> tuple[str, str] | None:
    if flavor == "rtx":
        return None
    if problem := cuda.unavailable():
        return (
            f"TensorRT times kernels on the GPU it builds for, and there is none ({problem})",
            "Build on a machine with that GPU, or without one with --trt-flavor rtx.",
        )
    return None


def decimals(targets: str) -> list[str]:
    """["8.6", "12.0"] of a text such as "sm86, SM120"."""
    return [f"{major}.{minor}" for major, minor in re.findall(r"(?i)sm(\d+)(\d)", targets)]


def _logger(module: Any) -> tuple[Any, list[str], list[str]]:
    """The vendor's logger, kept silent: its errors become the messages of ours."""
    errors: list[str] = []
    left_out: list[str] = []
    worst = module.ILogger.Severity

    class Quiet(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (worst.INTERNAL_ERROR, worst.ERROR):
                errors.append(message.strip())
                # The first are why a build failed; a process that runs for long keeps the last.
                del errors[16:-16]
            elif found := _LEFT_OUT.search(message):
                left_out.extend(decimals(found[1]))

    return Quiet(), errors, left_out
