"""Causal decoders as traceable modules: one step over a KV buffer, or one class for a text."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ptdeploy.program.lowering import SharedCache, start
from ptdeploy.program.prompt import Prompt, backbone

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Decoder(nn.Module):
    """A step over a KV buffer whose rows are filled from their first slot on.

    Takes `input_ids` (batch, sequence), `past_lengths` (batch,), `logits_positions` (kept,) and the
    buffer, keys and values by turns. Row i's tokens are numbered from past_lengths[i] on, as if the
    row were alone. With `virtual_tokens` the prompt is not frozen: its tokens are then fed like
    text, with ids from the end of the vocabulary on.
    """

    virtual_tokens: torch.Tensor | None

    def __init__(self, model: PreTrainedModel, prompt: Prompt | None) -> None:
        super().__init__()
        self.model = model
        tokens = None if prompt is None else torch.from_numpy(prompt.virtual_tokens)
        self.register_buffer("virtual_tokens", tokens)

    def words(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the model is given for the ids."""
        if self.virtual_tokens is None:
            return {"input_ids": input_ids}
        embeddings = self.model.get_input_embeddings()
        size = embeddings.weight.shape[0]
        text = embeddings(input_ids.clamp(max=size - 1))
        virtual = self.virtual_tokens[(input_ids - size).clamp(min=0)]
        return {"inputs_embeds": torch.where((input_ids < size)[..., None], text, virtual)}


class FusedDecoder(Decoder):
    """Attention updates the buffer in place: gives logits and the buffer itself as present KV."""

    def forward(
        self,
        input_ids: torch.Tensor,
        past_lengths: torch.Tensor,
        logits_positions: torch.Tensor,
        *past: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        new = input_ids.shape[1]
        cache = SharedCache(past, past_lengths, new)
        start(cache)
        output = self.model(
            **self.words(input_ids),
            position_ids=past_lengths[:, None] + torch.arange(new)[None],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=logits_positions,
        )
        layers = range(len(past) // 2)
        return (output.logits, *(tensor for i in layers for tensor in cache.present[i]))


class PlainDecoder(Decoder):
    """Standard operators only: gives logits and the new tokens' keys and values.

    The caller writes those into the buffer. New tokens follow the whole buffer, its free slots
    masked; the model numbers what is not masked.
    """

    def forward(
        self,
        input_ids: torch.Tensor,
        past_lengths: torch.Tensor,
        logits_positions: torch.Tensor,
        *past: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        slots = past[0].shape[2]
        filled = (torch.arange(slots)[None] < past_lengths[:, None]).to(torch.int64)
        mask = torch.cat([filled, torch.ones_like(input_ids)], dim=1)
        logits, *present = step(
            self.model, self.words(input_ids), mask, past, logits_to_keep=logits_positions
        )
        return (logits, *(tensor[:, :, slots:] for tensor in present))


class ClassifyingDecoder(nn.Module):
    """The decoder with the prefix KV as a constant, and the head at each row's last token."""

    prefix_kv: torch.Tensor

    def __init__(self, model: PreTrainedModel, prompt: Prompt) -> None:
        super().__init__()
        assert prompt.prefix_kv is not None
        self.model = backbone(model)
        # Where that backbone is in the whole model, to name the graph's nodes.
        self.prefix = str(model.base_model_prefix)
        self.score = model.score
        self.register_buffer("prefix_kv", torch.from_numpy(prompt.prefix_kv))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        rows = input_ids.shape[0]
        layers, _, _, n, _ = self.prefix_kv.shape
        past = tuple(
            self.prefix_kv[layer, part][None].expand(rows, -1, -1, -1)
            for layer in range(layers)
            for part in (0, 1)
        )
        mask = torch.cat([attention_mask.new_ones(rows, n), attention_mask], dim=1)
        hidden = step(self.model, {"input_ids": input_ids}, mask, past)[0]
        last = (attention_mask.sum(1) - 1).clamp(min=0)
        pooled = hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[-1]))[:, 0]
        logits: torch.Tensor = self.score(pooled)
        return logits


def step(
    model: nn.Module,
    words: dict[str, torch.Tensor],
    mask: torch.Tensor,
    past: tuple[torch.Tensor, ...],
    **options: Any,
) -> tuple[torch.Tensor, ...]:
    """Run a decoder over past keys and values, numbering positions by what is not masked.

    Position i of a row is the number of its unmasked tokens before it, so that padding anywhere in
    the row, and rows of unequal length, change nothing (PEFT numbers padding too; see the docs).
    Gives the model's first output and its cache, keys and values by turns.
    """
    from transformers.cache_utils import DynamicCache

    cache = DynamicCache()
    for layer in range(len(past) // 2):
        cache.update(past[2 * layer], past[2 * layer + 1], layer)
    new = next(iter(words.values())).shape[1]
    if "position_ids" in inspect.signature(model.forward).parameters:
        options["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -new:]
    output = model(**words, attention_mask=mask, past_key_values=cache, use_cache=True, **options)
    present = [t for layer in output.past_key_values.layers for t in (layer.keys, layer.values)]
    return (output[0], *present)
