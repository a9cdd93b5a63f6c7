"""What engine.json says of an engine, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ptdeploy.backends import EngineWords


def describe_engine(facts: Mapping[str, Any]) -> EngineWords:
    """What was built, for which GPUs and shapes, and what each type computes.

    `facts` is an EngineInfo as plain data.
    """
    capabilities = f"compute capability {', '.join(facts['compute_capabilities'])}"
    if not facts["compute_capabilities"]:
        capabilities = every_gpu_but(facts["left_out"])
    place = f"on {facts['gpu']}" if facts["gpu"] else "ahead of time, without a GPU"
    lines = [
        ("engine", f"{facts['flavor']} {facts['version']}, built {place}"),
        ("", f"for {capabilities}"),
    ]
    compared = {name: value for name, value in facts.items() if name != "profiles"}
    for profile in facts["profiles"]:
        ranges = [list(shape) for shape in profile["shapes"]["input_ids"]]
        words = "input_ids {}, usually {}, to {}".format(*ranges)
        lines.append(("profile", f"{profile['name']}: {words}"))
        compared[f"profile {profile['name']}"] = ranges
    return EngineWords(tuple(lines), tuple(_computes(facts["precisions"])), compared)


def every_gpu_but(left_out: Sequence[str]) -> str:
    """What TensorRT-RTX builds for unless told, in words."""
    but = f" but compute capability {', '.join(left_out)}" if left_out else ""
    return f"every GPU it supports{but}"


def _computes(precisions: Mapping[str, Mapping[str, int]]) -> list[tuple[str, str]]:
    """What the graph computes in which type, the commonest operators first."""
    lines = []
    for dtype, counts in precisions.items():
        most = sorted(counts.items(), key=lambda item: -item[1])
        shown = ", ".join(f"{count} {operator}" for operator, count in most[:6])
        lines.append((f"in {dtype}", f"{sum(counts.values())} operators: {shown}"))
    return lines
