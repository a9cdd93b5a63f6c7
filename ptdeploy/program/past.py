"""Keys and values that come before a text, as a cache that transformers' models take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers.cache_utils import DynamicCache


def prefix_of_rows(
    prefix_kv: torch.Tensor, rows: torch.Tensor, layers: int
) -> tuple[torch.Tensor, ...]:
    """Each row's own prefix KV: keys and values by turns, each (batch, heads, slots, head dim).

    `prefix_kv` is (prompts * layers * 2, heads, slots, head dim), `rows` the prompt of each row.
    """
    first = rows * (2 * layers)
    return tuple(prefix_kv[first + part] for part in range(2 * layers))


def next_to_text(
    past: Sequence[torch.Tensor], lengths: torch.Tensor
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Prefixes, each filled from its first slot on, with their free slots in front instead.

    `past` is as `prefix_of_rows` gives it, `lengths`, (batch,), how many slots each row fills.
    Gives which slots are then filled, (batch, slots), too. Where a model counts slots, as for a
    sliding window, a row's prefix is then as far before its text as if the row were alone.
    """
    slots = past[0].shape[2]
    taken = torch.arange(slots)[None] - (slots - lengths)[:, None]
    places = taken.clamp(min=0)[:, None, :, None]
    return tuple(one.gather(2, places.expand(one.shape)) for one in past), taken >= 0


def filled_cache(past: Sequence[torch.Tensor]) -> DynamicCache:
    """A cache that holds keys and values, given by turns."""
    from transformers.cache_utils import DynamicCache

    # One that knows the model's configuration would forget what a sliding window has left.
    cache = DynamicCache()
    for layer in range(len(past) // 2):
        cache.update(past[2 * layer], past[2 * layer + 1], layer)
    return cache
