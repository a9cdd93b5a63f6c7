"""The program kinds, a file each: what a compilation does differently from task to task.

Importing this imports neither torch nor transformers: reading a checkpoint asks it already.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from ptdeploy.bundle.task import Task
from ptdeploy.program.kinds.causal import Causal
from ptdeploy.program.kinds.decoder_classifier import DecoderClassifier
from ptdeploy.program.kinds.encoder import SequenceEncoder, TokenEncoder
from ptdeploy.program.kinds.kind import BuildOptions, ProgramKind

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The first kind of a task that matches a model builds its program.
KINDS: tuple[ProgramKind, ...] = (
    DecoderClassifier(),
    SequenceEncoder(),
    TokenEncoder(),
    Causal(),
)


def kind_of(task: Task, model: PreTrainedModel | None = None) -> ProgramKind:
    """The kind that builds a task's program of a model.

    Without a model it is any kind of the task: for what they all answer alike.
    """
    return next(
        kind for kind in KINDS if kind.task is task and (model is None or kind.matches(model))
    )


def recognised(weights: Collection[str], heads: Collection[str]) -> Task | None:
    """The task that a checkpoint must be of by its tensors' names alone; None if none must."""
    return next((kind.task for kind in KINDS if kind.recognises(weights, heads)), None)


__all__ = ["KINDS", "BuildOptions", "ProgramKind", "kind_of", "recognised"]
