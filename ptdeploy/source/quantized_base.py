"""Base models stored in fewer bits: which method, and whether torch alone can undo it."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptdeploy.errors import BaseModelError
from ptdeploy.source.checkpoint.tensors import read_json, read_tensors

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

# Methods whose weights transformers itself turns back, with no package but torch.
_BY_TRANSFORMERS = ("fp8", "mxfp8", "mxfp4")
# And those that are turned back here.
_BITSANDBYTES = ("bitsandbytes_4bit", "bitsandbytes_8bit")

# Where configurations say it.
_FIELDS = ("quantization_config", "compression_config")
# What quantized layers keep beside their weights, by the end of the name.
_LEFTOVERS = frozenset(
    {
        *("absmax", "quant_map", "nested_absmax", "nested_quant_map", "SCB", "weight_format"),
        *("qweight", "qzeros", "scales", "g_idx", "weight_scale", "weight_scale_inv"),
        *("weight_packed", "weight_shape", "weight_zero_point", "input_scale", "bitsandbytes__nf4"),
        *("bitsandbytes__fp4",),
    }
)


def is_quantization(name: str) -> bool:
    """Whether a tensor of that name says how others are to be read."""
    return name.rpartition(".")[2] in _LEFTOVERS


def stored_method(config: PretrainedConfig) -> str | None:
    """The name of the method that the base model's weights were quantized with, or None."""
    stored = _settings(config)
    if stored is None:
        return None
    for method in _BITSANDBYTES:
        if stored.get(f"load_in_{method[-4:]}"):
            return method
    return str(stored.get("quant_method") or "an unnamed method")


def check_quantization(config: PretrainedConfig, name: str) -> str | None:
    """A note where the base model's weights are dequantized on loading, None for plain weights.

    Raises BaseModelError with the method's name where torch alone cannot dequantize them.
    """
    method = stored_method(config)
    if method is None:
        return None
    if method not in (*_BY_TRANSFORMERS, *_BITSANDBYTES):
        raise BaseModelError(
            f"{name}: the base model's weights are stored quantized, by {method}, which PyTorch "
            "alone cannot undo.",
            "Pass the same model in full precision, the one that was quantized, with --base.",
        )
    return (
        f"the base model's weights are stored in {method}; they were dequantized, and the engine "
        "and its reference both use the dequantized ones"
    )


def dequantized(config: PretrainedConfig) -> PretrainedConfig:
    """A copy of the configuration that tells transformers to dequantize, where it is to do so."""
    stored = _settings(config)
    if stored is None:
        return config
    config = copy.deepcopy(config)
    for place in (config, config.get_text_config()):
        for field in _FIELDS:
            if hasattr(place, field):
                delattr(place, field)
    if stored.get("quant_method") in _BY_TRANSFORMERS:
        config.quantization_config = {**stored, "dequantize": True}
    return config


def is_bitsandbytes(config: PretrainedConfig) -> bool:
    """Whether the weights are bitsandbytes', which `read_bitsandbytes` turns back."""
    return stored_method(config) in _BITSANDBYTES


def read_bitsandbytes(
    name: str, revision: str | None, model: PreTrainedModel
) -> dict[str, torch.Tensor]:
    """The tensors of a base model that bitsandbytes quantized to 4 or 8 bits, dequantized.

    Weights of 4 bits get the element type that bitsandbytes would compute with; those of 8 bits are
    float32. `model` only says which layers keep their weights transposed.
    Raises PtdeployError, OSError, KeyError, ValueError or RuntimeError if the files are broken.
    Source: bitsandbytes' QuantState.from_dict and its dequantize functions.
    """
    from transformers.pytorch_utils import Conv1D

    tensors = read_tensors(_weights_file(name, revision))
    # bitsandbytes makes linear layers of them.
    transposed = {
        path.rpartition(".")[2]
        for path, module in model.named_modules()
        if isinstance(module, Conv1D)
    }
    found = {}
    for key, tensor in tensors.items():
        if is_quantization(key):
            continue
        layer = key.removesuffix(".weight")
        if f"{key}.absmax" in tensors:
            value = _from_4_bits(tensors, key)
        elif f"{layer}.SCB" in tensors and key != layer:
            value = tensor.float() * tensors[f"{layer}.SCB"].float()[:, None] * (1 / 127)
        else:
            found[key] = tensor
            continue
        found[key] = value.T if layer.rpartition(".")[2] in transposed else value
    return found


def _from_4_bits(tensors: Mapping[str, torch.Tensor], key: str) -> torch.Tensor:
    """One weight: two codes a byte, the first in the high half, scaled block by block."""
    import torch

    state_key = next(k for k in tensors if k.startswith(f"{key}.quant_state.bitsandbytes__"))
    state = json.loads(tensors[state_key].numpy().tobytes())
    scales = tensors[f"{key}.absmax"]
    if f"{key}.nested_absmax" in tensors:
        codes = tensors[f"{key}.nested_quant_map"].float()[scales.long()]
        coarse = tensors[f"{key}.nested_absmax"].float()
        coarse = coarse.repeat_interleave(int(state["nested_blocksize"]))[: codes.numel()]
        scales = codes * coarse + float(state["nested_offset"])
    packed = tensors[key].flatten().view(torch.uint8).long()
    codes = torch.stack([packed >> 4, packed & 15], dim=-1).flatten()
    shape = [int(size) for size in state["shape"]]
    values = tensors[f"{key}.quant_map"].float()[codes[: math.prod(shape)]]
    scales = scales.float().repeat_interleave(int(state["blocksize"]))[: values.numel()]
    dtype = getattr(torch, str(state["dtype"]))
    return (values * scales).to(dtype).reshape(shape)


def _weights_file(name: str, revision: str | None) -> Path:
    """A base model's safetensors file or index, with the shards that it names beside it."""
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

    whole = cached_file(
        name, SAFE_WEIGHTS_NAME, revision=revision, _raise_exceptions_for_missing_entries=False
    )
    if whole is not None:
        return Path(whole)
    index = Path(cached_file(name, SAFE_WEIGHTS_INDEX_NAME, revision=revision))
    for shard in sorted(set(read_json(index)["weight_map"].values())):
        cached_file(name, shard, revision=revision)
    return index


def _settings(config: PretrainedConfig) -> Mapping[str, Any] | None:
    for place in (config, config.get_text_config()):
        for field in _FIELDS:
            stored = getattr(place, field, None)
            if stored is not None:
                return stored if isinstance(stored, Mapping) else {}
    return None
