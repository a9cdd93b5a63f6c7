"""Encoders: virtual tokens are a constant before the text's embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptdeploy.bundle import Graph
from ptdeploy.bundle.signature import BATCH, SEQUENCE, Signature
from ptdeploy.bundle.task import Task, TensorSpec
from ptdeploy.errors import InputError
from ptdeploy.program.kinds.kind import IDS, MASK, BuildOptions, ProgramKind
from ptdeploy.program.kinds.sequence import SequenceKind

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptdeploy.program.program import Program
    from ptdeploy.program.prompt import Prompt
    from ptdeploy.source.base import BaseModel
    from ptdeploy.source.checkpoint import Checkpoint
    from ptdeploy.source.meaning import Meaning

_SEGMENTS = TensorSpec("token_type_ids", "int64", (BATCH, SEQUENCE), "segment of each token")


class SequenceEncoder(SequenceKind):
    """SEQ_CLS on an encoder: the model's own head."""

    takes_segments = True

    def build(
        self,
        model: PreTrainedModel,
        base: BaseModel,
        prompt: Prompt,
        options: BuildOptions,
    ) -> tuple[Program, Graph]:
        return _encoder(model, base, prompt, (BATCH, base.num_labels), per_token=False)


class TokenEncoder(ProgramKind):
    """TOKEN_CLS: the model's own head, the virtual tokens' positions cut off."""

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
    ) -> tuple[Program, Graph]:
        return _encoder(model, base, prompt, (BATCH, SEQUENCE, base.num_labels), per_token=True)


def _encoder(
    model: PreTrainedModel,
    base: BaseModel,
    prompt: Prompt,
    shape: tuple[int | str, ...],
    per_token: bool,
) -> tuple[Program, Graph]:
    from ptdeploy.program.encoder import Encoder
    from ptdeploy.program.program import Program

    inputs = (IDS, MASK, _SEGMENTS) if base.type_vocab_size else (IDS, MASK)
    logits = TensorSpec("logits", "float32", shape, "class scores before softmax")
    program = Program(Encoder(model, prompt, per_token).eval(), Signature(inputs, (logits,)))
    return program, Graph("plain", "an encoder has no KV buffer")
