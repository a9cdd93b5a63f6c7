"""bfloat16, which numpy does not have: kept as its bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def stored(dtype: str) -> np.dtype[Any]:
    """The numpy type that holds values of a signature's element type."""
    return np.dtype(np.uint16 if dtype == "bfloat16" else dtype)


def from_stored(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bfloat16 values as float32, which has every one of them."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_stored(array: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """float32 values as a signature's element type stores them, rounded to nearest even."""
    if dtype != "bfloat16":
        return array.astype(dtype)
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    # The sum would carry a NaN over into an infinity.
    return np.where(np.isnan(array), np.uint16(0x7FC0), rounded)
