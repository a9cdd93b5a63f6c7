"""Engines in a process that was forked: their threads stayed behind in the one it comes from."""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import Any, Protocol
from weakref import WeakSet

from ptdeploy.errors import EngineFault


class Forked(Protocol):
    """What holds a native engine with threads."""

    def native(self) -> Any:
        """The object whose end would wait for those threads."""
        ...


_KNOWN: WeakSet[Any] = WeakSet()


def survive_forks(one: Forked) -> None:
    """Let a forked process end, or drop `one`, without waiting for threads that it has not."""
    _KNOWN.add(one)


def cannot_follow(device: str) -> EngineFault:
    """Why an engine is not used in a process that was forked after it was opened."""
    return EngineFault(
        f"The engine was opened on {device} before this process was forked, and does not work in "
        "it.",
        "Open it after the fork, or start the process another way: "
        'multiprocessing.get_context("spawn").',
    )


def _keep_for_ever() -> None:
    for one in list(_KNOWN):
        # One that was not opened to its end must not keep the others from being kept.
        with contextlib.suppress(Exception):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(one.native()))


# Whatever calls fork, a program's own code or a server's.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_for_ever)
