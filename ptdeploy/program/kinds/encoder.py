"""Encoders: a row is its prompt's virtual tokens, looked up like words, then its text."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from ptdeploy.bundle import Route
from ptdeploy.bundle.signature import BATCH, KEPT, SEQUENCE, Signature
from ptdeploy.bundle.task import Task, TensorSpec
from ptdeploy.errors import InputError
from ptdeploy.program.kinds.kind import (
    IDS,
    MASK,
    POSITIONS,
    BuildOptions,
    ProgramKind,
    any_prefix,
    class_logits,
    prefix_inputs,
    table,
)
from ptdeploy.program.kinds.sequence import SequenceKind

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptdeploy.program.program import Program
    from ptdeploy.program.prompt import Prompt
    from ptdeploy.source.base import BaseModel
    from ptdeploy.source.checkpoint import Checkpoint
    from ptdeploy.source.meaning import Meaning

_SEGMENTS = TensorSpec(
    "token_type_ids", "segments", "int64", (BATCH, SEQUENCE), "segment of each token"
)

# As the decoders' with ONNX Runtime's operators.
_OPSET = 23


class SequenceEncoder(SequenceKind):
    """SEQ_CLS on an encoder: the model's own head."""

    takes_segments = True
    quantizes_activations = True
    quantizes_embeddings = False

    def build(
        self,
        model: PreTrainedModel,
        base: BaseModel,
        prompt: Prompt,
        options: BuildOptions,
    ) -> tuple[Program, Route]:
        return _encoder(model, base, prompt, False, options)


class TokenEncoder(ProgramKind):
    """TOKEN_CLS: the model's own head, at each token of the text."""

    task = Task.TOKEN_CLS
    auto_class_name = "AutoModelForTokenClassification"
    takes_segments = True
    quantizes_activations = True
    quantizes_embeddings = False

    def meaning(self, checkpoint: Checkpoint, base: BaseModel, head: str | None) -> Meaning:
        from ptdeploy.source.meaning import Meaning, class_names

        if head not in (None, "softmax"):
            raise InputError(
                f"--head {head}: is for SEQ_CLS; {self.task.value} has one class a token.",
                "Leave --head out.",
            )
        names, notes = class_names(checkpoint, base)
        return Meaning("softmax", names, None, notes)

    def build(
        self,
        model: PreTrainedModel,
        base: BaseModel,
        prompt: Prompt,
        options: BuildOptions,
    ) -> tuple[Program, Route]:
        return _encoder(model, base, prompt, True, options)


def _encoder(
    model: PreTrainedModel,
    base: BaseModel,
    prompt: Prompt,
    per_token: bool,
    options: BuildOptions,
) -> tuple[Program, Route]:
    from ptdeploy.program.decoder import ClassifyingDecoder
    from ptdeploy.program.encoder import AnyPromptEncoder, Encoder, PrefixEncoder
    from ptdeploy.program.head import Head, prompt_index
    from ptdeploy.program.program import Program
    from ptdeploy.program.prompt import encoders_prefix_shape, is_encoder

    head = Head(model, prompt.head)
    segments = (_SEGMENTS,) if base.type_vocab_size else ()
    # Virtual tokens that are looked up are positions too, whose logits nobody asks for.
    looked_up = options.all_kinds or prompt.prefix_kv is None
    axes = (BATCH, KEPT if looked_up else SEQUENCE) if per_token else (BATCH,)
    logits = class_logits(axes, base.num_labels, head.specs)
    positions = (POSITIONS,) if per_token else ()
    words = (IDS, MASK, *segments, *positions, table(base.embedding_dim))
    if options.all_kinds:
        layers, _, heads, _, width = encoders_prefix_shape(model, 1)
        prefixes = (*any_prefix(layers, heads, width), prompt_index())
        inputs = (*words, *prefixes, *head.specs)
        every = AnyPromptEncoder(model, base.vocab_size, layers, bool(segments), per_token, head)
        return _lowered(model, Program(every.eval(), Signature(inputs, (logits,))), options)
    if prompt.prefix_kv is not None:
        layers = prompt.prefix_kv.shape[0]
        prefix = (*prefix_inputs(prompt.prefix_kv), prompt_index())
        inputs = (IDS, MASK, *segments, *prefix, *head.specs)
        if not is_encoder(model):
            decoder = ClassifyingDecoder(model, layers, head, per_token).eval()
            route = Route("plain", "a class needs no KV buffer")
            return Program(decoder, Signature(inputs, (logits,))), route
        over = PrefixEncoder(model, layers, bool(segments), per_token, head).eval()
        return _lowered(model, Program(over, Signature(inputs, (logits,))), options)
    inputs = (*words, prompt_index(), *head.specs) if head.specs else words
    module = Encoder(model, base.vocab_size, bool(segments), per_token, head).eval()
    return _lowered(model, Program(module, Signature(inputs, (logits,))), options)


def _lowered(
    model: PreTrainedModel, program: Program, options: BuildOptions
) -> tuple[Program, Route]:
    """The program with its attention as one operator, where target and architecture allow it."""
    from ptdeploy.program import padded_attention
    from ptdeploy.program.program import Lowered, examples

    why = "the target has no attention over padded rows"
    if options.operators == "onnxruntime":
        inputs = examples(program.signature.inputs)
        why = padded_attention.why_not_fused(model, program.module, inputs)
    if why:
        return program, Route("plain", why)
    lowered = Lowered("padded", partial(padded_attention.fused, model), _OPSET)
    route = Route("fused", "every layer's attention is one MultiHeadAttention")
    return replace(program, lowered=lowered), route
