"""Targets: what turns ONNX into engine files and runs them. One file each, one interface."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from ptdeploy.errors import InputError
from ptdeploy.task import Activations

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from ptdeploy.bundle import Bundle, FileEntry

TARGETS = {"ort": "ptdeploy.targets.ort"}
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Numerics:
    """What a target computes a precision with: the activations' type, and if attention is fused."""

    activations: Activations
    fused_attention: bool


class Placed(Protocol):
    """Memory on the engine's device that it reads and writes where it lies."""

    def rows(self, rows: slice) -> Placed:
        """The same memory, seen as some of its first axis."""
        ...

    def read(self) -> NDArray[Any]:
        """What it holds: on a CPU the memory itself, elsewhere a copy."""
        ...

    def write(self, array: NDArray[Any]) -> None:
        """Replace what it holds. `array` has its shape and type."""
        ...


class Session(Protocol):
    """A loaded engine."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once: arrays by input name in, arrays by output name out."""
        ...

    def place(self, array: NDArray[Any]) -> Placed:
        """Put an array on the engine's device; on a CPU it stays where it is."""
        ...

    def bind(
        self,
        inputs: Mapping[str, NDArray[Any] | Placed],
        outputs: Mapping[str, NDArray[Any] | Placed],
    ) -> Callable[[], None]:
        """A function that runs over these very arrays, which one name may share with another."""
        ...


class Target(Protocol):
    """What a target's module offers."""

    def precisions(self, device: str) -> tuple[str, ...]:
        """The precisions it builds for a device, the default first."""
        ...

    def numerics(self, device: str, precision: str) -> Numerics:
        """How it computes one of them."""
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
