"""Attention of an encoder traced as one operator of ONNX Runtime's.

Every token sees every other one but the padding, which the operator is told of by a mask of keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ptdeploy.program.tracing import own_attention, why_it_fails, why_not_all

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = "ptdeploy_mha"
# What a model passes to its attention without changing what the operator computes.
_HARMLESS = {"dropout", "position_ids", "use_cache", "is_causal", "output_attentions"}
# How many positions a rule of a mask is tried at.
_TRIED = 512


@dataclass
class _Trace:
    """The mask of keys of the trace in progress, int32 (batch, keys), and what was fused."""

    keys: torch.Tensor | None = None
    # Masks are tried before, not while exporting, when tensors have no values.
    tries: bool = False
    refused: str = ""
    layers: set[int] = field(default_factory=set)


_TRACE = _Trace()


def start(mask: torch.Tensor) -> None:
    """Make `mask`, int64 (batch, keys), 1 for what is seen, the one of the attention from here."""
    _TRACE.keys = mask.to(torch.int32)


@dataclass(frozen=True)
class _Mask:
    """What a model is given for an attention mask: the rule that it would be made by."""

    visible: Callable[..., torch.Tensor]

    @property
    def hides_nothing(self) -> bool:
        """Whether a token sees all others, as far as the rule decides."""
        one, tokens = torch.zeros((), dtype=torch.int64), torch.arange(_TRIED)
        try:
            return all(
                bool(self.visible(one, one, at, tokens).all()) for at in tokens[:: _TRIED - 1]
            )
        except (ValueError, RuntimeError, TypeError, IndexError):
            return False


def _mask(*_: Any, mask_function: Callable[..., torch.Tensor], **__: Any) -> _Mask:
    return _Mask(mask_function)


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | _Mask | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """From (batch, heads, tokens, head dim) to (batch, tokens, heads, head dim)."""
    unknown = sorted(k for k in options.keys() - _HARMLESS if isinstance(options[k], torch.Tensor))
    if unknown:
        _TRACE.refused = f"its attention takes {', '.join(unknown)}"
    if sliding_window:
        _TRACE.refused = "its attention has a window"
    if _TRACE.tries and attention_mask is not None:
        plain = isinstance(attention_mask, _Mask) and attention_mask.hides_nothing
        if not plain:
            _TRACE.refused = "its attention takes a mask of its own"
    if query.shape[1] != key.shape[1]:
        _TRACE.refused = "its heads share keys"
    _TRACE.layers.add(id(module))
    batch, heads, tokens, width = query.shape

    def flat(states: torch.Tensor) -> torch.Tensor:
        return states.transpose(1, 2).reshape(batch, states.shape[2], -1)

    output = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        (flat(query), flat(key), flat(value), None, _TRACE.keys),
        {
            "num_heads": heads,
            "scale": float(width**-0.5 if scaling is None else scaling),
            "mask_filter_value": torch.finfo(torch.float32).min,
        },
        dtype=query.dtype,
        shape=(batch, tokens, heads * width),
        version=1,
    )
    return output.view(batch, tokens, heads, width), None


def why_not_fused(model: PreTrainedModel, program: nn.Module, inputs: tuple[Any, ...]) -> str:
    """Why a program that calls `start` cannot be traced fused, or "" if all its layers can."""
    _TRACE.tries, _TRACE.refused = True, ""
    _TRACE.layers.clear()
    try:
        with fused(model):
            why = why_it_fails(program, inputs)
    finally:
        _TRACE.tries = False
    return why or _TRACE.refused or why_not_all(model, len(_TRACE.layers))


@contextmanager
def fused(model: PreTrainedModel) -> Iterator[None]:
    """Trace `model` with attention as one operator inside this block."""
    try:
        with own_attention(model, ATTENTION, _attention, _mask):
            yield
    finally:
        _TRACE.keys = None
