"""Targets: what turns ONNX into engine files and runs them. One file each, one interface."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from ptdeploy.errors import InputError

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from ptdeploy.bundle import Bundle, FileEntry

TARGETS = {"ort": "ptdeploy.targets.ort"}
DEVICES = ("cpu", "cuda")


class Session(Protocol):
    """A loaded engine."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once: arrays by input name in, arrays by output name out."""
        ...

    def bind(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]
    ) -> Callable[[], None]:
        """A function that runs over these very arrays, which one name may share with another."""
        ...


class Target(Protocol):
    """What a target's module offers."""

    def precisions(self) -> tuple[str, ...]:
        """The precisions it builds, the default first."""
        ...

    def unavailable(self, device: str) -> tuple[str, str] | None:
        """Why it cannot run on `device` here and how to change that, or None if it can."""
        ...

    def build(self, model: ir.Model, folder: Path) -> tuple[FileEntry, ...]:
        """Write the engine files into `folder` and list them."""
        ...

    def load(self, bundle: Bundle, device: str, threads: int | None, map_weights: bool) -> Session:
        """Open a bundle's engine. Raises TargetUnavailable, never falls back to another device."""
        ...


def get_target(name: str) -> Target:
    """The target of that name. Raises InputError if there is none."""
    if name not in TARGETS:
        raise InputError(f"No target {name!r}; there is {', '.join(TARGETS)}.")
    return cast("Target", importlib.import_module(TARGETS[name]))
