"""Multitask prompt tuning as PEFT stores it: a prompt that all tasks share, and factors of each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ptdeploy.errors import CheckpointError
from ptdeploy.source.checkpoint.types import FACTORS

if TYPE_CHECKING:
    import torch

MULTITASK = ("prompt_embeddings", *FACTORS)


class NoTaskChosen(CheckpointError):
    """A prompt of several tasks, of which none was asked for."""


def of_task(
    where: Path, tensors: Mapping[str, torch.Tensor], task_id: int | None
) -> tuple[torch.Tensor, int]:
    """One task's virtual tokens, (virtual tokens, width), and which task it is.

    The shared prompt times the product of the task's factors, of shapes (tasks, virtual tokens,
    ranks) and (tasks, ranks, width). Raises CheckpointError if one of the three is missing or of
    another shape, or if `task_id` is none of the tasks, and NoTaskChosen if it is not given and
    there are several.
    Source: PEFT's MultitaskPromptEmbedding, peft/tuners/multitask_prompt_tuning/model.py (Wang et
    al. 2023, "Multitask Prompt Tuning").
    """
    missing = [name for name in MULTITASK if name not in tensors]
    if missing:
        raise CheckpointError(
            f"{where}: a multitask prompt lacks {', '.join(missing)}.",
            "Save the adapter again with PEFT's save_pretrained.",
        )
    shared, columns, rows = (tensors[name].float() for name in MULTITASK)
    fits = (
        (shared.ndim, columns.ndim, rows.ndim) == (2, 3, 3)
        and columns.shape[0] == rows.shape[0] > 0
        and columns.shape[2] == rows.shape[1]
        and (columns.shape[1], rows.shape[2]) == tuple(shared.shape)
    )
    if not fits:
        shapes = ", ".join(f"{name} {tuple(tensors[name].shape)}" for name in MULTITASK)
        raise CheckpointError(
            f"{where}: the shapes of a multitask prompt do not fit one another: {shapes}.",
            "The checkpoint is damaged. Save it again from the trained model.",
        )
    tasks = int(columns.shape[0])
    if task_id is None and tasks > 1:
        raise NoTaskChosen(
            f"{where}: was trained for {tasks} tasks, 0 to {tasks - 1}.",
            "Say which one with --task-id N.",
        )
    chosen = task_id or 0
    if not 0 <= chosen < tasks:
        raise CheckpointError(
            f"{where}: has no task {chosen}; it was trained for {tasks}, 0 to {tasks - 1}.",
            "Say which one with --task-id N.",
        )
    return shared * (columns[chosen] @ rows[chosen]), chosen
