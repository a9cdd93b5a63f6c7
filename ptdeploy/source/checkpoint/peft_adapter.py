"""PEFT's adapter folder: `adapter_config.json` beside `adapter_model.safetensors` or `.bin`."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ptdeploy.bundle.task import Task
from ptdeploy.errors import CheckpointError
from ptdeploy.program.kinds import kind_of
from ptdeploy.source.checkpoint.assemble import assemble
from ptdeploy.source.checkpoint.found import refuse_lora
from ptdeploy.source.checkpoint.multitask import MULTITASK, of_task
from ptdeploy.source.checkpoint.names import EVALUATED, TEXT_EMBEDDINGS, unwrap
from ptdeploy.source.checkpoint.peft_config import (
    CONFIG_NAME,
    TWO_TRAININGS,
    PeftConfig,
    read_peft_config,
)
from ptdeploy.source.checkpoint.tensors import read_json, read_tensors
from ptdeploy.source.checkpoint.types import FACTORS, Checkpoint, PromptKind
from ptdeploy.text_files import system_text

if TYPE_CHECKING:
    import torch

WEIGHT_NAMES = ("adapter_model.safetensors", "adapter_model.bin")
ENCODER_NAME = "prompt_encoder.safetensors"
TRAINER_STATE = "trainer_state.json"


def matches(path: Path) -> bool:
    """Whether `path` is a folder with adapter weights, in itself or one folder further down.

    One of an adapter's own files stands for its folder.
    """
    folder = _folder(path)
    return folder.is_dir() and bool(_adapters(folder))


def read(
    path: Path,
    adapter: str | None = None,
    task: Task | None = None,
    task_id: int | None = None,
) -> Checkpoint:
    """Read the adapter named `adapter`, or the only one there is.

    A `prompt_encoder.safetensors` beside it, as `save_full` writes, brings the MLP or LSTM too.
    Raises CheckpointError if there are several and none is named, or if anything is broken.
    """
    path = _folder(path)
    adapter, folder = find(path, adapter)
    config_file = folder / CONFIG_NAME
    if not config_file.is_file():
        raise CheckpointError(
            f"{folder}: has adapter weights but no {CONFIG_NAME}.",
            "Copy it from where the adapter was saved.",
        )
    config = read_peft_config(config_file, task)
    weights_file = next(folder / name for name in WEIGHT_NAMES if (folder / name).is_file())
    tensors = read_adapter(weights_file)
    files = [config_file, weights_file]
    encoder = {}
    if (folder / ENCODER_NAME).is_file():
        files.append(folder / ENCODER_NAME)
        encoder = read_tensors(folder / ENCODER_NAME)
    weights = {
        name.removeprefix("base_model."): tensor
        for name, tensor in tensors.items()
        if name not in (*MULTITASK, TEXT_EMBEDDINGS)
    }
    prompt, task_id = _prompt(weights_file, config.kind, tensors, task_id)
    return assemble(
        path=path,
        weights_file=weights_file,
        format="Trainer checkpoint with a PEFT adapter"
        if (folder / TRAINER_STATE).is_file() or (path / TRAINER_STATE).is_file()
        else "PEFT adapter",
        adapter=adapter,
        config=config,
        prompt=prompt,
        encoder=encoder,
        weights=weights,
        heads=weights,
        copied=_copied(weights, config.modules_to_save),
        files=files,
        encoder_file=folder / ENCODER_NAME,
        task_id=task_id,
        text_embeddings=_text_embeddings(config, tensors),
        all_tasks={n: t for n, t in tensors.items() if n in MULTITASK and task_id is not None},
    )


def _text_embeddings(
    config: PeftConfig, tensors: Mapping[str, torch.Tensor]
) -> torch.Tensor | None:
    """The token embeddings under PEFT's own name, where it trained them: for classifiers it looks
    there too for the modules that it was told. Else they are the base model's again."""
    module = TEXT_EMBEDDINGS.removesuffix(".weight")
    if not kind_of(config.task).has_trained_head:
        return None
    if not any(module.endswith(told) for told in config.modules_to_save):
        return None
    return tensors.get(TEXT_EMBEDDINGS)


