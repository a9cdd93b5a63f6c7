"""Base models stored in fewer bits: which method, and whether torch alone can undo it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ptdeploy.errors import BaseModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Methods whose weights transformers itself turns back, with no package but torch.
_UNDONE = ("fp8", "mxfp8", "mxfp4")

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
    for bits in ("4bit", "8bit"):
        if stored.get(f"load_in_{bits}"):
            return f"bitsandbytes_{bits}"
    return str(stored.get("quant_method") or "an unnamed method")


def check_quantization(config: PretrainedConfig, name: str) -> str | None:
    """A note where the base model's weights are dequantized on loading, None for plain weights.

    Raises BaseModelError with the method's name where torch alone cannot dequantize them.
    """
    method = stored_method(config)
    if method is None:
        return None
    if method not in _UNDONE:
        raise BaseModelError(
            f"{name}: the base model's weights are stored quantized, by {method}, which PyTorch "
            "alone cannot undo.",
            "Pass the same model in full precision with --base: the one that was quantized, or "
            "this one after model.dequantize() and save_pretrained.",
        )
    return (
        f"the base model's weights are stored in {method}; they were dequantized, and the engine "
        "and its reference both use the dequantized ones"
    )


def dequantized(config: PretrainedConfig) -> PretrainedConfig:
    """A copy of the configuration that tells transformers to dequantize on loading."""
    import copy

    stored = _settings(config)
    if stored is None:
        return config
    config = copy.deepcopy(config)
    config.quantization_config = {**stored, "dequantize": True}
    return config


def _settings(config: PretrainedConfig) -> Mapping[str, Any] | None:
    for place in (config, config.get_text_config()):
        stored = getattr(place, "quantization_config", None)
        if stored is not None:
            return stored if isinstance(stored, Mapping) else dict(stored.to_dict())
    return None
