"""What a backend opens: a session, and arrays in its device's memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class DeviceArray(Protocol):
    """Memory on the engine's device that it reads and writes where it lies."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its axes."""
        ...

    def rows(self, rows: slice) -> DeviceArray:
        """The same memory, seen as some of its first axis."""
        ...

    def read(self) -> NDArray[Any]:
        """What it holds: on a CPU the memory itself, elsewhere a copy."""
        ...

    def write(self, array: NDArray[Any]) -> None:
        """Replace what it holds. `array` has its shape and type."""
        ...

    def write_slots(self, lengths: NDArray[np.int64], tokens: Any) -> None:
        """Put new tokens behind each row's filled slots.

        `tokens` (rows, heads, new, width) was placed by the same session, and this memory is
        (rows, heads, slots, width), of which `lengths` (rows,) are filled.
        """
        ...


class PagedCache(Protocol):
    """How an engine keeps keys and values in blocks of slots, in a type of its own."""

    @property
    def block(self) -> int:
        """Slots of a block."""
        ...

    @property
    def changes_when_appended_to(self) -> bool:
        """Whether a block's tokens are stored anew with each that comes behind them."""
        ...

    def empty(self, is_key: bool, blocks: int, heads: int, width: int) -> NDArray[Any]:
        """Memory for the keys or the values of so many blocks. Raises MemoryError."""
        ...

    def bytes(self, blocks: int, heads: int, width: int) -> int:
        """What keys and values of so many blocks take, in bytes."""
        ...

    def write(
        self, cache: NDArray[Any], is_key: bool, blocks: Any, tokens: NDArray[np.float32]
    ) -> None:
        """Put tokens (heads, count, width), a block's at most, into the first slots of `blocks`.

        `cache` was made by `empty`, and `blocks` are an index into its first axis.
        """
        ...

    def read(self, found: NDArray[Any], is_key: bool) -> NDArray[np.float32]:
        """What some blocks of a cache hold, (..., heads, slots of a block, width)."""
        ...


class Session(Protocol):
    """A loaded engine."""

    @property
    def cache(self) -> PagedCache | None:
        """Its KV cache, where that is paged; None where it is dense, or there is none."""
        ...

    @property
    def in_host_memory(self) -> bool:
        """Whether placed memory is this process's own."""
        ...

    def run(self, inputs: Mapping[str, NDArray[Any] | DeviceArray]) -> dict[str, NDArray[Any]]:
        """Run once: arrays by input name in, arrays by output name out.

        What was placed by the same session is read where it lies.
        """
        ...

    def place(self, array: NDArray[Any]) -> DeviceArray:
        """Put an array on the engine's device; on a CPU it stays where it is."""
        ...

    def bind(
        self,
        inputs: Mapping[str, NDArray[Any] | DeviceArray],
        outputs: Mapping[str, NDArray[Any] | DeviceArray],
    ) -> Callable[[], None]:
        """A function that runs over these very arrays, which one name may share with another."""
        ...
