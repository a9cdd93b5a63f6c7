"""A PeftModel's full state dict, from `torch.save`, in safetensors, or from a Trainer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ptdeploy.bundle.task import Task
from ptdeploy.errors import CheckpointError
from ptdeploy.program.kinds import recognised
from ptdeploy.source.checkpoint.assemble import assemble, emptied
from ptdeploy.source.checkpoint.found import EVALUATED, choose_by_name, kinds_in, refuse_several
from ptdeploy.source.checkpoint.names import ENCODER, TEXT_EMBEDDINGS, copy_of, unwrap
from ptdeploy.source.checkpoint.peft_adapter import TRAINER_STATE, WEIGHT_NAMES
from ptdeploy.source.checkpoint.peft_config import CONFIG_NAME, PeftConfig, read_peft_config
from ptdeploy.source.checkpoint.prompt_module import trained_prompt
from ptdeploy.source.checkpoint.tensors import (
    TENSOR_SUFFIXES,
    read_json,
    read_tensors,
    shared_names,
    tensor_files,
)
from ptdeploy.source.checkpoint.types import Checkpoint, NoTaskNamed

if TYPE_CHECKING:
    import torch

FILE_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_SAVED = re.compile(r"(.+)\.modules_to_save\.([^.]+)\.(.+)")
# THUDM/P-tuning, LAMA/p_tuning/prompt_encoder.py.
_AUTHORS = re.compile(r"(^|\.)prompt_encoder\.(embedding|lstm_head|mlp_head)\.")


def matches(path: Path) -> bool:
    """Whether `path` is a tensor file, or a folder that holds one under a Trainer's names."""
    if path.is_file():
        return path.suffix in TENSOR_SUFFIXES or path.name.endswith(".index.json")
    return any((path / name).is_file() for name in FILE_NAMES)


def read(
    path: Path,
    adapter: str | None = None,
    task: Task | None = None,
    task_id: int | None = None,
) -> Checkpoint:
    """Read a full state dict of a PeftModel with a prompt of any kind.

    An `adapter_config.json` beside the file is used if there is one; without it the shapes say all
    of P-Tuning and multitask prompt tuning but the task (`task`) and the base model (`--base`), and
    too little of the other kinds.
    Raises CheckpointError if it is no such state dict.
    """
    file = path if path.is_file() else next(path / n for n in FILE_NAMES if (path / n).is_file())
    tensors = read_state(file)
    encoders = _encoders(tensors)
    adapter = choose_by_name(file, adapter, sorted(encoders))
    encoder = encoders[adapter]
    weights, copied = _base_weights(tensors, adapter)
    untrained = {name: _untrained(name, of) for name, of in copied.items()}
    config_file = file.parent / CONFIG_NAME
    files, raw = tensor_files(file), {}
    own = [f"prompt_encoder.{adapter}.{name}" for name in encoder]
    found = next(iter(kinds_in(own)), EVALUATED)
    if config_file.is_file():
        files.append(config_file)
        config, raw = read_peft_config(config_file, task), read_json(config_file)
    else:
        config = _config_from_shapes(file, found, encoder, weights, set(copied), task)
    module = trained_prompt(file, config, raw, found, encoder, task_id)
    return assemble(
        path=path,
        weights_file=file,
        format="Trainer checkpoint with a full state dict"
        if (file.parent / TRAINER_STATE).is_file()
        else "full state dict",
        adapter=adapter,
        config=config,
        prompt=module.prompt,
        encoder=module.encoder,
        weights=weights,
        heads=copied,
        copied=copied,
        untrained={n: tensors[place] for n, place in untrained.items() if place in tensors},
        text_embeddings=tensors.get(copy_of(TEXT_EMBEDDINGS, adapter)),
        files=files,
        task_id=module.task_id,
        all_tasks=module.all_tasks,
    )


def read_state(file: Path) -> dict[str, torch.Tensor]:
    """The state dict of a PeftModel with a prompt, under PEFT's own names, whatever wrapped it.

    Raises CheckpointError if the file holds none, or more than one.
    """
    stored = read_tensors(file)
    stored |= {out: stored[kept] for out, kept in shared_names(file).items()}
    tensors = unwrap(file, stored, ENCODER)
    refuse_several(file, tensors or stored)
    if not tensors:
        raise _no_prompt_encoder(file, stored)
    for name, tensor in tensors.items():
        if name.startswith("prompt_encoder.") and not tensor.numel():
            raise emptied(file, name)
    return tensors


