"""A bundle's or a pack's own tensors, opened for reading."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# The largest header that is written takes about 1 MB: a reference of 1000 rows and as many
# evaluation texts. A larger one would be parsed, and its parts kept, before anything else shows
# that the file is damaged.
MAX_HEADER_BYTES, MAX_AXES = 4 * 1024 * 1024, 8


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """A safetensors file as `safetensors.safe_open` gives it, its tensors as numpy arrays.

    Raises ValueError if its header is longer than MAX_HEADER_BYTES or a tensor has more than
    MAX_AXES axes, OSError or SafetensorError if it is no whole safetensors file.
    """
    from safetensors import safe_open

    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
    if size > MAX_HEADER_BYTES:
        raise ValueError(f"its header has {size} bytes; at most {MAX_HEADER_BYTES} are read")
    with safe_open(path, framework="np") as file:
        for name in file.keys():  # noqa: SIM118 - it is no dictionary
            axes = len(file.get_slice(name).get_shape())
            if axes > MAX_AXES:
                raise ValueError(f"{name} has {axes} axes; at most {MAX_AXES} are read")
        yield file
