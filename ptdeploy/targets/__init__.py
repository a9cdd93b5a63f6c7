"""Targets: what turns ONNX into engine files. One file each, one interface."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from ptdeploy.bundle.task import Activations, Operators
from ptdeploy.engine_options import EngineOptions
from ptdeploy.errors import InputError

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from ptdeploy.bundle import Bundle, FileEntry, Limits
    from ptdeploy.bundle.signature import Signature

TARGETS = {"ort": "ptdeploy.targets.ort", "trt": "ptdeploy.targets.trt"}
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Numerics:
    """What a target computes a precision with.

    `operators` are those that attention over a KV buffer is traced as; None leaves attention to the
    model. `custom_operators` says whether the engine knows ONNX Runtime's own. `fixed_slots` is for
    engines whose buffer must have a fixed number of slots. `opset` is what graphs are exported to,
    None for whatever their operators need. `block_size` is how many weights share a scale unless
    told, 0 for a whole column.
    """

    activations: Activations
    operators: Operators | None
    custom_operators: bool = True
    fixed_slots: bool = False
    opset: int | None = None
    block_size: int = 32


@dataclass(frozen=True)
class Attention:
    """What one layer's attention over a KV buffer is asked to compute.

    `window` is in tokens and `softcap` a score, 0 for none; `sinks` says whether each head has a
    score that belongs to no token.
    """

    heads: int
    kv_heads: int
    head_dim: int
    window: int = 0
    softcap: float = 0
    sinks: bool = False


@dataclass(frozen=True)
class BuildRequest:
    """What an engine is built from: a graph, what goes in and out of it, and how to build it."""

    model: ir.Model
    signature: Signature
    limits: Limits
    precision: str
    folder: Path
    options: EngineOptions


@dataclass(frozen=True)
class Built:
    """The files of an engine; `working` ones were needed to make it and stay out of the bundle."""

    files: tuple[FileEntry, ...]
    working: tuple[FileEntry, ...] = ()
    notes: tuple[str, ...] = ()


class Target(Protocol):
    """What a target's module offers.

    `DEVICES` are those it runs on, the default first. `STAND_IN` is the target that can run the
    very graph an engine is built from, where the engine itself cannot run; "" if there is none.
    """

    DEVICES: tuple[str, ...]
    STAND_IN: str

    def precisions(self, device: str) -> tuple[str, ...]:
        """The precisions it builds for a device, the default first."""
        ...

    def numerics(self, device: str, precision: str) -> Numerics:
        """How it computes one of them."""
        ...

    def refuses(self, device: str, activations: Activations, attention: Attention) -> str:
        """Why its fused attention cannot compute that, in the engine's words, or "" if it can."""
        ...

    def unavailable(self, device: str) -> tuple[str, str] | None:
        """Why it cannot run on `device` here and how to change that, or None if it can."""
        ...

    def unbuildable(self, device: str, options: EngineOptions) -> tuple[str, str] | None:
        """Why it cannot build for `device` here and how to change that, or None if it can.

        Raises InputError if the options do not fit each other or the target.
        """
        ...

    def limit(
        self, limits: Limits, options: EngineOptions, causal: bool, max_context: int | None
    ) -> Limits:
        """The limits as its engines have them; `max_context` is what was asked for."""
        ...

    def build(self, request: BuildRequest) -> Built:
        """Write the engine files and list them."""
        ...

    def rebuild(self, bundle: Bundle, flavor: str | None) -> tuple[str, ...]:
        """Make the engine files anew from the ONNX beside them, where they lie; gives notes.

        `flavor` replaces the one they were built with. Only for targets with a STAND_IN.
        """
        ...

    def run_graph(
        self, bundle: Bundle, inner: tuple[str, ...], feed: Mapping[str, NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        """Run a bundle's ONNX once, values by name: its outputs, and the inner ones if it can.

        bfloat16 is given as float32.
        """
        ...


def get_target(name: str) -> Target:
    """The target of that name. Raises InputError if there is none."""
    if name not in TARGETS:
        raise InputError(f"No target {name!r}; there is {', '.join(TARGETS)}.")
    return cast("Target", importlib.import_module(TARGETS[name]))
