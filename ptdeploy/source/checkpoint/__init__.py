"""Checkpoint formats: one file each, one registry, one Checkpoint type."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from ptdeploy.bundle import manifest_format
from ptdeploy.bundle.schema import FORMAT, PACK_FORMAT
from ptdeploy.bundle.task import Task
from ptdeploy.errors import CheckpointError
from ptdeploy.printable import shell_word
from ptdeploy.source.checkpoint import (
    bare_tensor,
    chatglm,
    nemo,
    p_tuning_v2,
    peft_adapter,
    state_dict,
)
from ptdeploy.source.checkpoint.full import load_full, save_full
from ptdeploy.source.checkpoint.labels import read_labels
from ptdeploy.source.checkpoint.multitask import NoTaskChosen
from ptdeploy.source.checkpoint.peft_config import CONFIG_NAME
from ptdeploy.source.checkpoint.tensors import TENSOR_SUFFIXES
from ptdeploy.source.checkpoint.types import (
    BaseReference,
    Checkpoint,
    NoTaskNamed,
    PromptEncoderState,
)

__all__ = [
    "READERS",
    "BaseReference",
    "Checkpoint",
    "NoTaskChosen",
    "NoTaskNamed",
    "PromptEncoderState",
    "load_full",
    "read_any_task",
    "read_checkpoint",
    "save_full",
]


class Reader(Protocol):
    """What a format's module offers."""

    def matches(self, path: Path) -> bool: ...

    def read(
        self, path: Path, adapter: str | None, task: Task | None, task_id: int | None
    ) -> Checkpoint: ...


# The first whose matches(path) holds reads it.
READERS: tuple[Reader, ...] = (
    peft_adapter,
    nemo,
    bare_tensor,
    p_tuning_v2,
    chatglm,
    state_dict,
)


def read_checkpoint(
    path: str | Path,
    adapter: str | None = None,
    task: Task | None = None,
    labels: str | None = None,
    task_id: int | None = None,
) -> Checkpoint:
    """Read a trained prompt of any supported kind and format.

    `task_id` is one of the tasks that a multitask prompt was trained for. `labels` names the
    classes: a comma-separated list, or a file with one a line.
    Raises CheckpointError saying what was looked for if no format matches.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder.")
    for reader in READERS:
        if reader.matches(path):
            checkpoint = reader.read(path, adapter, task, task_id)
            if labels is None:
                return checkpoint
            return replace(checkpoint, labels=read_labels(labels))
    if inner := list(path.glob("checkpoint-*")) if path.is_dir() else []:
        raise CheckpointError(
            f"{path}: holds no checkpoint itself, but {len(inner)} below it.",
            f"Pass one of them, for instance {max(inner, key=_step)}.",
        )
    if path.is_dir() and (path / CONFIG_NAME).is_file():
        raise CheckpointError(
            f"{path}: has {CONFIG_NAME} but no adapter weights.",
            f"Copy {' or '.join(peft_adapter.WEIGHT_NAMES)} beside it.",
        )
    raise _unknown(path)


def read_any_task(
    path: str | Path,
    adapter: str | None = None,
    task: Task | None = None,
    task_id: int | None = None,
) -> Checkpoint:
    """read_checkpoint for what is of all tasks of a multitask prompt: unless told, its first."""
    try:
        return read_checkpoint(path, adapter, task, task_id=task_id)
    except NoTaskChosen:
        return read_checkpoint(path, adapter, task, task_id=0)


def _step(checkpoint: Path) -> tuple[int, str]:
    """What orders a Trainer's checkpoints: the step that each is named after."""
    step = checkpoint.name.removeprefix("checkpoint-")
    return int(step) if re.fullmatch("[0-9]{1,18}", step) else -1, checkpoint.name


def _unknown(path: Path) -> CheckpointError:
    """What to do with a path that no reader takes."""
    made, pass_it = manifest_format(path), "Pass the checkpoint that it was compiled from"
    if made == FORMAT:
        return CheckpointError(f"{path}: is a bundle, and no checkpoint.", f"{pass_it}.")
    if made == PACK_FORMAT:
        return CheckpointError(
            f"{path}: is a pack, and no checkpoint.",
            f"{pass_it}, or add it to a bundle: ptdeploy prompt add BUNDLE {shell_word(path)}",
        )
    problem = f"{path}: not a checkpoint that ptdeploy reads."
    files = {p.name: p for p in path.rglob("*") if p.is_file()} if path.is_dir() else {}
    if "zero_to_fp32.py" in files:
        return CheckpointError(
            f"{path}: holds DeepSpeed's shards, one for each process.",
            f"Join them first: python {shell_word(files['zero_to_fp32.py'])} "
            f"{shell_word(path)} OUT, and pass OUT.",
        )
    if any(name.endswith(".distcp") for name in files):
        return CheckpointError(
            f"{path}: holds the shards of torch.distributed.checkpoint, one for each process.",
            "Join them first: python -m torch.distributed.checkpoint.format_utils dcp_to_torch "
            f"{shell_word(path)} FILE.pt, and pass FILE.pt.",
        )
    whole = sorted(str(p) for p in files.values() if p.suffix in TENSOR_SUFFIXES)
    if whole:
        more = f" and {len(whole) - 3} more" if len(whole) > 3 else ""
        return CheckpointError(
            f"{problem} It holds {', '.join(whole[:3])}{more}, and nothing says which is meant.",
            "Pass the file itself, if it is the state dict of a model with a prompt.",
        )
    return CheckpointError(
        problem,
        "Expected a PEFT adapter folder, a Trainer checkpoint, a .nemo file, or a file of tensors "
        f"({', '.join((*TENSOR_SUFFIXES, bare_tensor.NUMPY))}).",
    )
