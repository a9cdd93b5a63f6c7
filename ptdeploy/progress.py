"""Stage by stage progress on standard error."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO, TypeVar

from ptdeploy.errors import PtdeployError
from ptdeploy.memory import out_of_memory, ran_out_of_memory
from ptdeploy.printable import printable

PENDING = (
    "parity of the engine is pending, as it cannot run here; ptdeploy verify BUNDLE completes it "
    "on a machine with a GPU."
)
PENDING_PACK = (
    "parity over the engine is pending, as it cannot run here; ptdeploy prompt add BUNDLE PACK "
    "shows it on a machine with a GPU, before it adds the prompt."
)
# Seconds that nobody wonders about.
PATIENCE = 2.0
_T = TypeVar("_T")
LOGGER = logging.getLogger("ptdeploy")
# A library's notes go where its host's logging sends them, and nowhere unless it was set up.
LOGGER.addHandler(logging.NullHandler())


def reference_stage(of_peft: bool) -> str:
    """The title of computing the reference, which PEFT gives unless it has no loader for it."""
    return f"run {'PEFT' if of_peft else 'transformers'} on PyTorch, each row alone"


class Progress:
    """Says which stage runs, and how long each one took.

    Writes to `stream` (standard error unless told), never to standard output, so that `--json`
    stays machine readable. `quiet` says nothing, or with `notes` those alone: they are what there
    is to know of a result. The logger "ptdeploy" has the same: stages as INFO, notes as WARNING.
    """

    def __init__(
        self, quiet: bool = False, stream: TextIO | None = None, notes: bool = False
    ) -> None:
        self._quiet = quiet
        self._notes = notes or not quiet
        self._stream = stream
        self._line = ""

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """One stage, from its title to how long it took. Raises OutOfMemory in its name."""
        start = time.perf_counter()
        LOGGER.info("%s", printable(title))
        self._line = f"  {printable(title)} ..."
        self._say(self._line, end="")
        try:
            yield
        except BaseException as error:
            self._say(" failed")
            if isinstance(error, PtdeployError) or not ran_out_of_memory(error):
                raise
            raise out_of_memory(f"the stage was: {title}", error) from error
        self._say(f" {time.perf_counter() - start:.1f} s")

    @contextmanager
    def waiting(self, title: str) -> Iterator[None]:
        """A stage of a command that mostly answers at once: said to whoever waits two seconds for
        it at a terminal, and to nobody else.
        """
        if not self._is_watched():
            yield
            return
        start, said = time.perf_counter(), threading.Event()

        def say() -> None:
            said.set()
            self._say(f"  {printable(title)} ...", end="")

        timer = threading.Timer(PATIENCE, say)
        timer.daemon = True
        timer.start()
        end = " failed"
        try:
            yield
            end = f" {time.perf_counter() - start:.1f} s"
        finally:
            timer.cancel()
            timer.join()
            if said.is_set():
                self._say(end)

    def counted(self, items: Iterable[_T], total: int, what: str) -> Iterator[_T]:
        """`items`, of which there are `total`; every two seconds it says how many came, to whoever
        waits at a terminal while they go elsewhere.
        """
        apart = not (sys.stdout and sys.stdout.isatty())
        if (yield from self._told(items, total, what, "  ", apart)):
            self._say("")

    def within(self, items: Sequence[_T], what: str) -> Iterator[_T]:
        """`items`, one after another, within a long stage: whoever waits at a terminal is told
        behind its title every two seconds how many are done.
        """
        yield from self._told(items, len(items), what, f"{self._line} ")

    def _told(
        self, items: Iterable[_T], total: int, what: str, before: str, asked: bool = True
    ) -> Generator[_T, None, bool]:
        """`items`; says behind `before` how many came, if `asked`, and returns whether it did."""
        watched, last, said = asked and self._is_watched(), time.monotonic(), False
        for number, item in enumerate(items):
            if watched and time.monotonic() - last >= PATIENCE:
                last, said = time.monotonic(), True
                self._say(f"\r{before}{number} of {total} {what}", end="")
            yield item
        if said:
            self._say(f"\r{before}{total} of {total} {what}", end="")
        return said

    def _is_watched(self) -> bool:
        """Whether somebody reads it while it is written."""
        stream = self._stream or sys.stderr
        try:
            return not self._quiet and stream is not None and stream.isatty()
        except ValueError:  # closed
            return False

    def note(self, text: str) -> None:
        LOGGER.warning("%s", printable(text))
        if self._notes:
            self._write(f"  note: {printable(text)}")

    def _say(self, text: str, end: str = "\n") -> None:
        if not self._quiet:
            self._write(text, end)

    def _write(self, text: str, end: str = "\n") -> None:
        # Without a standard error sys.stderr is None, which print takes for standard output.
        stream = self._stream or sys.stderr
        if stream is None:
            return
        try:
            print(text, end=end, file=stream, flush=True)
        except UnicodeEncodeError:
            print(ascii(text)[1:-1], end=end, file=stream, flush=True)
        except (OSError, ValueError):  # full, or closed: no work ends because nobody reads of it
            self._quiet, self._notes = True, False
