"""What is installed here, which targets can run, and why the others cannot."""

from __future__ import annotations

import importlib.util
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ptdeploy.backends import get_backend
from ptdeploy.backends.cores import usable_cores
from ptdeploy.printable import printable_fields
from ptdeploy.tables import columns
from ptdeploy.targets import TARGETS, get_target

_RUNTIME = ("numpy", "tokenizers", "safetensors", "msgspec")
_COMPILE = ("torch", "transformers", "peft", "onnx", "onnx-ir", "onnxscript")


def examine() -> dict[str, Any]:
    """Versions by group, problems found, and for each target and device why it is unavailable."""
    packages = {"runtime": {name: _version(name) for name in _RUNTIME}}
    targets: dict[str, dict[str, str | None]] = {}
    builds: dict[str, str | None] = {}
    fastest: dict[str, str] = {}
    problems = []
    for name in TARGETS:
        target, backend = get_target(name), get_backend(name)
        group, needed = backend.packages
        packages[group] = {package: _version(package) for package in needed}
        if problem := backend.problem(packages[group]):
            problems.append(problem)
        targets[name] = {d: _words(backend.unavailable(d)) for d in backend.devices}
        if backend.fastest_at and None in targets[name].values():
            fastest[name] = backend.fastest_at
        if target.graph_check:
            device = backend.devices[0]
            default = target.precisions(device)[0]
            builds[name] = _words(target.unbuildable(device, default, target.options(None), None))
    packages["compile"] = {name: _version(name) for name in _COMPILE}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": usable_cores(),
        "packages": packages,
        "can_compile": all(packages["compile"].values()),
        "targets": targets,
        "builds": builds,
        "fastest_at": fastest,
        "problems": problems,
    }


def describe(facts: dict[str, Any]) -> str:
    """The same in words, for a terminal."""
    facts = printable_fields(facts)
    rows = [("cores", f"{facts['cores']} for this process")]
    for group, names in facts["packages"].items():
        found = [f"{name} {v or 'not installed'}" for name, v in names.items()]
        rows.append((group, ", ".join(found)))
    missing = "unavailable: pip install 'ptdeploy[compile]'"
    rows.append(("compiling", "available" if facts["can_compile"] else missing))
    for target, devices in facts["targets"].items():
        rows += [
            (f"{target} on {device}", "available" if reason is None else f"unavailable: {reason}")
            for device, reason in devices.items()
        ]
    rows += [
        (target, "can build here" if reason is None else f"cannot build here: {reason}")
        for target, reason in facts["builds"].items()
    ]
    lines = columns(rows)
    lines += [f"{target} is fastest at {what}" for target, what in facts["fastest_at"].items()]
    lines += [f"PROBLEM: {problem}" for problem in facts["problems"]]
    return "\n".join([f"Python {facts['python']} on {facts['platform']}", *lines])


def _words(problem: tuple[str, str] | None) -> str | None:
    return " ".join(problem).strip() if problem else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        # A source tree on the path has a module but no metadata.
        module = package.replace("-", "_")
        return "version unknown" if importlib.util.find_spec(module) else None
