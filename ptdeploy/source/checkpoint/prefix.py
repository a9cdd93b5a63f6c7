"""Prefix tuning and cartridges as PEFT stores them: keys and values of all layers side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptdeploy.errors import CheckpointError
from ptdeploy.source.checkpoint.peft_config import TWO_TRAININGS, PeftConfig


def prefix_kv(where: Path, stored: NDArray[np.float32], config: PeftConfig) -> NDArray[np.float32]:
    """The prefix KV, shape (layers, 2, kv heads, num_virtual_tokens, head dim), float32.

    `stored` is (num_virtual_tokens, layers * 2 * token_dim), a projection already evaluated. With
    grouped queries the config's `num_attention_heads` counts the heads of keys and values, and its
    `token_dim` is their width together.
    Raises CheckpointError if the config lacks a size, or they do not make up the stored width.
    Source: PEFT's PeftModel.get_prompt, peft/peft_model.py (Li and Liang 2021, "Prefix-Tuning").
    """
    sizes = {
        "num_layers": config.prefix_layers,
        "num_attention_heads": config.prefix_heads,
        "token_dim": config.token_dim,
    }
    missing = [name for name, size in sizes.items() if size is None]
    if missing:
        raise CheckpointError(
            f"{where}: the config of a {config.kind} prompt lacks {', '.join(missing)}.",
            "PEFT writes them when it saves a trained adapter: save it again with PEFT.",
        )
    layers, heads, width = (int(size or 0) for size in sizes.values())
    tokens = config.num_virtual_tokens
    if stored.ndim != 2 or stored.shape[0] != tokens:
        raise CheckpointError(
            f"{where}: prompt_embeddings has shape {stored.shape}, but the config says "
            f"num_virtual_tokens = {tokens}.",
            TWO_TRAININGS,
        )
    if width % heads or stored.shape[1] != layers * 2 * width:
        raise CheckpointError(
            f"{where}: prompt_embeddings has {stored.shape[1]} columns, which are no keys and "
            f"values of {layers} layers with {heads} heads and {width} numbers in each.",
            TWO_TRAININGS,
        )
    by_layer = stored.reshape(tokens, layers, 2, heads, width // heads)
    return np.ascontiguousarray(by_layer.transpose(1, 2, 3, 0, 4))


def side_by_side(prefix: NDArray[np.float32]) -> NDArray[np.float32]:
    """A prefix KV as PEFT stores it, (num_virtual_tokens, layers * 2 * token_dim)."""
    return prefix.transpose(3, 0, 1, 2, 4).reshape(prefix.shape[3], -1)
