"""What an engine really runs: its layers, the memory it takes, and how long each layer took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ptdeploy.backends.modules import common_module

if TYPE_CHECKING:
    from ptdeploy.backends.session import Session


@dataclass(frozen=True)
class Layer:
    """One step of an engine, under the engine's own name for it; what it does not say is empty.

    `module` is the innermost module of the transformers model that all of the layer is in, or
    "program" for ptdeploy's own code around it. `operator` is the engine's word for what it does,
    `inputs` and `outputs` are element types, `kernel` is the code that runs it. `fused` says
    whether the engine made it of several of the graph's nodes.
    """

    name: str
    module: str
    operator: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    fused: bool = False
    kernel: str = ""


@dataclass(frozen=True)
class EngineLayers:
    """All layers in the order they run, and bytes of memory by what takes them."""

    layers: tuple[Layer, ...]
    memory: dict[str, int]


@dataclass(frozen=True)
class LayerTime:
    """How long a layer took in one run of the engine."""

    layer: Layer
    seconds: float


@dataclass(frozen=True)
class Profiled:
    """A session that times its layers.

    `runs` ends that and gives what each run took, in the order they ran. `notes` are what a reader
    of these times must know.
    """

    session: Session
    runs: Callable[[], Sequence[Sequence[LayerTime]]]
    notes: tuple[str, ...] = ()


def module_of_nodes(names: Sequence[str]) -> str:
    """The module that nodes named `<module path>/<operator>` are in, "" if they do not say.

    Engines put words of their own before a name and behind it.
    """
    paths = [name.partition("/")[0].rpartition(" ")[2] for name in names if "/" in name]
    inside = [path for path in paths if path != "program"]
    return common_module(inside) if inside else common_module(paths)


def without_module(layer: Layer, neighbours: Sequence[Layer]) -> Layer:
    """The layer, in the innermost module of its neighbours where it does not say its own."""
    if layer.module:
        return layer
    known = [one.module for one in neighbours if one.module not in ("", "program")]
    return replace(layer, module=common_module(known))
