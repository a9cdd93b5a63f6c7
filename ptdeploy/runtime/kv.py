"""The KV buffer: what holds the keys and values of a few rows that are written together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ptdeploy.backends.session import DeviceArray

# A row's prefix KV, float32 (layers, 2, kv heads, virtual tokens, head dim); None for none.
Prefix = NDArray[np.float32] | None


def prefix_length(prefix: Prefix) -> int:
    """How many slots it fills."""
    return 0 if prefix is None else int(prefix.shape[3])


class KVBuffer(Protocol):
    """Keys and values of a few rows, each with room for `slots` tokens.

    Row i's first `lengths[i]` slots are filled: `starts[i]` of its prefix, then its text. It is
    dense (`dense_kv.py`) where a row's slots lie together, or paged (`paged_kv.py`).
    """

    slots: int
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    @property
    def rows(self) -> int: ...

    @property
    def is_sound(self) -> bool:
        """Whether nothing it was filled with overflowed, so that another request may have it."""
        ...

    def reset(self) -> None:
        """Forget all but each row's prefix, which stays where it is."""
        ...

    def begin(self, prefixes: Sequence[Prefix], beside: Mapping[str, DeviceArray]) -> bool:
        """Forget all, and let each row begin with its own prefix; False where they do not fit.

        `beside` are inputs that are the same in every step, by name.
        """
        ...

    def prefill(
        self, row: int, ids: NDArray[np.int64], into: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Append tokens to a row; gives logits (kept, vocabulary) of the last one, or of each
        where they are to be written `into` an array, (tokens, vocabulary).
        """
        ...

    def prefill_all(
        self, ids: Sequence[NDArray[np.int64]], into: Sequence[NDArray[np.float32]] | None = None
    ) -> list[NDArray[np.float32]]:
        """Append to every row its tokens, to rows that hold their prefix alone; gives of each row
        the logits as `prefill` does.
        """
        ...

    def decode(self, tokens: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """Append one token to every row; gives logits (rows, vocabulary), overwritten next time."""
        ...

    def feed(self, ids: NDArray[np.int64], every_position: bool) -> dict[str, NDArray[Any]]:
        """What the graph would be given for tokens (rows, new), as arrays by input name."""
        ...

    def copy_row(self, row: int, source: Any, source_row: int, first_slot: int = 0) -> None:
        """Make `row` what another such buffer's row is, from `first_slot` on."""
        ...
