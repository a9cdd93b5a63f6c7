"""Other people's words in what we print: no character of theirs acts on a terminal or a report."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from enum import Enum
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

# Controls, what turns the direction of writing, what other readers end a line at, and what no XML
# may hold. Joiners and variation selectors stay: scripts and emoji are written with them.
_ACTS = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff"
)
_ANYWHERE = re.compile(f"[{_ACTS}]")
_IN_A_LINE = re.compile(f"[{_ACTS}\t\n]")


def printable(text: str) -> str:
    """Text on one line whose control characters are written as Python writes them, `\\x1b`."""
    return _IN_A_LINE.sub(_escape, text)


def printable_lines(text: str) -> str:
    """The same for text of several lines: line ends and tabs stay."""
    return _ANYWHERE.sub(_escape, text)


def printable_fields(value: T) -> T:
    """The same value with every string in it on one line: of dicts, sequences, structs and others.

    Numbers and the like stay what they are.
    """
    return _fields(value)  # type: ignore[no-any-return]


def number_of(count: int, noun: str) -> str:
    """How many there are, in words: "1 label", "2 labels"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def shell_word(value: str | os.PathLike[str]) -> str:
    """Text as one word of a shell's command line, to be copied from one line of ours."""
    text = os.fspath(value)
    if printable(text) == text:
        return shlex.quote(text)
    # What acts on a terminal is written by its bytes, as bash and zsh read them back.
    raw = os.fsencode(text).replace(b"\\", b"\\\\").replace(b"'", b"\\'")
    return "$'" + "".join(chr(b) if 0x20 <= b < 0x7F else f"\\x{b:02x}" for b in raw) + "'"


def _fields(value: Any) -> Any:
    if isinstance(value, str):
        return value if isinstance(value, Enum) else printable(value)
    if isinstance(value, dict):
        return {_fields(key): _fields(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_fields, value))
    if isinstance(value, msgspec.Struct):
        return msgspec.structs.replace(
            value, **{name: _fields(getattr(value, name)) for name in value.__struct_fields__}
        )
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(
            value, **{f.name: _fields(getattr(value, f.name)) for f in dataclasses.fields(value)}
        )
    return value


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    named = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}.get(found[0])
    return named or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
