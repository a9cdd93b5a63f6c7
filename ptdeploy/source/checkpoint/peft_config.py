"""`adapter_config.json`, checked: PEFT's configuration of a prompt, of the kinds that are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ptdeploy.bundle.task import Task
from ptdeploy.errors import CheckpointError
from ptdeploy.source.checkpoint.tensors import read_json
from ptdeploy.source.checkpoint.types import (
    KINDS,
    PREFIX_KINDS,
    EncoderKind,
    NoTaskNamed,
    PromptKind,
)

CONFIG_NAME = "adapter_config.json"
TWO_TRAININGS = "The config and the tensors come from two trainings. Save both again together."
# The fields on what a prompt began as: a text, or another prompt in a file of its own.
BEGAN_AS = (
    "prompt_tuning_init",
    "prompt_tuning_init_text",
    "prompt_tuning_init_state_dict_path",
    "prompt_tuning_init_task",
    "tokenizer_kwargs",
)

_SAVE_AGAIN = "Save the adapter again with the configuration that it was trained with."
_OTHER_TYPES = {
    "LORA": "Merge it into its base with merge_and_unload() and export the merged model.",
}


@dataclass(frozen=True)
class PeftConfig:
    """The fields of PEFT's `PromptLearningConfig` that a deployment needs (peft/config.py), and of
    the kinds below it (peft/tuners).

    A field that the file leaves out or sets to null is None. `token_dim` is the width of a virtual
    token, or of a prefix KV's keys in one layer.
    """

    kind: PromptKind
    task: Task
    num_virtual_tokens: int
    token_dim: int | None
    encoder_kind: str
    encoder_hidden_size: int | None
    encoder_num_layers: int
    prefix_layers: int | None
    prefix_heads: int | None
    projected: bool
    base_name: str | None
    base_revision: str | None
    modules_to_save: tuple[str, ...] = ()

    @property
    def made_by(self) -> EncoderKind | None:
        """What makes its prompt, if that is more than a table that PEFT saves."""
        if self.kind == "P_TUNING":
            return cast("EncoderKind", self.encoder_kind)
        if self.kind == "CPT":
            return "delta"
        return "projection" if self.projected else None


def read_peft_config(path: Path, task: Task | None = None) -> PeftConfig:
    """Read and check an `adapter_config.json`; `task` overrides the task it names.

    Raises CheckpointError if it is not JSON, not of a kind that is read, or misses a field.
    """
    raw = read_json(path)
    peft_type = raw.get("peft_type")
    if peft_type not in KINDS:
        raise CheckpointError(
            f"{path}: peft_type is {peft_type!r}, but ptdeploy compiles {', '.join(KINDS)}.",
            _OTHER_TYPES.get(str(peft_type), "Pass a checkpoint of one of those kinds."),
        )
    if peft_type == "CPT" and str(raw.get("task_type")) not in ("CAUSAL_LM", "None"):
        raise CheckpointError(
            f"{path}: task_type is {raw.get('task_type')!r}, but PEFT trains CPT for CAUSAL_LM.",
            "Save the adapter again with the task_type that it was trained with.",
        )
    submodules = raw.get("num_transformer_submodules")
    if submodules not in (None, 1):
        raise CheckpointError(
            f"{path}: num_transformer_submodules is {submodules!r}: encoder-decoder models are "
            "not supported.",
            f"Supported tasks: {', '.join(t.value for t in Task)}.",
        )
    kind = raw.get("encoder_reparameterization_type", "MLP")
    if peft_type == "P_TUNING" and kind not in ("MLP", "LSTM"):
        raise CheckpointError(
            f"{path}: encoder_reparameterization_type is {kind!r}, neither MLP nor LSTM.",
            _SAVE_AGAIN,
        )
    num_virtual_tokens = _integer(path, raw, "num_virtual_tokens")
    if num_virtual_tokens is None:
        raise CheckpointError(
            f"{path}: num_virtual_tokens is missing.", "Save the adapter again with PEFT."
        )
    return PeftConfig(
        kind=cast("PromptKind", peft_type),
        task=task or _task(path, raw.get("task_type")),
        num_virtual_tokens=num_virtual_tokens,
        token_dim=_integer(path, raw, "token_dim"),
        encoder_kind=kind,
        encoder_hidden_size=_integer(path, raw, "encoder_hidden_size"),
        encoder_num_layers=_integer(path, raw, "encoder_num_layers") or 2,
        prefix_layers=_integer(path, raw, "num_layers") if peft_type in PREFIX_KINDS else None,
        prefix_heads=_integer(path, raw, "num_attention_heads")
        if peft_type in PREFIX_KINDS
        else None,
        projected=peft_type == "PREFIX_TUNING" and bool(raw.get("prefix_projection")),
        base_name=_text(path, raw, "base_model_name_or_path"),
        base_revision=_text(path, raw, "revision"),
        modules_to_save=_names(path, raw, "modules_to_save"),
    )


def _task(path: Path, name: object) -> Task:
    try:
        return Task(str(name))
    except ValueError as error:
        tasks = ", ".join(one.value for one in Task)
        if name is None:
            raise NoTaskNamed(
                f"{path}: names no task_type.", f"Say which it is with --task: {tasks}."
            ) from error
        raise CheckpointError(
            f"{path}: task_type is {name!r}, which ptdeploy does not compile.",
            f"It compiles {tasks}.",
        ) from error


def _integer(path: Path, raw: dict[str, Any], field: str) -> int | None:
    value = raw.get(field)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise CheckpointError(
            f"{path}: {field} is {value!r}, not a positive whole number.", _SAVE_AGAIN
        )
    return value


def _names(path: Path, raw: dict[str, Any], field: str) -> tuple[str, ...]:
    value = raw.get(field) or []
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise CheckpointError(f"{path}: {field} is {value!r}, not a list of strings.", _SAVE_AGAIN)
    return tuple(value)


def _text(path: Path, raw: dict[str, Any], field: str) -> str | None:
    value = raw.get(field)
    if value is not None and not isinstance(value, str):
        raise CheckpointError(f"{path}: {field} is {value!r}, not a string.", _SAVE_AGAIN)
    return value or None
