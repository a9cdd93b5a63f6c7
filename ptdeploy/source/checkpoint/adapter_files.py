"""A checkpoint as PEFT's adapter folder: its configuration, its weights, what made its prompt."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ptdeploy.bundle.task import Task
from ptdeploy.files import json_document
from ptdeploy.source.checkpoint.names import TEXT_EMBEDDINGS
from ptdeploy.source.checkpoint.peft_adapter import ENCODER_NAME, WEIGHT_NAMES
from ptdeploy.source.checkpoint.peft_config import BEGAN_AS, CONFIG_NAME
from ptdeploy.source.checkpoint.peft_objects import modules_to_save
from ptdeploy.source.checkpoint.prefix import side_by_side
from ptdeploy.source.checkpoint.tensors import read_json
from ptdeploy.source.checkpoint.types import FACTORS, BaseReference, Checkpoint, PeftKind
from ptdeploy.text_files import system_text

# What PEFT calls a prompt that it did not train itself, or one task of a prompt of several.
_AS: dict[str, PeftKind] = {
    "VIRTUAL_TOKENS": "PROMPT_TUNING",
    "PREFIX_KV": "PREFIX_TUNING",
    "MULTITASK_PROMPT_TUNING": "PROMPT_TUNING",
}
_METADATA = {"format": "pt"}


def peft_kind(checkpoint: Checkpoint, whole: bool) -> PeftKind:
    """PEFT's name of the kind that holds a checkpoint's prompt; `whole` as adapter_files has it."""
    if whole and checkpoint.all_tasks:
        return cast("PeftKind", checkpoint.kind)
    return _AS.get(checkpoint.kind) or cast("PeftKind", checkpoint.kind)


def adapter_files(
    checkpoint: Checkpoint, prompt: NDArray[np.float32], base: BaseReference, whole: bool
) -> dict[str, bytes]:
    """The files of an adapter folder that PEFT loads, by name; `whole` ones as save_full has them:
    with what made the prompt, of a multitask prompt all tasks.

    `prompt` is the checkpoint's, evaluated. Tensors are float32, which holds every float16 and
    bfloat16 exactly.
    """
    from safetensors.numpy import save

    stored = side_by_side(prompt) if prompt.ndim == 5 else prompt
    tensors = {f"base_model.{name}": checkpoint.weights[name] for name in checkpoint.heads}
    tensors["prompt_embeddings"] = stored
    if checkpoint.text_embeddings is not None:
        tensors[TEXT_EMBEDDINGS] = checkpoint.text_embeddings
    if whole:
        tensors |= checkpoint.all_tasks
    files = {
        CONFIG_NAME: json_document(_config(checkpoint, prompt, base, peft_kind(checkpoint, whole))),
        WEIGHT_NAMES[0]: save(_contiguous(tensors), _METADATA),
    }
    if whole and checkpoint.encoder is not None:
        files[ENCODER_NAME] = save(_contiguous(dict(checkpoint.encoder.tensors)), _METADATA)
    return files


def _contiguous(tensors: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    return {name: np.ascontiguousarray(array) for name, array in sorted(tensors.items())}


def _config(
    checkpoint: Checkpoint, prompt: NDArray[np.float32], base: BaseReference, kind: PeftKind
) -> dict[str, Any]:
    own = checkpoint.weights_file.parent / CONFIG_NAME
    found: dict[str, Any] = {}
    if checkpoint.kind == kind and own.is_file():
        found = read_json(own)
        if found.get("prompt_tuning_init_state_dict_path"):
            # PEFT would open it wherever the adapter is loaded.
            found = {name: found[name] for name in found if name not in BEGAN_AS}
    elif kind == "PREFIX_TUNING":
        layers, _, heads, _, width = prompt.shape
        found = {"num_layers": layers, "num_attention_heads": heads, "token_dim": heads * width}
        found["prefix_projection"] = False
    elif checkpoint.kind == kind and checkpoint.all_tasks:
        columns = checkpoint.all_tasks[FACTORS[0]]
        found = {"num_tasks": columns.shape[0], "num_ranks": columns.shape[2]}
    elif checkpoint.encoder is not None:
        found = {
            "encoder_reparameterization_type": checkpoint.encoder.kind,
            "encoder_hidden_size": checkpoint.encoder.hidden_size,
            "encoder_num_layers": checkpoint.encoder.num_layers,
        }
    if not found.get("modules_to_save"):
        found["modules_to_save"] = modules_to_save(checkpoint)
    return {
        "token_dim": checkpoint.token_dim,
        "num_transformer_submodules": 1,
        **found,
        "peft_type": kind,
        "task_type": Task(checkpoint.task).value,
        "num_virtual_tokens": checkpoint.num_virtual_tokens,
        "base_model_name_or_path": base.name and system_text(base.name),
        "revision": base.revision,
        "inference_mode": True,
    }
