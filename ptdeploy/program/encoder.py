"""Encoders as traceable modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ptdeploy.program import padded_attention
from ptdeploy.program.head import Head
from ptdeploy.program.past import filled_cache, prefix_of_rows
from ptdeploy.program.prompt import backbone
from ptdeploy.program.words import embed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Encoder(nn.Module):
    """Virtual tokens before the text, as PEFT's forward puts them there; its caller gives both.

    Positions are left to the model, which numbers virtual tokens and text from the start, as in
    training; so rows must be padded on the right. Takes `input_ids` and `attention_mask`, int64
    (batch, sequence), then `token_type_ids` where the model tells segments apart,
    `logits_positions` (kept,), where `per_token`, the table of virtual tokens, and where it has a
    trained head `prompt_index` and its parameters. Logits are (batch, classes), or (batch, kept,
    classes) of the positions asked for.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: int,
        takes_segments: bool,
        per_token: bool,
        head: Head,
    ) -> None:
        super().__init__()
        self.model, self.vocabulary, self.takes_segments = model, vocabulary, takes_segments
        self.per_token, self.head = per_token, head

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *rest: torch.Tensor
    ) -> torch.Tensor:
        types, positions, rest = _optional(rest, self.takes_segments, self.per_token)
        table, *head = rest
        self.head.start(head[0] if head else None, head[1:])
        padded_attention.start(attention_mask)
        embeds = embed(self.model.get_input_embeddings(), self.vocabulary, input_ids, table)
        logits: torch.Tensor = self.model(
            inputs_embeds=embeds, attention_mask=attention_mask, **types
        ).logits
        return logits if positions is None else logits.index_select(1, positions)


class PrefixEncoder(nn.Module):
    """An encoder over each row's prefix KV, which every token of its text attends to.

    Takes `input_ids` and `attention_mask`, int64 (batch, sequence), of the text; `token_type_ids`
    where the model tells segments apart; the prefix KV of all prompts, layer by layer, keys before
    values, (prompts * layers * 2, heads, slots, head dim); how many of its slots a row's own fills,
    (batch,); which prompt a row has, (batch,), and the head's parameters. A row's text is numbered
    behind its prefix. Source: PEFT's _prefix_tuning_forward, peft/peft_model.py.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: int,
        takes_segments: bool,
        per_token: bool,
        head: Head,
    ) -> None:
        super().__init__()
        self.model = backbone(model)
        # Where that backbone is in the whole model, to name the graph's nodes.
        self.prefix = str(model.base_model_prefix)
        self.classifier = model.classifier
        self.layers, self.head = layers, head
        self.takes_segments, self.per_token = takes_segments, per_token

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *rest: torch.Tensor
    ) -> torch.Tensor:
        types = {"token_type_ids": rest[0]} if self.takes_segments else {}
        prefix_kv, lengths, rows, *head = rest[len(types) :]
        self.head.start(rows, head)
        past = prefix_of_rows(prefix_kv, rows, self.layers)
        return self.answer(
            {"input_ids": input_ids, **types}, input_ids, attention_mask, past, lengths
        )

    def answer(
        self,
        text: dict[str, torch.Tensor],
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        past: Sequence[torch.Tensor],
        lengths: torch.Tensor,
    ) -> torch.Tensor:
        """Logits of rows whose `past`, as `prefix_of_rows` gives it, is filled to `lengths`.

        `text` is what the model is given of the rows, by its own names.
        """
        slots = torch.arange(past[0].shape[2])[None]
        filled = (slots < lengths[:, None]).to(attention_mask.dtype)
        mask = torch.cat([filled, attention_mask], dim=1)
        padded_attention.start(mask)
        outputs = self.model(
            attention_mask=mask,
            position_ids=self.positions(input_ids, lengths[:, None]),
            past_key_values=filled_cache(past),
            use_cache=False,
            return_dict=True,
            **text,
        )
        pooled = None if self.per_token else getattr(outputs, "pooler_output", None)
        logits: torch.Tensor = self.classifier(
            outputs.last_hidden_state if pooled is None else pooled
        )
        return logits

    def positions(self, input_ids: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """The text's position ids, (batch, sequence), where `before` (batch, 1) come first."""
        embeddings: Any = self.model.embeddings
        # RoBERTa's kind counts the tokens that are no padding, and from its padding id on.
        numbered = getattr(embeddings, "create_position_ids_from_input_ids", None)
        if numbered is None:
            return before + torch.arange(input_ids.shape[1])[None]
        positions: torch.Tensor = numbered(input_ids, embeddings.padding_idx, before)
        return positions


class AnyPromptEncoder(PrefixEncoder):
    """An encoder for prompts of either kind, side by side in one batch: virtual tokens before a
    row's text, or a prefix KV which its text attends to.

    Takes what `PrefixEncoder` does, with `logits_positions`, where `per_token`, and the table of
    virtual tokens, ids behind the vocabulary, before the prefix KV, which is (prefixes, layers * 2,
    heads, slots, head dim). Prompts that have one come first: of the others' rows, whose length is
    0, nothing of it is seen. Logits are those of `Encoder`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: int,
        layers: int,
        takes_segments: bool,
        per_token: bool,
        head: Head,
    ) -> None:
        super().__init__(model, layers, takes_segments, per_token, head)
        self.words, self.vocabulary = model.get_input_embeddings(), vocabulary

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *rest: torch.Tensor
    ) -> torch.Tensor:
        types, positions, rest = _optional(rest, self.takes_segments, self.per_token)
        table, prefix_kv, lengths, rows, *head = rest
        self.head.start(rows, head)
        embeds = embed(self.words, self.vocabulary, input_ids, table)
        own = prefix_kv[torch.minimum(rows, torch.tensor(prefix_kv.shape[0] - 1))]
        past = [own[:, part] for part in range(2 * self.layers)]
        text = {"inputs_embeds": embeds, **types}
        logits = self.answer(text, input_ids, attention_mask, past, lengths)
        return logits if positions is None else logits.index_select(1, positions)

    def positions(self, input_ids: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """As a row behind a prefix KV is numbered; one of virtual tokens as the model does by
        itself, which then tells no padding id from others."""
        numbered = super().positions(input_ids, before)
        padding = getattr(self.model.embeddings, "padding_idx", 0)
        if not hasattr(self.model.embeddings, "create_position_ids_from_input_ids"):
            return numbered
        alone = padding + 1 + torch.arange(input_ids.shape[1])[None]
        return torch.where(before > 0, numbered, alone)


def _optional(
    rest: tuple[torch.Tensor, ...], takes_segments: bool, per_token: bool
) -> tuple[dict[str, torch.Tensor], torch.Tensor | None, tuple[torch.Tensor, ...]]:
    """The segments, by their name, and the positions to give logits for, as far as a program takes
    them, and the inputs behind them."""
    types = {"token_type_ids": rest[0]} if takes_segments else {}
    rest = rest[len(types) :]
    return (types, rest[0], rest[1:]) if per_token else (types, None, rest)
