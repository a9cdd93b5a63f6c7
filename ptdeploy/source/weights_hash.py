"""Which weights an engine was made from: a hash of all but those that belong to prompts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch

from ptdeploy.source.buffers import is_computed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def weights_sha256(model: PreTrainedModel, without: Collection[str]) -> str:
    """SHA-256 of a model's parameters and stored buffers, but for those named in `without`.

    Of lines of each one's name, type, shape and SHA-256, by name. Left out is what transformers
    reckons from the configuration, which it stores in some versions and not in others. Tied
    weights are hashed once, under each of their names.
    """
    kept = {
        name: tensor.detach()
        for name, tensor in model.state_dict().items()
        if name not in without and not is_computed(name, tuple(tensor.shape))
    }
    distinct = {_place(tensor): tensor for tensor in kept.values()}
    # hashlib lets other threads run meanwhile.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        digests = dict(zip(distinct, pool.map(_sha256, distinct.values()), strict=True))
    lines = (
        f"{name} {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)} "
        f"{digests[_place(tensor)]}\n"
        for name, tensor in sorted(kept.items())
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _place(tensor: torch.Tensor) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def _sha256(tensor: torch.Tensor) -> str:
    return hashlib.sha256(
        tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
    ).hexdigest()
