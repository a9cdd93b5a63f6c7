"""Causal decoders as traceable modules: one step over a KV buffer, or one class for a text."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ptdeploy.program.head import Head
from ptdeploy.program.lowering import SharedCache, start
from ptdeploy.program.past import filled_cache, next_to_text, prefix_of_rows
from ptdeploy.program.prompt import backbone
from ptdeploy.program.words import embed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Decoder(nn.Module):
    """A step over a KV buffer whose rows are filled from their first slot on.

    Takes `input_ids` (batch, sequence), `past_lengths` (batch,), `logits_positions` (kept,) and the
    buffer, keys and values by turns. Row i's tokens are numbered from past_lengths[i] on, as if the
    row were alone. With `vocabulary` the prompt is not frozen: a table of virtual tokens comes
    before the buffer, and they are fed like text, with ids from the end of the vocabulary on.
    """

    def __init__(self, model: PreTrainedModel, vocabulary: int | None) -> None:
        super().__init__()
        self.model, self.vocabulary = model, vocabulary

    def words(
        self, input_ids: torch.Tensor, rest: tuple[torch.Tensor, ...]
    ) -> tuple[dict[str, torch.Tensor], tuple[torch.Tensor, ...]]:
        """What the model is given for the ids, and what of the inputs is the buffer."""
        if self.vocabulary is None:
            return {"input_ids": input_ids}, rest
        table, *past = rest
        embeddings = self.model.get_input_embeddings()
        return {"inputs_embeds": embed(embeddings, self.vocabulary, input_ids, table)}, tuple(past)


class FusedDecoder(Decoder):
    """Attention updates the buffer in place: gives logits and the buffer itself as present KV.

    Where it `joins`, `token_offsets` (3, sequence) come last, and rows may come as one: of each
    token its place in its row, by which it is numbered, and how many of the first and of the last
    slots of the past are another row's.
    """

    def __init__(self, model: PreTrainedModel, vocabulary: int | None, joins: bool = False) -> None:
        super().__init__(model, vocabulary)
        self.joins = joins

    def forward(
        self,
        input_ids: torch.Tensor,
        past_lengths: torch.Tensor,
        logits_positions: torch.Tensor,
        *rest: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        offsets, rest = (rest[-1], rest[:-1]) if self.joins else (None, rest)
        words, past = self.words(input_ids, rest)
        if offsets is None:
            offsets = torch.arange(input_ids.shape[1])
        else:
            offsets = offsets[0] - offsets[1] - offsets[2]
        cache = SharedCache(past, past_lengths, offsets)
        start(cache)
        output = self.model(
            **words,
            position_ids=cache.positions,
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
        *rest: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        words, past = self.words(input_ids, rest)
        slots = past[0].shape[2]
        filled = (torch.arange(slots)[None] < past_lengths[:, None]).to(torch.int64)
        mask = torch.cat([filled, torch.ones_like(input_ids)], dim=1)
        logits, *present = step(self.model, words, mask, past, logits_to_keep=logits_positions)
        return (logits, *(tensor[:, :, slots:] for tensor in present))


class ClassifyingDecoder(nn.Module):
    """The decoder over each row's prefix KV, and the head at its last token, or at each token.

    Takes `input_ids` and `attention_mask`, int64 (batch, sequence), of the text; the prefix KV of
    all prompts, (prompts * layers * 2, kv heads, slots, head dim), of each layer by layer, keys
    before values; how many of its slots a row's own fills, (batch,); which prompt a row has,
    (batch,), and the head's parameters.
    """

    def __init__(
        self, model: PreTrainedModel, layers: int, head: Head, per_token: bool = False
    ) -> None:
        super().__init__()
        self.model = backbone(model)
        # Where that backbone is in the whole model, to name the graph's nodes.
        self.prefix = str(model.base_model_prefix)
        # transformers has two names for it; the graph's nodes keep the model's own.
        self.scorer = "score" if hasattr(model, "score") else "classifier"
        self.add_module(self.scorer, getattr(model, self.scorer))
        self.layers, self.head, self.per_token = layers, head, per_token

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        prefix_kv: torch.Tensor,
        prefix_lengths: torch.Tensor,
        prompt_index: torch.Tensor,
        *head: torch.Tensor,
    ) -> torch.Tensor:
        self.head.start(prompt_index, head)
        own = prefix_of_rows(prefix_kv, prompt_index, self.layers)
        past, filled = next_to_text(own, prefix_lengths)
        mask = torch.cat([filled.to(attention_mask.dtype), attention_mask], dim=1)
        hidden = step(self.model, {"input_ids": input_ids}, mask, past)[0]
        if not self.per_token:
            last = (attention_mask.sum(1) - 1).clamp(min=0)
            hidden = hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[-1]))[:, 0]
        logits: torch.Tensor = self.get_submodule(self.scorer)(hidden)
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
    cache = filled_cache(past)
    new = next(iter(words.values())).shape[1]
    if "position_ids" in inspect.signature(model.forward).parameters:
        options["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -new:]
    output = model(**words, attention_mask=mask, past_key_values=cache, use_cache=True, **options)
    present = [t for layer in output.past_key_values.layers for t in (layer.keys, layer.values)]
    return (output[0], *present)
