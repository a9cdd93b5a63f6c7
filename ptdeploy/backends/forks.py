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


class Following(Protocol):
    """What has locks, which another thread may have held when the process was forked."""

    def after_fork(self) -> None:
        """Begin anew in the forked process, before anything else runs in it."""
        ...


_KNOWN: WeakSet[Any] = WeakSet()
_FOLLOWING: WeakSet[Any] = WeakSet()


def survive_forks(one: Forked) -> None:
    """Let a forked process end, or drop `one`, without waiting for threads that it has not."""
    _KNOWN.add(one)


def follow_forks(one: Following) -> None:
    """Have `one` told in each forked process."""
    _FOLLOWING.add(one)


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


def _tell_all() -> None:
    for one in list(_FOLLOWING):
        one.after_fork()


# Whatever calls fork, a program's own code or a server's.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_for_ever)
    os.register_at_fork(after_in_child=_tell_all)
