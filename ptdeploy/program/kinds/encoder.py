"""Encoders: a row is its prompt's virtual tokens, looked up like words, then its text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptdeploy.bundle import Route
from ptdeploy.bundle.signature import BATCH, SEQUENCE, Signature
from ptdeploy.bundle.task import Task, TensorSpec
from ptdeploy.errors import InputError
from ptdeploy.program.kinds.kind import (
    IDS,
    MASK,
    BuildOptions,
    ProgramKind,
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


class SequenceEncoder(SequenceKind):
    """SEQ_CLS on an encoder: the model's own head."""

    takes_segments = True

    def build(
        self,
        model: PreTrainedModel,
        base: BaseModel,
        prompt: Prompt,
        options: BuildOptions,
    ) -> tuple[Program, Route]:
        return _encoder(model, base, prompt, (BATCH,))


class TokenEncoder(ProgramKind):
    """TOKEN_CLS: the model's own head, at the virtual tokens' positions too."""

    task = Task.TOKEN_CLS
    auto_class_name = "AutoModelForTokenClassification"
    takes_segments = True

    def meaning(self, checkpoint: Checkpoint, base: BaseModel, head: str | None) -> Meaning:
        from ptdeploy.source.meaning import Meaning, class_names

        if head not in (None, "softmax"):
            raise InputError(
                f"--head {head}: is for SEQ_CLS; {self.task.value} has one class a token."
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
        return _encoder(model, base, prompt, (BATCH, SEQUENCE))


def _encoder(
    model: PreTrainedModel, base: BaseModel, prompt: Prompt, axes: tuple[str, ...]
) -> tuple[Program, Route]:
    from ptdeploy.program.decoder import ClassifyingDecoder
    from ptdeploy.program.encoder import Encoder, PrefixEncoder
    from ptdeploy.program.head import Head, prompt_index
    from ptdeploy.program.program import Program
    from ptdeploy.program.prompt import is_encoder

    head = Head(model, prompt.head)
    segments = (_SEGMENTS,) if base.type_vocab_size else ()
    logits = class_logits(axes, base.num_labels, head.specs)
    route = Route("plain", "an encoder has no KV buffer")
    if prompt.prefix_kv is not None:
        layers = prompt.prefix_kv.shape[0]
        prefix = (*prefix_inputs(prompt.prefix_kv), prompt_index())
        inputs = (IDS, MASK, *segments, *prefix, *head.specs)
        per_token = SEQUENCE in axes
        over = (
            PrefixEncoder(model, layers, bool(segments), per_token, head)
            if is_encoder(model)
            else ClassifyingDecoder(model, layers, head, per_token)
        )
        return Program(over.eval(), Signature(inputs, (logits,))), route
    words = (IDS, MASK, *segments, table(base.embedding_dim))
    inputs = (*words, prompt_index(), *head.specs) if head.specs else words
    module = Encoder(model, base.vocab_size, bool(segments), head).eval()
    return Program(module, Signature(inputs, (logits,))), route
