"""Decoders that give one answer for a text: each row has its prompt's prefix KV, an input."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ptdeploy.bundle import Route
from ptdeploy.bundle.signature import BATCH, Signature
from ptdeploy.program.kinds.kind import IDS, MASK, BuildOptions, class_logits, prefix_inputs
from ptdeploy.program.kinds.sequence import SequenceKind

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptdeploy.program.program import Program
    from ptdeploy.program.prompt import Prompt
    from ptdeploy.source.base import BaseModel
    from ptdeploy.source.checkpoint import Checkpoint
    from ptdeploy.source.meaning import Meaning


class DecoderClassifier(SequenceKind):
    """SEQ_CLS on a decoder, whose class head transformers calls `score`: read at the last token."""

    needs_prefix_kv = True
    padded_on = "right"

    def matches(self, model: PreTrainedModel) -> bool:
        return hasattr(model, "score")

    def meaning(self, checkpoint: Checkpoint, base: BaseModel, head: str | None) -> Meaning:
        # transformers looks for padding where it is given ids: PEFT gives it those of a text behind
        # a prefix KV, and embeddings where virtual tokens come before the text.
        return replace(super().meaning(checkpoint, base, head), padding_id=base.pad_token_id)

    def build(
        self,
        model: PreTrainedModel,
        base: BaseModel,
        prompt: Prompt,
        options: BuildOptions,
    ) -> tuple[Program, Route]:
        from ptdeploy.program.decoder import ClassifyingDecoder
        from ptdeploy.program.head import Head, prompt_index
        from ptdeploy.program.program import Program

        assert prompt.prefix_kv is not None
        layers = prompt.prefix_kv.shape[0]
        head = Head(model, prompt.head)
        inputs = (IDS, MASK, *prefix_inputs(prompt.prefix_kv), prompt_index(), *head.specs)
        logits = class_logits((BATCH,), base.num_labels, head.specs)
        module = ClassifyingDecoder(model, layers, head).eval()
        return Program(module, Signature(inputs, (logits,))), Route(
            "plain", "a class needs no KV buffer"
        )
