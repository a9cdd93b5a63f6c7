"""What the programs that give one answer for a whole text (SEQ_CLS) have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptdeploy.bundle.task import Task
from ptdeploy.program.kinds.kind import ProgramKind

if TYPE_CHECKING:
    import torch

    from ptdeploy.source.base import BaseModel
    from ptdeploy.source.checkpoint import Checkpoint
    from ptdeploy.source.meaning import Meaning


class SequenceKind(ProgramKind):
    """A program of SEQ_CLS: its head gives classes, each true or not, or numbers."""

    task = Task.SEQ_CLS
    auto_class_name = "AutoModelForSequenceClassification"

    def meaning(self, checkpoint: Checkpoint, base: BaseModel, head: str | None) -> Meaning:
        from ptdeploy.source.meaning import Meaning, class_names, sequence_head

        names, notes = class_names(checkpoint, base)
        return Meaning(sequence_head(base, head), names, None, notes)

    def text_logits(self, logits: torch.Tensor, tokens: int) -> torch.Tensor:
        return logits
