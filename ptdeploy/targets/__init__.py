"""Targets: what turns ONNX into engine files. One file each, one interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from ptdeploy.bundle.task import Activations, Operators, QuantizedReader
from ptdeploy.errors import InputError
from ptdeploy.targets.options import NoOptions, TargetOptions

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    import onnx_ir as ir
    from numpy.typing import NDArray

    from ptdeploy.bundle import Bundle, FileEntry, Quantization, RequestLimits
    from ptdeploy.bundle.signature import Signature
    from ptdeploy.targets.openvino_options import OpenVinoOptions
    from ptdeploy.targets.trt.options import TrtOptions

Options = TypeVar("Options", bound=TargetOptions)


@dataclass(frozen=True)
class Numerics:
    """What a target computes a precision with.

    `operators` are those that attention over a KV buffer is traced as; None leaves attention to the
    model. `custom_operators` says whether the engine knows ONNX Runtime's own. `fixed_slots` is for
    engines whose buffer must have a fixed number of slots. `opset` is what graphs are exported to,
    None for whatever their operators need. `weights` is the operator that reads quantized ones.
    `block_size` is how many weights share a scale unless
    told, 0 for a whole column, and `quantizes_embeddings` whether embeddings are weights in that.
    `plain` says whether a KV buffer may also be kept by a graph whose attention is none of those
    operators. `int8_products` says whether its products of int8 by int8 are the faster ones where a
    program runs whole texts. `group` is how many activations share a scale at least where they are
    multiplied with quantized weights in int8, 0 where the operator itself says. `turns` says
    whether its fused attention turns queries and keys by a table of rotary angles, `fixed_scales`
    whether activations can have scales that do not hang on them.
    """

    activations: Activations
    operators: Operators | None
    custom_operators: bool = True
    fixed_slots: bool = False
    opset: int | None = None
    weights: QuantizedReader = "MatMulNBits"
    block_size: int = 32
    quantizes_embeddings: bool = False
    plain: bool = True
    int8_products: bool = False
    group: int = 0
    turns: bool = False
    fixed_scales: bool = False


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
class BuildRequest(Generic[Options]):
    """What an engine is built from: a graph, what goes in and out of it, and how to build it.

    `own_sizes` are the largest sizes that the prompts it is built for give to named axes.
    """

    model: ir.Model
    signature: Signature
    limits: RequestLimits
    device: str
    precision: str
    folder: Path
    options: Options
    quantization: Quantization | None = None
    own_sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Built:
    """The files of an engine; `working` ones were needed to make it and stay out of the bundle."""

    files: tuple[FileEntry, ...]
    working: tuple[FileEntry, ...] = ()
    notes: tuple[str, ...] = ()


class Target(Protocol[Options]):
    """What builds a target's engines. `Options` is what a user may ask of them.

    What is said of a device holds for the ones that its backend runs on.
    """

    @property
    def graph_check(self) -> str:
        """The target that can run the very graph an engine is built from, where the engine itself
        cannot run; "" if the graph is the engine."""
        ...

    def no_kv_buffer(self, device: str) -> tuple[str, str] | None:
        """Why its engines keep no KV buffer there and what to do about it, or None if they do."""
        ...

    def add_options(self, parser: ArgumentParser) -> None:
        """Add what compile takes for it to the command line."""
        ...

    def add_rebuild_options(self, parser: ArgumentParser) -> None:
        """Add what rebuild takes for it."""
        ...

    def read_options(self, arguments: Namespace) -> Options:
        """What compile's command line asked of it."""
        ...

    def read_rebuild_options(self, arguments: Namespace) -> Options | None:
        """What rebuild's command line asked of it, None if nothing."""
        ...

    def options(self, asked: TargetOptions | None) -> Options:
        """What was asked, held against what there is; its defaults where nothing was asked.

        Raises InputError if a value is of another kind or out of its range, if options do not fit
        each other, or if they are another target's.
        """
        ...

    def precisions(self, device: str) -> tuple[str, ...]:
        """The precisions it builds for a device, the default first."""
        ...

    def numerics(self, device: str, precision: str) -> Numerics:
        """How it computes one of them."""
        ...

    def refuses(self, device: str, activations: Activations, attention: Attention) -> str:
        """Why its fused attention cannot compute that, in the engine's words, or "" if it can."""
        ...

    def joins(self, device: str, precision: str, attention: Attention) -> bool:
        """Whether its fused attention can keep apart rows of one past that come as one sequence."""
        ...

    def unbuildable(
        self, device: str, precision: str, options: Options, quantization: Quantization | None
    ) -> tuple[str, str] | None:
        """Why it cannot build for `device` here and how to change that, or None if it can.

        Raises InputError if what is installed here does not have what the options ask for.
        """
        ...

    def limit(
        self, limits: RequestLimits, options: Options, causal: bool, max_context: int | None
    ) -> RequestLimits:
        """The limits as its engines have them; `max_context` is what was asked for."""
        ...

    def build(self, request: BuildRequest[Options]) -> Built:
        """Write the engine files and list them."""
        ...

    def rebuild(self, bundle: Bundle, asked: TargetOptions | None) -> tuple[str, ...]:
        """Make the engine files anew from the ONNX beside them, where they lie; gives notes.

        What was `asked` replaces what they were built with. Only for targets with a graph check.
        Raises InputError if something was asked that an engine cannot be rebuilt with.
        """
        ...

    def run_graph(
        self, bundle: Bundle, inner: tuple[str, ...], feed: Mapping[str, NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        """Run a bundle's ONNX once, values by name: its outputs, and the inner ones if it can.

        bfloat16 is given as float32.
        """
        ...


def _ort() -> Target[NoOptions]:
    from ptdeploy.targets.ort import OrtTarget

    return OrtTarget()


def _openvino() -> Target[OpenVinoOptions]:
    from ptdeploy.targets.openvino import OpenVinoTarget

    return OpenVinoTarget()


def _trt() -> Target[TrtOptions]:
    from ptdeploy.targets.trt import TrtTarget

    return TrtTarget()


# What each takes for options only itself knows.
TARGETS: dict[str, Callable[[], Target[Any]]] = {"ort": _ort, "openvino": _openvino, "trt": _trt}


def get_target(name: str) -> Target[Any]:
    """What builds engines of that name. Raises InputError if there is none."""
    if name not in TARGETS:
        raise InputError(f"No target {name!r}; there is {', '.join(TARGETS)}.")
    return TARGETS[name]()
