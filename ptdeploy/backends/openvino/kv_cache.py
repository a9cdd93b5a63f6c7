"""The blocks of OpenVINO's KV cache on a CPU, in each type that it keeps keys and values in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptdeploy.backends.openvino.engine_file import KVPrecision
from ptdeploy.bfloat16 import from_stored, stored, to_stored

# Slots of a block, which OpenVINO's CPU plugin has no other number of.
BLOCK = 32
_TYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "u8": "uint8"}
# The bytes of a float32 scale and a float32 zero point.
_PARAMETERS = 8
_STEPS = 255


@dataclass(frozen=True)
class BlockCache:
    """Blocks (heads, slots, width) in `precision`.

    In u8 a value is (code - zero point) * scale. Keys have a scale and a zero point for each
    channel of a block, both before its codes; values for each token, before that one's codes.
    Source: OpenVINO's CPU plugin, attn_quant.cpp; held against its own caches by a test.
    """

    precision: KVPrecision = "f32"
    block: int = BLOCK

    @property
    def dtype(self) -> str:
        """The element type of its arrays."""
        return _TYPES[self.precision]

    @property
    def changes_when_appended_to(self) -> bool:
        """The scales of its keys are for all tokens of a block together."""
        return self.precision == "u8"

    def empty(self, is_key: bool, blocks: int, heads: int, width: int) -> NDArray[Any]:
        """Memory for so many blocks. Raises MemoryError."""
        slots, size = self.block, width
        if self.precision == "u8":
            slots, size = (slots + _PARAMETERS, size) if is_key else (slots, size + _PARAMETERS)
        return np.zeros((blocks, heads, slots, size), stored(self.dtype))

    def bytes(self, blocks: int, heads: int, width: int) -> int:
        """What keys and values of so many blocks take, in bytes."""
        each = stored(self.dtype).itemsize * width * self.block
        if self.precision == "u8":
            each += _PARAMETERS * (width + self.block) // 2
        return 2 * blocks * heads * each

    def write(
        self, cache: NDArray[Any], is_key: bool, blocks: Any, tokens: NDArray[np.float32]
    ) -> None:
        """Put tokens (heads, count, width), a block's at most, into the first slots of `blocks`."""
        count, width = tokens.shape[1:]
        if self.precision != "u8":
            cache[blocks, :, :count] = to_stored(tokens, self.dtype)
            return
        scales, zeros, codes = _quantized(tokens, axis=1 if is_key else 2)
        if not is_key:
            parameters = np.concatenate([scales, zeros], axis=2)
            cache[blocks, :, :count] = np.concatenate([_as_bytes(parameters), codes], axis=2)
            return
        parameters = np.concatenate([scales, zeros], axis=1)
        cache[blocks, :, :_PARAMETERS] = _as_bytes(parameters).reshape(-1, _PARAMETERS, width)
        cache[blocks, :, _PARAMETERS : _PARAMETERS + count] = codes

    def read(self, found: NDArray[Any], is_key: bool) -> NDArray[np.float32]:
        """Some blocks' keys or values as (..., heads, slots, width)."""
        if self.precision == "bf16":
            return from_stored(found)
        if self.precision != "u8":
            return found.astype(np.float32)
        if is_key:
            parameters, codes = np.split(found, [_PARAMETERS], axis=-2)
            flat = np.ascontiguousarray(parameters).reshape(*found.shape[:-2], -1)
            numbers = flat.view(np.float32).reshape(*found.shape[:-2], 2, -1)
            scales, zeros = np.split(numbers, 2, axis=-2)
        else:
            parameters, codes = np.split(found, [_PARAMETERS], axis=-1)
            numbers = np.ascontiguousarray(parameters).view(np.float32)
            scales, zeros = np.split(numbers, 2, axis=-1)
        return (codes.astype(np.float32) - zeros) * scales


def _quantized(
    tokens: NDArray[np.float32], axis: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8]]:
    """Scales, zero points and codes, from the least and the largest value along an axis."""
    low, high = tokens.min(axis, keepdims=True), tokens.max(axis, keepdims=True)
    scales = ((high - low) / _STEPS).astype(np.float32)
    # What does not vary is its own zero point.
    scales[scales == 0] = 1
    zeros = (-low / scales).astype(np.float32)
    codes = np.clip(np.rint(tokens / scales + zeros), 0, _STEPS).astype(np.uint8)
    return scales, zeros, codes


def _as_bytes(numbers: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(numbers).view(np.uint8)
