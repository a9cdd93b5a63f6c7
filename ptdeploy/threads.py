"""Threads that a process may not start, told from other failures: each library says it its way."""

from __future__ import annotations

import re

from ptdeploy.errors import TargetUnavailable

# As ONNX Runtime, OpenVINO (which says what the system said) and Python say it.
_NO_MORE = re.compile(
    "pthread_create failed|Resource temporarily unavailable|can't start new thread"
)
RAISE_LIMIT = "Raise its limit: ulimit -u, or how many processes its container may have."


def lacks_threads(error: BaseException) -> bool:
    """Whether an error is a limit on how many threads a process may start."""
    return bool(_NO_MORE.search(str(error)))


def no_threads(fix: str = RAISE_LIMIT) -> TargetUnavailable:
    return TargetUnavailable("This process may start no more threads.", fix)
