"""Stage by stage progress on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from ptdeploy.printable import printable

PENDING = (
    "parity of the engine is pending, as it cannot run here; ptdeploy verify BUNDLE completes it "
    "on a machine with a GPU."
)
REFERENCE_STAGE = "run PEFT on PyTorch, each row alone"


class Progress:
    """Says which stage runs, and how long each one took.

    Writes to `stream` (standard error unless told), never to standard output, so that `--json`
    stays machine readable. `quiet` says nothing.
    """

    def __init__(self, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._quiet = quiet
        self._stream = stream

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        start = time.perf_counter()
        self._say(f"  {printable(title)} ...", end="")
        try:
            yield
        except BaseException:
            self._say(" failed")
            raise
        self._say(f" {time.perf_counter() - start:.1f} s")

    def note(self, text: str) -> None:
        self._say(f"  note: {printable(text)}")

    def _say(self, text: str, end: str = "\n") -> None:
        # Without a standard error sys.stderr is None, which print takes for standard output.
        stream = self._stream or sys.stderr
        if self._quiet or stream is None:
            return
        try:
            print(text, end=end, file=stream, flush=True)
        except UnicodeEncodeError:
            print(ascii(text)[1:-1], end=end, file=stream, flush=True)
        except (OSError, ValueError):  # full, or closed: no work ends because nobody reads of it
            self._quiet = True