def read_adapter(file: Path) -> dict[str, torch.Tensor]:
    """An adapter's tensors under PEFT's own names, whatever wrapped the model.

    Raises CheckpointError as read_tensors does, or if the file holds two such models.
    """
    stored = read_tensors(file)
    return unwrap(file, stored, EVALUATED) or stored


def _prompt(
    where: Path, kind: PromptKind, tensors: Mapping[str, torch.Tensor], task_id: int | None
) -> tuple[torch.Tensor | None, int | None]:
    """The prompt's tensor, of a multitask prompt one task's, and which task that is.

    Raises CheckpointError if the weights are of more than such a prompt, or of no such task.
    """
    _refuse_others(where, kind, tensors)
    if kind == "MULTITASK_PROMPT_TUNING":
        return of_task(where, tensors, task_id)
    if task_id is not None:
        raise CheckpointError(
            f"{where}: its config says {kind}, which is of one task.", "Leave --task-id out."
        )
    return tensors.get("prompt_embeddings"), None


def _copied(weights: Iterable[str], modules: Collection[str]) -> dict[str, str]:
    """Which weights PEFT trains in a copy, and of which module: of one whose name ends in one that
    it was told."""
    found = {}
    for name in weights:
        parts = name.split(".")[:-1]
        within = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
        copies = (one for one in within if any(one.endswith(told) for told in modules))
        if outermost := next(copies, None):
            found[name] = outermost
    return found


def find(path: Path, adapter: str | None) -> tuple[str, Path]:
    """The name and the folder of the adapter that is asked for, or of the only one there is.

    Raises CheckpointError if there are several and none is named, or none of that name.
    """
    path = _folder(path)
    folders = _adapters(path)
    if adapter is None:
        if len(folders) > 1:
            own = " 'default' is the one in the folder itself." if path in folders.values() else ""
            raise CheckpointError(
                f"{path}: holds {len(folders)} adapters: {', '.join(_with_kinds(folders))}.{own}",
                "Say which one with --adapter NAME.",
            )
        adapter = next(iter(folders))
    if adapter not in folders:
        raise CheckpointError(
            f"{path}: has no adapter named {adapter!r}; it holds {', '.join(sorted(folders))}."
        )
    return adapter, folders[adapter]


def _with_kinds(folders: Mapping[str, Path]) -> list[str]:
    """The names of adapters, with their kinds where their configurations say several."""
    kinds = {}
    for name, folder in sorted(folders.items()):
        with contextlib.suppress(CheckpointError):
            kinds[name] = str(read_json(folder / CONFIG_NAME).get("peft_type"))
    if len(set(kinds.values())) < 2:
        return sorted(folders)
    return [f"{name} ({kinds[name]})" if name in kinds else name for name in sorted(folders)]


def _refuse_others(where: Path, kind: PromptKind, tensors: Collection[str]) -> None:
    """Raises CheckpointError if the weights are of more than a prompt of that kind."""
    refuse_lora(where, tensors)
    for name in sorted(tensors):
        if name in FACTORS and kind != "MULTITASK_PROMPT_TUNING":
            raise CheckpointError(
                f"{where}: holds {name} of a multitask prompt, but its config says {kind}.",
                TWO_TRAININGS,
            )


def _folder(path: Path) -> Path:
    return path.parent if path.name in (*WEIGHT_NAMES, ENCODER_NAME, CONFIG_NAME) else path


def _adapters(path: Path) -> dict[str, Path]:
    """The adapter folders by name; PEFT keeps 'default' in the folder itself, others below it."""
    found = {}
    below = sorted((system_text(child.name), child) for child in path.iterdir() if child.is_dir())
    for name, folder in [("default", path), *below]:
        # A Trainer's output folder has checkpoint-N folders: those are no adapters of one model.
        if name.startswith("checkpoint-"):
            continue
        if any((folder / weights).is_file() for weights in WEIGHT_NAMES):
            # A folder below that is named as the folder's own adapter is must not stand for it.
            found[f"{name}/" if name in found else name] = folder
    return found
