"""Signals that end a process, as exceptions: what was half made is then cleared as on an error."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ENDING = ("SIGTERM", "SIGHUP")


class EndedBySignal(KeyboardInterrupt):
    """The process was asked to end, by another signal than Ctrl-C's."""

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(self.signal.name)


def interruption(error: BaseException) -> KeyboardInterrupt | None:
    """The signal that an error comes from, if one came while it was made: libraries put errors of
    their own in its place.
    """
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        if isinstance(one, KeyboardInterrupt):
            return one
        seen.add(id(one))
        waiting += [one.__context__, one.__cause__]
    return None


@contextmanager
def end_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise EndedBySignal, once; a second one waits for the clearing.

    A signal that is ignored (nohup) stays ignored. Other threads than the first leave all as it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        for one in replaced:
            signal.signal(one, signal.SIG_IGN)
        raise EndedBySignal(number)

    replaced = {
        number: signal.getsignal(number)
        for name in _ENDING
        if (number := getattr(signal, name, None)) is not None
        and signal.getsignal(number) is signal.SIG_DFL
    }
    try:
        for number in replaced:
            signal.signal(number, end)
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)
