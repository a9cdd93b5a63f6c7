"""The base model with its frozen prompt, as a module whose inputs and outputs are declared."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from ptdeploy.base import BaseModel
from ptdeploy.prompt import Prompt, backbone
from ptdeploy.task import Task, TensorSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH, SEQUENCE, PAST, TOTAL = "batch", "sequence", "past", "past_and_sequence"


@dataclass(frozen=True)
class Signature:
    """What goes in and out of a program, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Program:
    """A traceable module with its signature; its inputs are positional and in that order."""

    module: nn.Module = field(repr=False)
    signature: Signature

    def example_inputs(self) -> tuple[torch.Tensor, ...]:
        """Small inputs of the declared shapes, every axis larger than one."""
        sizes = {BATCH: 2, SEQUENCE: 5, PAST: 3, TOTAL: 8}
        shapes = [
            [sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape]
            for spec in self.signature.inputs
        ]
        return tuple(
            torch.ones(shape, dtype=getattr(torch, spec.dtype))
            for shape, spec in zip(shapes, self.signature.inputs, strict=True)
        )


def build_program(task: Task, model: PreTrainedModel, base: BaseModel, prompt: Prompt) -> Program:
    """Choose the task's program: an encoder, a decoder that classifies, or one that writes."""
    if task is Task.CAUSAL_LM:
        return _decoder(model, prompt)
    if base.last_token_head:
        return _decoder_classifier(model, prompt, base.num_labels)
    return _encoder(task, model, prompt, base)


def needs_prefix_kv(task: Task, base: BaseModel) -> bool:
    """Whether the program starts from the prompt's prefix KV: every causal decoder does."""
    return task is Task.CAUSAL_LM or base.last_token_head


_IDS = TensorSpec("input_ids", "int64", (BATCH, SEQUENCE), "token ids of the text")
_MASK = TensorSpec(
    "attention_mask", "int64", (BATCH, SEQUENCE), "1 for text, 0 for padding on the right"
)


class _Encoder(nn.Module):
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


def _encoder(task: Task, model: PreTrainedModel, prompt: Prompt, base: BaseModel) -> Program:
    per_token = task is Task.TOKEN_CLS
    inputs = [_IDS, _MASK]
    if base.token_type_ids:
        inputs.append(
            TensorSpec("token_type_ids", "int64", (BATCH, SEQUENCE), "segment of each token")
        )
    shape = (BATCH, SEQUENCE, base.num_labels) if per_token else (BATCH, base.num_labels)
    logits = TensorSpec("logits", "float32", shape, "class scores before softmax")
    module = _Encoder(model, prompt, per_token).eval()
    return Program(module, Signature(tuple(inputs), (logits,)))


class _Decoder(nn.Module):
    """A decoder step over past keys and values, numbering positions by what is not masked.

    Position i of a row is the number of its unmasked tokens before it, so that padding anywhere in
    the row, and rows of unequal length, change nothing (PEFT numbers padding too; see the docs).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *past: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        from transformers.cache_utils import DynamicCache

        cache = DynamicCache()
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        positions = {}
        if self.takes_positions:
            numbers = (attention_mask.cumsum(1) - 1).clamp(min=0)
            positions["position_ids"] = numbers[:, -input_ids.shape[1] :]
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=True,
            **positions,
        )
        present = [
            tensor
            for layer in output.past_key_values.layers
            for tensor in (layer.keys, layer.values)
        ]
        return (output[0], *present)


def _decoder(model: PreTrainedModel, prompt: Prompt) -> Program:
    assert prompt.prefix_kv is not None
    layers, _, heads, _, head_dim = prompt.prefix_kv.shape
    names = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    past = tuple(
        TensorSpec(f"past_key_values.{n}", "float32", (BATCH, heads, PAST, head_dim), "past KV")
        for n in names
    )
    present = tuple(
        TensorSpec(f"present.{n}", "float32", (BATCH, heads, TOTAL, head_dim), "present KV")
        for n in names
    )
    mask = TensorSpec(
        "attention_mask", "int64", (BATCH, TOTAL), "1 for virtual tokens and text, 0 for padding"
    )
    vocabulary = int(model.get_output_embeddings().weight.shape[0])
    logits = TensorSpec(
        "logits", "float32", (BATCH, SEQUENCE, vocabulary), "next-token scores before softmax"
    )
    signature = Signature((_IDS, mask, *past), (logits, *present))
    return Program(_Decoder(model).eval(), signature)


class _DecoderClassifier(nn.Module):
    """The decoder with the prefix KV as a constant, and the head at each row's last token."""

    prefix_kv: torch.Tensor

    def __init__(self, model: PreTrainedModel, prompt: Prompt) -> None:
        super().__init__()
        assert prompt.prefix_kv is not None
        self.decoder = _Decoder(backbone(model))
        self.score = model.score
        self.register_buffer("prefix_kv", torch.from_numpy(prompt.prefix_kv))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        rows = input_ids.shape[0]
        layers, _, _, n, _ = self.prefix_kv.shape
        past = [
            self.prefix_kv[layer, part][None].expand(rows, -1, -1, -1)
            for layer in range(layers)
            for part in (0, 1)
        ]
        mask = torch.cat([attention_mask.new_ones(rows, n), attention_mask], dim=1)
        hidden = self.decoder(input_ids, mask, *past)[0]
        last = (attention_mask.sum(1) - 1).clamp(min=0)
        pooled = hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[-1]))[:, 0]
        logits: torch.Tensor = self.score(pooled)
        return logits


def _decoder_classifier(model: PreTrainedModel, prompt: Prompt, num_labels: int) -> Program:
    logits = TensorSpec("logits", "float32", (BATCH, num_labels), "class scores before softmax")
    return Program(_DecoderClassifier(model, prompt).eval(), Signature((_IDS, _MASK), (logits,)))
