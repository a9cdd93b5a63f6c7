"""A bundle's or a pack's own tensors, opened for reading."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

# The largest header that is written takes about 1 MB: a reference of 1000 rows and as many
# evaluation texts. A larger one would be parsed, and its parts kept, before anything else shows
# that the file is damaged.
MAX_HEADER_BYTES, MAX_AXES = 4 * 1024 * 1024, 8


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """A safetensors file as `safetensors.safe_open` gives it, its tensors as numpy arrays.

    Raises ValueError if its header is longer than MAX_HEADER_BYTES, names anything twice or holds
    what the format has not, or a tensor has more than MAX_AXES axes, OSError or SafetensorError if
    it is no whole safetensors file.
    """
    from safetensors import safe_open

    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if size > MAX_HEADER_BYTES:
            raise ValueError(f"its header has {size} bytes; at most {MAX_HEADER_BYTES} are read")
        header = stream.read(size)
    with safe_open(path, framework="np") as file:
        _check_header(header)
        for name in file.keys():  # noqa: SIM118 - it is no dictionary
            axes = len(file.get_slice(name).get_shape())
            if axes > MAX_AXES:
                raise ValueError(f"{name} has {axes} axes; at most {MAX_AXES} are read")
        yield file


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    dtype: str
    shape: list[int]
    data_offsets: list[int]


def _check_header(header: bytes) -> None:
    """What safetensors' own library takes, and readers may take one way or another."""
    for name, value in json.loads(header, object_pairs_hook=_once).items():
        try:
            msgspec.convert(value, dict[str, str] if name == "__metadata__" else _Entry)
        except msgspec.ValidationError as error:
            raise ValueError(str(error)) from error


def _once(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in members:
        if name in found:
            raise ValueError(f"its header names {name!r} twice")
        found[name] = value
    return found
