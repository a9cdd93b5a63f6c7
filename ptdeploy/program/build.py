"""The base model with its frozen prompt, as a module whose inputs and outputs are declared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from ptdeploy.bundle.signature import BATCH, KEPT, SEQUENCE, SLOTS, Signature
from ptdeploy.bundle.task import Graph, Operators, Task, TensorSpec
from ptdeploy.errors import BaseModelError
from ptdeploy.memory import ran_out_of_memory
from ptdeploy.program.decoder import DecoderClassifier, FusedDecoder, PlainDecoder
from ptdeploy.program.lowering import why_not_fused
from ptdeploy.program.prompt import Prompt
from ptdeploy.source.base import BaseModel, quiet_libraries
from ptdeploy.targets import Attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Lowered:
    """A model, and the operators that its attention is traced as."""

    model: PreTrainedModel
    operators: Operators


@dataclass(frozen=True)
class Program:
    """A traceable module with its signature; its inputs are positional and in that order.

    `lowered` is the model whose attention updates the buffer in place while the module is traced.
    """

    module: nn.Module = field(repr=False)
    signature: Signature
    lowered: Lowered | None = field(repr=False, default=None)

    def example_inputs(self) -> tuple[torch.Tensor, ...]:
        """Small inputs of the declared shapes, every axis larger than one."""
        return _examples(self.signature.inputs)


def _examples(inputs: tuple[TensorSpec, ...]) -> tuple[torch.Tensor, ...]:
    sizes = {BATCH: 2, SEQUENCE: 5, SLOTS: 11, KEPT: 3}
    shapes = [[sizes[a] if isinstance(a, str) else a for a in spec.shape] for spec in inputs]
    return tuple(
        torch.ones(shape, dtype=getattr(torch, spec.dtype))
        for shape, spec in zip(shapes, inputs, strict=True)
    )


def build_program(
    task: Task,
    model: PreTrainedModel,
    base: BaseModel,
    prompt: Prompt,
    freeze_kv: bool = True,
    operators: Operators | None = "onnxruntime",
    refuses: Callable[[Attention], str] = lambda _: "",
) -> tuple[Program, Graph]:
    """Choose the task's program: an encoder, a decoder that classifies, or one that writes.

    A decoder that writes is `fused`, with `operators`, where its architecture allows and the engine
    does not refuse what its layers ask for, and `plain` otherwise; the Graph says which and why.
    Without `freeze_kv` the virtual tokens stay in it as
    embeddings.
    """
    if task is Task.CAUSAL_LM:
        return _decoder(model, base, prompt, freeze_kv, operators, refuses)
    if base.last_token_head:
        program = _decoder_classifier(model, prompt, base.num_labels)
        return program, Graph("plain", "a class needs no KV buffer")
    return _encoder(task, model, prompt, base), Graph("plain", "an encoder has no KV buffer")


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
    if base.type_vocab_size:
        inputs.append(
            TensorSpec("token_type_ids", "int64", (BATCH, SEQUENCE), "segment of each token")
        )
    shape = (BATCH, SEQUENCE, base.num_labels) if per_token else (BATCH, base.num_labels)
    logits = TensorSpec("logits", "float32", shape, "class scores before softmax")
    module = _Encoder(model, prompt, per_token).eval()
    return Program(module, Signature(tuple(inputs), (logits,)))


_KEPT = TensorSpec("logits_positions", "int64", (KEPT,), "positions of input_ids to get logits for")
_LENGTHS = TensorSpec(
    "past_lengths", "int64", (BATCH,), "filled slots of each row, virtual tokens included"
)


_FUSED: dict[Operators, str] = {
    "onnxruntime": "every layer's attention is one GroupQueryAttention",
    "standard": "every layer writes into the KV buffer in place and reads all of it",
}


def _decoder(
    model: PreTrainedModel,
    base: BaseModel,
    prompt: Prompt,
    freeze_kv: bool,
    operators: Operators | None,
    refuses: Callable[[Attention], str],
) -> tuple[Program, Graph]:
    assert prompt.prefix_kv is not None
    layers, _, heads, _, head_dim = prompt.prefix_kv.shape
    names = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    buffer = (BATCH, heads, SLOTS, head_dim)
    past = tuple(TensorSpec(f"past_key_values.{n}", "float32", buffer, "KV buffer") for n in names)
    kept = None if freeze_kv else prompt
    program = FusedDecoder(model, kept).eval()
    inputs = (_IDS, _LENGTHS, _KEPT, *past)
    why = ""
    if operators is None:
        why = "the target has no attention over a buffer"
    else:
        why = why_not_fused(model, program, _examples(inputs), operators, refuses)
    vocabulary = int(model.get_output_embeddings().weight.shape[0])
    logits = TensorSpec(
        "logits", "float32", (BATCH, KEPT, vocabulary), "next-token scores before softmax"
    )
    if why or operators is None:
        new = (BATCH, heads, SEQUENCE, head_dim)
        present = tuple(
            TensorSpec(f"present.{n}", "float32", new, "the new tokens' KV") for n in names
        )
        plain, route = PlainDecoder(model, kept).eval(), Graph("plain", why)
        _check_free_slots(plain, prompt, base.context(route))
        return Program(plain, Signature(inputs, (logits, *present))), route
    present = tuple(TensorSpec(f"present.{n}", "float32", buffer, "KV buffer") for n in names)
    route = Graph("fused", _FUSED[operators])
    return Program(program, Signature(inputs, (logits, *present)), Lowered(model, operators)), route


# Trying more would need as much memory as a long text does.
_TRIED_SLOTS = 2048


def _check_free_slots(program: PlainDecoder, prompt: Prompt, context: int) -> None:
    """Raises BaseModelError if free slots between a row's past and its new tokens change it."""
    assert prompt.prefix_kv is not None
    kind = program.model.config.model_type
    past = torch.from_numpy(prompt.prefix_kv).flatten(0, 1)[:, None]
    count = past.shape[3]
    free = min(2 * context - count - 1, _TRIED_SLOTS) - count
    inputs = torch.ones((1, 1), dtype=torch.int64), torch.tensor([count]), torch.zeros(1).long()
    reason = ""
    try:
        with torch.no_grad(), quiet_libraries():
            near = program(*inputs, *past)[0]
            far = program(*inputs, *torch.nn.functional.pad(past, (0, 0, 0, max(free, 0))))[0]
        if not torch.allclose(near, far, rtol=1e-3, atol=1e-3):
            reason = f"{free} of them change logits by {(near - far).abs().max():.2g}"
    except Exception as error:  # the model's own code, on a longer past than it was made for
        if ran_out_of_memory(error):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
    if reason:
        raise BaseModelError(
            f"{kind}: cannot write into a KV buffer with free slots, which its attention counts as "
            f"tokens ({reason}).",
            "Only the architectures in the README's support table are tested.",
        )


def _decoder_classifier(model: PreTrainedModel, prompt: Prompt, num_labels: int) -> Program:
    logits = TensorSpec("logits", "float32", (BATCH, num_labels), "class scores before softmax")
    return Program(DecoderClassifier(model, prompt).eval(), Signature((_IDS, _MASK), (logits,)))
