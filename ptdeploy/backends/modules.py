"""Paths of modules in a transformers model, such as `model.layers.0.self_attn`."""

from __future__ import annotations

from collections.abc import Sequence


def common_module(paths: Sequence[str]) -> str:
    """The innermost module that all of some modules are in."""
    parts = [path.split(".") for path in paths if path]
    if not parts:
        return ""
    shared = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return ".".join(shared)


def layer_of(path: str) -> str:
    """The transformer layer that a module is in, `model.layers.0`; outside of them two levels."""
    parts = path.split(".")
    for index, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: index + 1])
    return ".".join(parts[:2])


def part_of(path: str) -> str:
    """The part of any transformer layer that a module is, `model.layers.*.mlp`; else `layer_of`."""
    parts = path.split(".")
    for index, part in enumerate(parts):
        if part.isdigit():
            return ".".join([*parts[:index], "*", *parts[index + 1 : index + 2]])
    return layer_of(path)
