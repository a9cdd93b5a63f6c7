"""A model while it is tried and traced: with an attention of ours, and as it was before."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ptdeploy.errors import BaseModelError
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


@contextmanager
def unchanged(model: PreTrainedModel) -> Iterator[None]:
    """Raises BaseModelError behind this block if what `model` ran in it changed its settings.

    BigBird gives up its sparse attention for good once it has seen a short text.
    """
    before = _settings(model)
    yield
    after = _settings(model)
    for (path, name), value in before.items():
        now = after.get((path, name), value)
        if now == value:
            continue
        fix = "Only the architectures in the README's support table are tested."
        if getattr(model.config, name, None) == value:
            fix = (
                f"If it was trained on such texts alone, say {name}: {json.dumps(now)} in the "
                f"config.json of the base."
            )
        raise BaseModelError(
            f"{model.config.model_type}: its code sets {name} of {path} from {value!r} to {now!r} "
            "as it runs on a short text, and stays so: what it gives depends on what it ran on "
            "before.",
            fix,
        )


def _settings(model: PreTrainedModel) -> dict[tuple[str, str], object]:
    """All that modules and the configuration hold beside tensors and other modules."""
    holders: dict[str, object] = {path or "the model": one for path, one in model.named_modules()}
    holders["its configuration"] = model.config
    return {
        (path, name): value
        for path, holder in holders.items()
        for name, value in vars(holder).items()
        if isinstance(value, (str, bool, int, float))
    }


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
