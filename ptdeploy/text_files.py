"""Text that comes in: UTF-8 whatever the locale, with or without its byte order mark."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from ptdeploy.errors import InputError

_MARK = b"\xef\xbb\xbf"
_OTHER_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
# Of the bytes that are looked at to tell UTF-16 without a mark: in text, every other one is zero.
_SAMPLE, _ZEROS = 4096, 0.3
_SAVE_AS = "Save it as UTF-8."
_MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class Line:
    """A line of a file by its number, from 1, without its end; or what is wrong with its bytes."""

    number: int
    text: str
    problem: str = ""


def read_content(path: str | Path, option: str) -> bytes:
    """A file's bytes without a UTF-8 mark; `-` is standard input.

    Raises InputError, naming `option`, if it cannot be read or is another encoding's for certain.
    """
    try:
        content = _read(path, option)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{option} {path}: cannot be read ({reason}).") from error
    if len(content) > _MOST_BYTES:
        raise InputError(f"{option} {path}: has over {_MOST_BYTES >> 20} MiB.", "Split it.")
    for mark, name in _OTHER_MARKS.items():
        if content.startswith(mark):
            raise InputError(f"{option} {path}: is {name}, not UTF-8.", _SAVE_AS)
    sample = content[:_SAMPLE]
    for start in (0, 1):
        every_other = sample[start::2]
        if len(sample) > 1 and every_other.count(0) > _ZEROS * len(every_other):
            raise InputError(f"{option} {path}: looks like UTF-16, not UTF-8.", _SAVE_AS)
    return content.removeprefix(_MARK)


def read_text(path: str | Path, option: str) -> str:
    """A file's text. Raises InputError, naming the line, if it is no UTF-8 or has zero bytes."""
    content = read_content(path, option)
    _check(lines_of(content), path, option)
    return content.decode()


def read_lines(path: str | Path, option: str) -> list[str]:
    """A file's lines, as `lines_of` has them. Raises InputError as `read_text` does."""
    lines = lines_of(read_content(path, option))
    _check(lines, path, option)
    return [line.text for line in lines]


def lines_of(content: bytes) -> list[Line]:
    """Lines as every editor numbers them: each ends at \\n or \\r\\n, and at nothing else.

    What follows the last line end is a line too, unless it is empty.
    """
    *ended, last = content.split(b"\n")
    lines = [line.removesuffix(b"\r") for line in ended]
    if last:
        lines.append(last)
    return [_line(number, line) for number, line in enumerate(lines, 1)]


def system_text(text: str) -> str:
    """An argument or a file's name as text: UTF-8 though the locale is another.

    Where its bytes are not, it stays as Python spells it.
    """
    try:
        return os.fsencode(text).decode()
    except UnicodeError:
        return text


def argument_text(text: str) -> str:
    """The same of a command line argument. Raises InputError if its bytes are not UTF-8."""
    found = system_text(text)
    try:
        found.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"The argument {text!r} is not UTF-8.") from error
    return found


_OPEN_NOTHING = "ONNX Runtime, tokenizers and safetensors open nothing by such a name"


def library_path(path: str | Path, reason: str = _OPEN_NOTHING) -> str:
    """A path as libraries that are not Python's take it: in UTF-8, though the locale is another.

    Raises InputError, with the reason, if its bytes are not.
    """
    try:
        return os.fsencode(path).decode()
    except UnicodeError as error:
        raise InputError(
            f"{path}: its name is not UTF-8, and {reason}.",
            "Rename it, or name a link to it.",
        ) from error


def _read(path: str | Path, option: str) -> bytes:
    if str(path) != "-":
        with Path(path).open("rb") as file:
            return file.read(_MOST_BYTES + 1)
    if sys.stdin is None:
        raise InputError(f"{option} -: standard input is closed.")
    # The locale's decoding is left out: the bytes are UTF-8.
    content: bytes = sys.stdin.buffer.read(_MOST_BYTES + 1)
    return content


def _check(lines: list[Line], path: str | Path, option: str) -> None:
    for line in lines:
        problem = line.problem or (
            "holds a zero byte, as no text does" if "\0" in line.text else ""
        )
        if problem:
            raise InputError(f"{option} {path}: line {line.number} {problem}.", _SAVE_AS)


def _line(number: int, content: bytes) -> Line:
    try:
        return Line(number, content.decode())
    except UnicodeDecodeError as error:
        byte = content[error.start]
        words = f"is not UTF-8 (byte 0x{byte:02x}, the line's {error.start + 1}.)"
        return Line(number, content.decode(errors="replace"), words)
