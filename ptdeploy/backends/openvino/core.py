"""OpenVINO's Core, one for as long as the process lives."""

from __future__ import annotations

import contextlib
import functools
import os
from typing import Any

from ptdeploy.backends.openvino.stillness import Passes, wait_for_sleep
from ptdeploy.backends.telemetry import import_openvino

PASSES = Passes()


@functools.cache
def core() -> Any:
    """The process's Core. Raises ImportError without OpenVINO, and what OpenVINO does.

    On a CPU with AMX a Core's plugin gives the thread that loads it a stack for signals, and takes
    it away when it ends. Of two, the one that ends last puts back the other's, which is memory no
    more: the next signal, a Ctrl-C or a server's SIGTERM, would end the process there and then.
    """
    made = import_openvino().Core()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=_be_still, after_in_parent=PASSES.let_go, after_in_child=PASSES.after_fork
        )
    return made


def _be_still() -> None:
    PASSES.hold()
    _forget_idle_threads()
    wait_for_sleep()


def _forget_idle_threads() -> None:
    """Let no forked process find the threads of an engine that is gone, and wait for them.

    OpenVINO keeps them for the next engine while there is a Core. A plugin that ends drops them.
    """
    # A fork must not fail for it; where there is no plugin, there are no threads.
    with contextlib.suppress(Exception):
        import_openvino().Core().get_property("CPU", "FULL_DEVICE_NAME")
