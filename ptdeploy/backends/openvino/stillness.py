"""OpenVINO is still while its process forks.

A lock that one of its threads holds then stays held in the child, which has none of its threads:
the child would wait for that lock for ever as soon as it compiles a graph.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path

_TASKS = Path("/proc/self/task")
# Threads that are not OpenVINO's may never sleep: a fork must not wait for them.
_PATIENCE_S = 1.0
_GLANCE_S = 0.0005


class Passes:
    """The passes that threads have OpenVINO make: a fork begins when they are over.

    A thread that forks inside of its own, as a signal's handler may, does not wait for itself.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running: Counter[int] = Counter()
        self._forks = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """A pass, which begins when no fork is under way."""
        me = threading.get_ident()
        with self._changed:
            # One inside of another goes on: the fork waits for it.
            self._changed.wait_for(lambda: not self._forks or self._running[me])
            self._running[me] += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= Counter((me,))
                self._changed.notify_all()

    def hold(self) -> None:
        """Wait until no other thread makes one, and let none begin."""
        me = threading.get_ident()
        with self._changed:
            self._forks += 1
            self._changed.wait_for(lambda: not self._running.keys() - {me})

    def let_go(self) -> None:
        """Let passes begin again."""
        with self._changed:
            # A fork whose wait a signal cut short may have held nothing.
            self._forks = max(0, self._forks - 1)
            self._changed.notify_all()

    def after_fork(self) -> None:
        """Forget the other threads, in the child, which has none of them."""
        me = threading.get_ident()
        self._changed, self._forks = threading.Condition(), 0
        # Without a pass of its own it must not stand there with none: a thread would wait for it.
        self._running = +Counter({me: self._running[me]})


def wait_for_sleep(patience_s: float = _PATIENCE_S) -> bool:
    """Wait until every thread that is not Python's own sleeps; whether they do.

    Threads that sleep at two glances, and did not wake between them, have no lock: what one of
    them waited for would be had by one that runs. Linux alone tells; elsewhere it is False.
    """
    until, before = time.monotonic() + patience_s, None
    while True:
        now = _naps(_foreign_threads())
        if now is not None and now == before:
            return True
        if time.monotonic() > until or not _TASKS.is_dir():
            return False
        before = now
        time.sleep(_GLANCE_S)


def _foreign_threads() -> Set[int]:
    if not _TASKS.is_dir():
        return set()
    ours = {one.native_id for one in threading.enumerate()} | {threading.get_native_id()}
    return {int(one.name) for one in _TASKS.iterdir()} - ours


def _naps(threads: Set[int]) -> dict[int, str] | None:
    """How often each has gone to sleep, or None if one is awake."""
    found = {}
    for thread in threads:
        try:
            lines = (_TASKS / str(thread) / "status").read_text().splitlines()
        except OSError:
            continue  # It has ended.
        status = dict(line.split(":", 1) for line in lines if ":" in line)
        if status["State"].split()[0] not in {"S", "Z", "X"}:
            return None
        found[thread] = status["voluntary_ctxt_switches"]
    return found
