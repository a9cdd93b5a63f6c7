"""Encoders as traceable modules."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from ptdeploy.program.head import Head
from ptdeploy.program.words import embed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Encoder(nn.Module):
    """Virtual tokens before the text, as PEFT's forward puts them there; its caller gives both.

    Positions are left to the model, which numbers virtual tokens and text from the start, as in
    training; so rows must be padded on the right. Takes `input_ids` and `attention_mask`, int64
    (batch, sequence), then `token_type_ids` where the model tells segments apart, the table of
    virtual tokens, and where it has a trained head `prompt_index` and its parameters.
    """

    def __init__(
        self, model: PreTrainedModel, vocabulary: int, takes_segments: bool, head: Head
    ) -> None:
        super().__init__()
        self.model, self.vocabulary, self.takes_segments = model, vocabulary, takes_segments
        self.head = head

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *rest: torch.Tensor
    ) -> torch.Tensor:
        types = {"token_type_ids": rest[0]} if self.takes_segments else {}
        table, *head = rest[len(types) :]
        self.head.start(head[0] if head else None, head[1:])
        embeds = embed(self.model.get_input_embeddings(), self.vocabulary, input_ids, table)
        logits: torch.Tensor = self.model(
            inputs_embeds=embeds, attention_mask=attention_mask, **types
        ).logits
        return logits
