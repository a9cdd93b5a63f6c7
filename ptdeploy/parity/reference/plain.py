"""The reference where PEFT has no loader: transformers' own model, given the prompt by hand.

No program, graph or pass of ours is in it either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ptdeploy.source.checkpoint import Checkpoint
from ptdeploy.source.glm import placed_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.cache_utils import DynamicCache


class PromptedModel(nn.Module):
    """A base model with one prompt before every row, or none, called as PEFT's model is.

    Virtual tokens go in before the text's embeddings, in segment 0; a prefix KV as past keys and
    values. Positions are left to the model.
    """

    def __init__(self, base: PreTrainedModel, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.base = base
        prompt, self.is_prefix = checkpoint.virtual_tokens, checkpoint.prefix_kv is not None
        if checkpoint.prefix_kv is not None:
            prompt = placed_prefix(checkpoint, base)
        self.prompt = None if prompt is None else torch.from_numpy(prompt.copy())
        self.tokens = checkpoint.num_virtual_tokens

    def get_base_model(self) -> PreTrainedModel:
        """The model without its prompt."""
        return self.base

    def get_prompt(self, batch_size: int) -> torch.Tensor | DynamicCache:
        """Virtual tokens, (batch, tokens, width), or a cache that holds the prefix KV."""
        assert self.prompt is not None, "the caller has one"
        if not self.is_prefix:
            return self.prompt[None].expand(batch_size, -1, -1)
        from transformers.cache_utils import DynamicCache

        cache = DynamicCache()
        for layer, part in enumerate(self.prompt):
            keys, values = (one[None].expand(batch_size, -1, -1, -1) for one in part)
            cache.update(keys.contiguous(), values.contiguous(), layer)
        return cache

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> Any:
        """What transformers' model gives, virtual tokens' own logits included."""
        if self.prompt is None:
            return self.base(input_ids=input_ids, attention_mask=attention_mask)
        rows = input_ids.shape[0]
        mask = torch.cat([attention_mask.new_ones(rows, self.tokens), attention_mask], dim=1)
        prompt, types = self.get_prompt(rows), {}
        if token_type_ids is not None:
            types["token_type_ids"] = token_type_ids
        if self.is_prefix:
            return self.base(
                input_ids=input_ids, attention_mask=mask, past_key_values=prompt, **types
            )
        if token_type_ids is not None:
            none = token_type_ids.new_zeros(rows, self.tokens)
            types["token_type_ids"] = torch.cat([none, token_type_ids], dim=1)
        embeds = torch.cat([prompt, self.base.get_input_embeddings()(input_ids)], dim=1)
        return self.base(inputs_embeds=embeds, attention_mask=mask, **types)

    def continued(self, ids: torch.Tensor, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The likeliest tokens after one row, (1, tokens), and their scores, (steps, vocabulary).

        Each step runs the whole row: there is no cache to be wrong.
        """
        scores = []
        for _ in range(steps):
            scores.append(self(ids, torch.ones_like(ids)).logits[0, -1].float())
            ids = torch.cat([ids, scores[-1].argmax()[None, None]], dim=1)
        return ids[0, -steps:], torch.stack(scores)
