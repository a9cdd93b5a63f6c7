"""What the command line prints, whatever its streams are: not UTF-8, full, closed, a terminal."""

from __future__ import annotations

import codecs
import json
import math
import os
import re
import sys
from contextlib import suppress
from typing import Any, TextIO

from ptdeploy.errors import OutputError, PtdeployError
from ptdeploy.printable import printable, printable_lines
from ptdeploy.text_files import system_text

# JSON allows them raw, but some readers end a line at them and terminals act on them.
_RAW_IN_JSON = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# Python's spelling of bytes that the locale cannot decode.
_SURROGATES = re.compile("[\udc80-\udcff]+")
_NOT_ASCII = re.compile("[^\x00-\x7e]")


def open_streams() -> None:
    """Make the standard streams take any text; what the console cannot show is escaped.

    A closed one becomes one that says so when it is written to (standard output), or that takes
    everything (standard error). Its number is taken too: the next file opened would get it, and
    then whatever a library prints.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            flags = os.O_WRONLY if number == 2 else os.O_RDONLY
            opened = os.open(os.devnull, flags)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
    if sys.stdout is None:
        closed = os.open(os.devnull, os.O_RDONLY)
        sys.stdout = os.fdopen(closed, "w", encoding="utf-8")
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # A stream that somebody put in its place may have no encoding at all.
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")


def show(text: str = "", end: str = "\n", flush: bool = False) -> None:
    """Print text; control characters in it other than line ends and tabs are escaped."""
    _print(printable_lines(text), end, flush)


def show_raw(text: str, end: str = "\n", flush: bool = False) -> None:
    """Print a model's own text: as it is into a file or pipe, as `show` does on a terminal."""
    _print(printable_lines(text) if sys.stdout.isatty() else text, end, flush)


def show_json(value: Any, indent: int | None = None) -> None:
    """Print a JSON value: as UTF-8 where the stream is that, with \\u escapes elsewhere.

    A number that is not finite is null: JSON has none.
    """
    text = json.dumps(_of_json(value), indent=indent, ensure_ascii=False, allow_nan=False)
    show_json_text(text + "\n")


def show_json_text(text: str) -> None:
    """The same for a value that is JSON already."""
    pattern = _RAW_IN_JSON if _is_utf8(sys.stdout) else _NOT_ASCII
    _print(pattern.sub(lambda found: json.dumps(found[0])[1:-1], text), "", False)


def complain_of(error: PtdeployError) -> None:
    """Print an error to standard error. What it quotes from files begins no line of its own."""
    problem = "\n  ".join(printable(part) for part in error.problem.split("\n  "))
    complain(f"ptdeploy: {problem}\n{error.fix}".rstrip())


def complain(text: str) -> None:
    """Print to standard error, if it takes it: nothing ends because nobody hears of it."""
    with suppress(OSError, ValueError):
        print(printable_lines(text), file=sys.stderr, flush=True)


def finish() -> None:
    """Write out what standard output still holds. Raises as the others do."""
    _print("", "", True)


def let_go(stream: TextIO | None) -> None:
    """Write out what a stream still holds, or drop it where it is not taken.

    Raises BrokenPipeError, with all dropped, if whoever read it has gone.
    """
    if stream is None:
        return
    try:
        stream.flush()
    except BrokenPipeError:
        abandon(stream)
        raise
    except (OSError, ValueError):  # full, or closed
        abandon(stream)


def abandon(stream: TextIO) -> None:
    """Drop what a stream could not write: Python would try again while it shuts down, and exit
    with 120.
    """
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _print(text: str, end: str, flush: bool) -> None:
    try:
        print(text, end=end, flush=flush)
    except BrokenPipeError:
        raise
    except OSError as error:
        abandon(sys.stdout)
        raise OutputError(
            f"Standard output cannot be written ({error.strerror}).",
            "Files that the command wrote are whole. Send its output elsewhere.",
        ) from error


def _of_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _of_json(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_of_json(one) for one in value]
    if isinstance(value, str) and not value.isascii():
        return _SURROGATES.sub(lambda found: system_text(found[0]), value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_utf8(stream: TextIO) -> bool:
    encoding = getattr(stream, "encoding", None)
    try:
        return encoding is None or codecs.lookup(encoding).name == "utf-8"
    except LookupError:
        return False


def show_json_facts(facts: dict[str, Any]) -> int:
    """Facts for machines, indented; gives the exit code."""
    show_json(facts, indent=2)
    return 0
