"""Threads tied to cores, for a process that has its cores to itself (`PTDEPLOY_PIN=1`).

A thread that slept may begin on the core of the thread that woke it, and wait for it there: a
single text after a pause then takes half as long again. ptdeploy/cpp/src/ties.cc has the same
rules.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ptdeploy.backends.cores import cpus_of_cores, default_threads, switch
from ptdeploy.errors import InputError

PIN = "PTDEPLOY_PIN"


def tied_cpus(threads: int | None = None, system: Path = Path("/sys")) -> tuple[int, ...] | None:
    """The CPU of each of an engine's threads, the caller's first; None if they are not tied.

    Each is one hardware thread of a core of its own, of those that this process may run on.
    Raises InputError if the variable is neither 0 nor 1, if there are more threads than cores, or
    if this system ties no threads.
    """
    if not switch(PIN):
        return None
    if not hasattr(os, "sched_setaffinity"):
        raise InputError(f"{PIN} is '1'; this system ties no threads to cores.", f"Unset {PIN}.")
    cpus, wanted = cpus_of_cores(system), threads or default_threads()
    if wanted > len(cpus):
        raise InputError(
            f"{PIN} is '1'; {wanted} threads cannot have a core each: this process has "
            f"{len(cpus)}.",
            f"Give the engine fewer threads, or unset {PIN}.",
        )
    return tuple(cpus[:wanted])


class Seat:
    """The CPU of an engine's first thread, which is whoever calls it: one caller at a time."""

    def __init__(self, cpu: int) -> None:
        # No lock, which a fork could find taken: a list's own methods do as one step.
        self._free = [cpu]

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Tie the calling thread, if no other is and if it may run there; then untie it."""
        try:
            cpu = self._free.pop()
        except IndexError:
            yield
            return
        before: set[int] = set()
        try:
            # Where the system refuses it, a request is no slower than untied.
            with suppress(OSError):
                before = _tied(cpu)
            yield
        finally:
            with suppress(OSError):
                if before:
                    os.sched_setaffinity(0, before)
            self._free.append(cpu)


def _tied(cpu: int) -> set[int]:
    """Tie the calling thread to one CPU; gives where it ran before, nothing if it may not."""
    before = os.sched_getaffinity(0)
    if cpu not in before:
        return set()
    os.sched_setaffinity(0, {cpu})
    return before
