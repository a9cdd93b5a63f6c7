"""Decoders that give one answer for a text: the prefix KV is a constant in the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptdeploy.bundle import Graph
from ptdeploy.bundle.signature import BATCH, Signature
from ptdeploy.bundle.task import TensorSpec
from ptdeploy.program.kinds.kind import IDS, MASK, BuildOptions
from ptdeploy.program.kinds.sequence import SequenceKind

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptdeploy.program.program import Program
    from ptdeploy.program.prompt import Prompt
    from ptdeploy.source.base import BaseModel


class DecoderClassifier(SequenceKind):
    """SEQ_CLS on a decoder, whose class head transformers calls `score`: read at the last token."""

    needs_prefix_kv = True

    def matches(self, model: PreTrainedModel) -> bool:
        return hasattr(model, "score")

    def build(
        self,
        model: PreTrainedModel,
        base: BaseModel,
        prompt: Prompt,
        options: BuildOptions,
    ) -> tuple[Program, Graph]:
        from ptdeploy.program.decoder import ClassifyingDecoder
        from ptdeploy.program.program import Program

        shape = (BATCH, base.num_labels)
        logits = TensorSpec("logits", "float32", shape, "class scores before softmax")
        module = ClassifyingDecoder(model, prompt).eval()
        return Program(module, Signature((IDS, MASK), (logits,))), Graph(
            "plain", "a class needs no KV buffer"
        )
