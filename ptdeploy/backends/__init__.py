"""Backends: what runs engines, without torch. A package each, one interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ptdeploy.errors import BundleError, InputError

if TYPE_CHECKING:
    from ptdeploy.backends.layers import EngineLayers, Profiled
    from ptdeploy.backends.session import Session
    from ptdeploy.bundle import Bundle


class NoKernel(BundleError):
    """An engine's graph has an operator, or one in a type, that its backend cannot run."""


@dataclass(frozen=True)
class EngineWords:
    """What an engine's files say of it, for people: lines of a title and a text.

    `built` says how it was built and for what, `computes` what it computes in which type.
    `compared` are the facts that `diff` holds against another engine's, by the names it shows.
    """

    built: tuple[tuple[str, str], ...] = ()
    computes: tuple[tuple[str, str], ...] = ()
    compared: Mapping[str, Any] = field(default_factory=dict)


class Backend(Protocol):
    """What opens and runs the engines of one target."""

    @property
    def devices(self) -> tuple[str, ...]:
        """Those it runs on, the default first."""
        ...

    @property
    def packages(self) -> tuple[str, tuple[str, ...]]:
        """What `doctor` looks for: a title, and the distributions that it needs or can use."""
        ...

    @property
    def cmake(self) -> tuple[str, ...]:
        """What a C++ project gives CMake for it beside ONNX Runtime's place."""
        ...

    @property
    def fastest_at(self) -> str:
        """What it was measured to be fastest at, for `doctor`; "" if that is nothing."""
        ...

    def problem(self, installed: Mapping[str, str | None]) -> str:
        """What is wrong with these versions of its packages together, or ""."""
        ...

    def unavailable(self, device: str) -> tuple[str, str] | None:
        """Why it cannot run on `device` here and how to change that, or None if it can."""
        ...

    def no_cpp(self, bundle: Bundle) -> tuple[str, str] | None:
        """Why the C++ library does not run a bundle's engine and how to change that, or None."""
        ...

    def load(self, bundle: Bundle, device: str, threads: int | None, map_weights: bool) -> Session:
        """Open a bundle's engine. Raises TargetUnavailable, never falls back to another device.

        Raises BundleError if its files are no engine, NoKernel if it has operators that the
        backend cannot run.
        """
        ...

    def layers(self, bundle: Bundle, device: str) -> EngineLayers:
        """What a bundle's engine runs on `device`, layer by layer. Raises as `load` does."""
        ...

    def profiled(
        self, bundle: Bundle, device: str, threads: int | None
    ) -> AbstractContextManager[Profiled]:
        """Open a bundle's engine so that it times its layers. Raises as `load` does."""
        ...

    def held_as(self, bundle: Bundle) -> str:
        """The precision whose thresholds hold a bundle's engine."""
        ...

    def takes(self, bundle: Bundle, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether a bundle's engine takes inputs of these shapes, as far as its files say."""
        ...

    def facts(self, bundle: Bundle) -> dict[str, Any]:
        """What a bundle's engine files say of themselves, as plain data; {} if nothing."""
        ...

    def describe(self, facts: Mapping[str, Any]) -> EngineWords:
        """What `facts` gave, in words."""
        ...


def _ort() -> Backend:
    from ptdeploy.backends.ort import OrtBackend

    return OrtBackend()


def _openvino() -> Backend:
    from ptdeploy.backends.openvino import OpenVinoBackend

    return OpenVinoBackend()


def _trt() -> Backend:
    from ptdeploy.backends.trt import TrtBackend

    return TrtBackend()


BACKENDS: dict[str, Callable[[], Backend]] = {"ort": _ort, "openvino": _openvino, "trt": _trt}


def get_backend(name: str) -> Backend:
    """What runs the engines of that target. Raises InputError if there is none."""
    if name not in BACKENDS:
        raise InputError(f"No target {name!r}; there is {', '.join(BACKENDS)}.")
    return BACKENDS[name]()


def of_another_target(target: str, device: str) -> tuple[str, str]:
    """Why a target runs on none of what others run on, and what to do."""
    own = ", ".join(get_backend(target).devices)
    others = [name for name in BACKENDS if device in get_backend(name).devices]
    compiled = f", or compile for a target that runs on {device}: {', '.join(others)}"
    return (
        f"The target {target} runs on {own}, not on {device!r}.",
        f"Leave the device out{compiled if others else ''}.",
    )


def engine_facts(bundle: Bundle) -> dict[str, Any]:
    """What a bundle's engine files say of themselves; {} of a target that is unknown here."""
    target = bundle.manifest.target
    return get_backend(target).facts(bundle) if target in BACKENDS else {}


def engine_words(target: str, facts: Mapping[str, Any]) -> EngineWords:
    """Those facts in words; of a target that is unknown here only what they are, by their names."""
    if target in BACKENDS:
        return get_backend(target).describe(facts)
    return EngineWords(tuple((name, str(value)) for name, value in facts.items()), (), facts)