def _no_prompt_encoder(file: Path, stored: dict[str, torch.Tensor]) -> CheckpointError:
    fix = "Save the PeftModel's own model.state_dict(), or its adapter with save_pretrained."
    if any(name.rpartition(".")[2] in ("flat_param", "_flat_param") for name in stored):
        return CheckpointError(
            f"{file}: holds FSDP's flat parameters, one rank's share of them.",
            "Save the whole of it: get_model_state_dict with StateDictOptions(full_state_dict=True)"
            ", or Accelerate's state_dict_type FULL_STATE_DICT.",
        )
    if "prompt_embeddings" in stored:
        return CheckpointError(
            f"{file}: holds an adapter, not a full state dict.",
            f"Name it {WEIGHT_NAMES[0]}, put its {CONFIG_NAME} beside it, and pass the folder.",
        )
    if authors := next((name for name in sorted(stored) if _AUTHORS.search(name)), None):
        return CheckpointError(
            f"{file}: holds {authors}, as P-Tuning's authors name it; PEFT's names have an "
            "adapter's name behind 'prompt_encoder'.",
            "If all its virtual tokens stand before the text, as with their GPT models and the "
            "template (N, 0, 0), save them: numpy.save(PATH, "
            "prompt_encoder().detach().float().cpu().numpy()). Pass that .npy file with --task and "
            "--base. Virtual tokens between words are not supported.",
        )
    return CheckpointError(
        f"{file}: has no 'prompt_encoder.*' tensors: it is no state dict of a model with a prompt. "
        f"It holds {len(stored)} tensors: {', '.join(sorted(stored)[:3])}"
        f"{', ...' if len(stored) > 3 else ''}.",
        fix,
    )


def _encoders(tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    encoders: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if match := ENCODER.fullmatch(name):
            encoders.setdefault(match[1], {})[match[2]] = tensor
    return encoders


def _base_weights(
    tensors: dict[str, torch.Tensor], adapter: str
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The base model's tensors under its own names, and which of them are of a trained copy, and of
    which module: the trained head at least."""
    weights, copied = {}, {}
    for name, tensor in tensors.items():
        if not name.startswith("base_model.") or ".original_module." in name:
            continue
        name = name.removeprefix("base_model.")
        if match := _SAVED.fullmatch(name):
            if match[2] != adapter:
                continue
            name = f"{match[1]}.{match[3]}"
            copied[name] = match[1]
        weights[name] = tensor
    return weights, copied


def _untrained(name: str, module: str) -> str:
    """PEFT's name of what a copied weight of a module was before: of the module's own weight."""
    return f"base_model.{module}.original_module{name.removeprefix(module)}"


def _config_from_shapes(
    file: Path,
    found: str,
    encoder: dict[str, torch.Tensor],
    weights: dict[str, torch.Tensor],
    heads: set[str],
    task: Task | None,
) -> PeftConfig:
    if found not in ("P-Tuning", "multitask prompt tuning"):
        raise CheckpointError(
            f"{file}: holds {found}, of which a state dict does not say enough.",
            f"Put its {CONFIG_NAME} beside it, or save its adapter: "
            "model.save_pretrained(FOLDER) of the PeftModel writes both into FOLDER.",
        )
    task = task or recognised(weights, heads)
    if task is None:
        raise NoTaskNamed(
            f"{file}: nothing here says which task the model was trained for.",
            f"Say it with --task ({', '.join(t.value for t in Task)}), or put its {CONFIG_NAME} "
            "beside it.",
        )
    table = encoder.get("embedding.weight")
    if table is not None and not table.numel():
        raise emptied(file, "embedding.weight")
    if table is None or table.ndim != 2:
        raise CheckpointError(f"{file}: the prompt encoder has no two-dimensional embedding table.")
    is_lstm = any(name.startswith("lstm_head.") for name in encoder)
    layers = [n for n in encoder if re.fullmatch(r"lstm_head\.weight_ih_l\d+", n)]
    return PeftConfig(
        kind="P_TUNING" if found == "P-Tuning" else "MULTITASK_PROMPT_TUNING",
        task=task,
        num_virtual_tokens=int(table.shape[0]),
        token_dim=int(table.shape[1]),
        encoder_kind="LSTM" if is_lstm else "MLP",
        encoder_hidden_size=None,
        encoder_num_layers=max(1, len(layers)) if is_lstm else 2,
        prefix_layers=None,
        prefix_heads=None,
        projected=False,
        base_name=None,
        base_revision=None,
    )
