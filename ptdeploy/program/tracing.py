"""An attention of ours in the place of a model's own, while it is tried and traced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ptdeploy.memory import ran_out_of_memory
from ptdeploy.source.base import quiet_libraries

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def own_attention(
    model: PreTrainedModel, name: str, attention: Callable[..., Any], mask: Callable[..., Any]
) -> Iterator[None]:
    """Have `model` compute attention, and make its masks, by these functions inside this block."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(name, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, mask)
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def why_it_fails(program: nn.Module, inputs: tuple[Any, ...]) -> str:
    """Why a program does not run with another attention than its model's own, "" if it does."""
    with torch.no_grad(), quiet_libraries():
        try:
            program(*inputs)
        except Exception as error:  # transformers' own code, on an attention it does not know
            if ran_out_of_memory(error):
                raise
            return "its code does not take another attention"
    return ""


def why_not_all(model: PreTrainedModel, layers: int) -> str:
    """Why attention that so many layers computed is not the whole model's, "" if it is."""
    missing = int(model.config.get_text_config().num_hidden_layers) - layers
    return f"{missing} of its layers compute attention their own way" if missing else ""
