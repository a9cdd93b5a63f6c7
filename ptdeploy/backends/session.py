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


class Session(Protocol):
    """A loaded engine."""

    @property
    def block_size(self) -> int:
        """Slots of a block of its KV cache, where that is paged; 0 where it is dense, or none."""
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
