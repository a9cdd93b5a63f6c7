"""Programs that some tests need: where one is missing, the test is skipped and says so.

With PTDEPLOY_REQUIRE_TOOLS=1, as .ci/run sets it, the test fails instead; but for the browser's.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import pytest

# Where each comes from; those that Python's own index has are in the `dev` extra.
ORIGIN = {
    "c++": "apt-get install g++",
    "cc": "apt-get install gcc",
    "cmake": "pip install cmake",
    "nm": "apt-get install binutils",
    "npm": "apt-get install npm, or set ONNXRUNTIME_ROOT to an unpacked official archive",
    "setpriv": "apt-get install util-linux",
    "valgrind": "apt-get install valgrind",
}


def find(name: str) -> str | None:
    """The path of a program, on PATH or beside this Python; None where there is none."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def tool(name: str) -> str:
    """The path of a program that a test needs."""
    return find(name) or missing(f"{name} is not installed ({ORIGIN[name]})")


def browser() -> str:
    """Chromium's path; without it the one test that needs it is skipped, in .ci/run too."""
    found = find("chromium") or find("chromium-browser")
    if found is None:
        pytest.skip("chromium is not installed (apt-get install chromium)")
    return found


def bound_by_modes() -> list[str]:
    """What a command begins with so that files' modes bind it, though it is root's."""
    if os.geteuid() != 0:
        return []
    return [tool("setpriv"), "--bounding-set=-all", "--inh-caps=-all"]


def missing(reason: str) -> NoReturn:
    """Skip the test at hand, or fail it where all tools are said to be there."""
    if os.environ.get("PTDEPLOY_REQUIRE_TOOLS"):
        pytest.fail(reason)
    pytest.skip(reason)
