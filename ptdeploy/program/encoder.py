"""Encoders as traceable modules."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from ptdeploy.program.prompt import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Encoder(nn.Module):
    """Virtual tokens before the text, as PEFT's forward puts them there.

    Positions are left to the model, which numbers virtual tokens and text from the start, as in
    training; so rows must be padded on the right.
    """

    virtual_tokens: torch.Tensor

    def __init__(self, model: PreTrainedModel, prompt: Prompt, per_token: bool) -> None:
        super().__init__()
        self.model = model
        self.per_token = per_token
        self.register_buffer("virtual_tokens", torch.from_numpy(prompt.virtual_tokens)[None])

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        rows, n = input_ids.shape[0], self.virtual_tokens.shape[1]
        text = self.model.get_input_embeddings()(input_ids)
        embeds = torch.cat([self.virtual_tokens.expand(rows, -1, -1), text], dim=1)
        mask = torch.cat([attention_mask.new_ones(rows, n), attention_mask], dim=1)
        types = {}
        if token_type_ids is not None:
            zeros = token_type_ids.new_zeros(rows, n)
            types["token_type_ids"] = torch.cat([zeros, token_type_ids], dim=1)
        logits: torch.Tensor = self.model(inputs_embeds=embeds, attention_mask=mask, **types).logits
        return logits[:, n:] if self.per_token else logits
