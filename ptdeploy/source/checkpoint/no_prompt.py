"""A base model alone, as a checkpoint that brings nothing: for a bundle without a prompt."""

from __future__ import annotations

from pathlib import Path

from ptdeploy.bundle.task import Task
from ptdeploy.errors import InputError
from ptdeploy.program.kinds import kind_of
from ptdeploy.source.checkpoint.types import BaseReference, Checkpoint


def no_prompt(base: str, task: Task | None) -> Checkpoint:
    """A checkpoint of no prompt over the base model in a folder, or of a hub id.

    Raises InputError unless the task's models answer without a trained head.
    """
    if task is None or kind_of(task).has_trained_head:
        given = "; no --task is given" if task is None else f", not for {task.value}"
        raise InputError(
            f"--base alone, without a checkpoint, makes a bundle for CAUSAL_LM{given}.",
            "Say --task CAUSAL_LM, or pass the checkpoint: a trained head comes with it.",
        )
    return Checkpoint(
        path=Path(base),
        weights_file=Path(base),
        format="a base model",
        adapter="",
        task=task,
        num_virtual_tokens=0,
        token_dim=0,
        kind="NONE",
        virtual_tokens=None,
        prefix_kv=None,
        encoder=None,
        weights={},
        heads=(),
        base=BaseReference(base),
        dtype="float32",
        files={},
    )
