"""What an ONNX file names beside itself, read without the onnx package and without its weights.

Only as much of the format as leads to tensors: https://onnx.ai/onnx/repo-docs/IR.html. Whatever
else a message holds is stepped over. The C++ library reads it alike (onnx_file.cc).
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# Messages by the numbers of the fields that hold them, in all places where a tensor can stand.
_INSIDE = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {},
}
# As protobuf's own readers have it. Those cut a field's number off past its bits, so that a larger
# one would be another field's to them.
_DEPTH, _MOST_BYTES, _MOST_NUMBER = 100, 2**31 - 1, 2**29 - 1
# A decoder of 24 layers has 7,000 fields.
_MOST_FIELDS = 2**20
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass
class OnnxFile:
    """`external` are the files that its tensors name, as they are written.

    `words` is how many rows the table has that the token ids look up, as they are or kept within
    bounds; None where that is not one Gather over a constant.
    """

    external: set[str] = field(default_factory=set)
    words: int | None = None


def read_onnx_file(path: Path, ids: str = "input_ids") -> OnnxFile:
    """`ids` names the input of token ids.

    Raises ValueError if the file is no ONNX, OSError if it cannot be read.
    """
    found = OnnxFile()
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > _MOST_BYTES:
            raise ValueError(f"it has {size} bytes; at most {_MOST_BYTES} are read")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            reader = _Reader(content, found, ids)
            reader.walk("model", 0, len(content), 0)
    rows = {reader.sizes.get(name) for name in reader.tables}
    if len(rows) == 1:
        found.words = rows.pop()
    return found


class _Reader:
    def __init__(self, content: mmap.mmap, found: OnnxFile, ids: str) -> None:
        self._content, self._found = content, found
        self._ids, self._seen = {ids}, 0
        # The first axis of each constant of the main graph, and those that token ids look up.
        self.sizes: dict[str, int] = {}
        self.tables: set[str] = set()

    def walk(self, kind: str, start: int, end: int, depth: int) -> None:
        if depth > _DEPTH:
            raise ValueError("nested too deeply")
        inside = _INSIDE[kind]
        texts: dict[int, list[str]] = {}
        first_size: int | None = None
        for number, wire, value, stop in self._fields(start, end):
            if number in inside:
                if wire != _BYTES:
                    raise ValueError("a message is written as a number")
                self.walk(inside[number], value, stop, depth + 1)
            elif wire == _BYTES and number in _TEXTS.get(kind, ()):
                texts.setdefault(number, []).append(self._text(value, stop))
            elif kind == "tensor" and number == 1 and first_size is None:
                if wire == _VARINT:
                    first_size = _signed(value)
                elif value < stop:
                    first_size = _signed(self._varint(value, stop)[0])
        if kind == "entry" and texts.get(1, [""])[-1] == "location":
            self._found.external.add(texts.get(2, [""])[-1])
        elif kind == "tensor" and depth == 2 and first_size is not None and 8 in texts:
            self.sizes[texts[8][-1]] = first_size
        elif kind == "node" and depth == 2:
            given, operator = texts.get(1, []), texts.get(4)
            if operator == ["Gather"] and len(given) == 2 and given[1] in self._ids:
                self.tables.add(given[0])
            elif operator in _BOUNDS and given and given[0] in self._ids:
                self._ids.update(texts.get(2, []))

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Each field's number, wire type, and its value, or where its bytes begin and end."""
        place = start
        while place < end:
            tag, place = self._varint(place, end)
            number, wire = tag >> 3, tag & 7
            if not 1 <= number <= _MOST_NUMBER:
                raise ValueError(f"a field has the number {number}")
            self._seen += 1
            if self._seen > _MOST_FIELDS:
                raise ValueError(f"it has over {_MOST_FIELDS} fields")
            if wire == _VARINT:
                value, place = self._varint(place, end)
                yield number, wire, value, 0
                continue
            if wire == _BYTES:
                size, place = self._varint(place, end)
            elif wire in (_FIXED32, _FIXED64):
                size = 4 if wire == _FIXED32 else 8
            else:
                raise ValueError("a field of an unknown type")
            if size > end - place:
                raise ValueError("a field ends behind its message")
            yield number, wire, place, place + size
            place += size

    def _varint(self, place: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if place >= end:
                break
            byte = self._content[place]
            place += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, place
        raise ValueError("a number is cut short")

    def _text(self, start: int, end: int) -> str:
        try:
            return self._content[start:end].decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError("a name is not UTF-8") from error


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


# Fields that are text: an entry's key and value, a tensor's name, a node's inputs,
# outputs and operator.
_TEXTS = {"entry": (1, 2), "tensor": (8,), "node": (1, 2, 4)}
# What keeps ids within bounds.
_BOUNDS = (["Clip"], ["Min"], ["Max"])
