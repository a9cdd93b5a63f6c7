"""How a command ends, whatever ends it. It imports little: a signal may come at any time."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TextIO

from ptdeploy.signals import EndedBySignal, end_by_signals, interruption


def to_the_end(command: Callable[[], int], words: Sequence[str]) -> int:
    """The exit code of the command of these words, with all that it said written out.

    128 and its number if a signal ended it, 141 if whoever read its output has gone.
    """
    try:
        with end_by_signals():
            try:
                return command()
            except BaseException as error:
                ended = interruption(error)
                if ended is None:
                    raise
                return _say_ended(ended, asks_for_json(words))
            finally:
                _let_go(sys.stdout)
    except BrokenPipeError:
        return 141
    finally:
        with suppress(BrokenPipeError):
            _let_go(sys.stderr)


def asks_for_json(words: Sequence[str]) -> bool:
    """Whether --json is among the options, before they are understood."""
    return "--json" in words[: words.index("--") if "--" in words else None]


def _say_ended(ended: KeyboardInterrupt, as_json: bool) -> int:
    from ptdeploy.cli.console import complain, show_json
    from ptdeploy.errors import OutputError

    number = ended.signal if isinstance(ended, EndedBySignal) else signal.SIGINT
    # What failed because of it may have been the clearing.
    cleared = "; nothing half made is left" if ended.__cause__ is None else ""
    complain(f"ptdeploy: ended by {number.name}{cleared}.")
    if as_json:
        with suppress(OutputError):
            error = f"Ended by {number.name}{cleared}."
            show_json({"error": error, "fix": "", "exit": 128 + number})
    return 128 + number


def _let_go(stream: TextIO) -> None:
    from ptdeploy.cli.console import let_go

    let_go(stream)
