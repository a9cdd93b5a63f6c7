"""What is installed here, which targets can run, and why the others cannot."""

from __future__ import annotations

import importlib.util
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ptdeploy.targets import DEVICES, TARGETS, get_target

_RUNTIME = ("numpy", "tokenizers", "safetensors", "msgspec")
_ENGINES = ("onnxruntime", "onnxruntime-gpu")
_COMPILE = ("torch", "transformers", "peft", "onnx", "onnx-ir", "onnxscript")


def examine() -> dict[str, Any]:
    """Versions by group, problems found, and for each target and device why it is unavailable."""
    packages = {
        group: {name: _version(name) for name in names}
        for group, names in (("runtime", _RUNTIME), ("engines", _ENGINES), ("compile", _COMPILE))
    }
    problems = []
    if all(packages["engines"].values()):
        problems.append(
            "onnxruntime and onnxruntime-gpu are both installed, and they are the same module: "
            "pip uninstall onnxruntime onnxruntime-gpu, then install one of them."
        )
    targets: dict[str, dict[str, str | None]] = {}
    for name in TARGETS:
        reasons = {device: get_target(name).unavailable(device) for device in DEVICES}
        targets[name] = {d: " ".join(r).strip() if r else None for d, r in reasons.items()}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "can_compile": all(packages["compile"].values()),
        "targets": targets,
        "problems": problems,
    }


def describe(facts: dict[str, Any]) -> str:
    """The same in words, for a terminal."""
    lines = [f"Python {facts['python']} on {facts['platform']}"]
    for group, names in facts["packages"].items():
        found = [f"{name} {v or 'not installed'}" for name, v in names.items()]
        lines.append(f"{group:<10} {', '.join(found)}")
    lines.append(
        "compiling  available"
        if facts["can_compile"]
        else "compiling  unavailable: pip install 'ptdeploy[compile]'"
    )
    for target, devices in facts["targets"].items():
        for device, reason in devices.items():
            state = "available" if reason is None else f"unavailable: {reason}"
            lines.append(f"{target} on {device:<5}{state}")
    lines += [f"PROBLEM: {problem}" for problem in facts["problems"]]
    return "\n".join(lines)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        # A source tree on the path has a module but no metadata.
        module = package.replace("-", "_")
        return "version unknown" if importlib.util.find_spec(module) else None
