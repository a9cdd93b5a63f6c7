"""A PeftModel's `prompt_encoder` as its state dict has it: which prompt its tensors are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptdeploy.errors import CheckpointError
from ptdeploy.source.checkpoint.assemble import encoder_state, finite
from ptdeploy.source.checkpoint.found import EVALUATED
from ptdeploy.source.checkpoint.multitask import MULTITASK, of_task
from ptdeploy.source.checkpoint.peft_config import TWO_TRAININGS, PeftConfig
from ptdeploy.source.checkpoint.types import FACTORS, PromptKind

if TYPE_CHECKING:
    import torch

_TABLE, _DELTA = "embedding.weight", "delta_embedding.weight"
# In the order of their tokens.
_CARTRIDGE = ("frozen_embedding", "trainable_embedding")
# What found.kinds_in says of them while they are trained.
_WORDS: dict[PromptKind, str] = {
    "P_TUNING": "P-Tuning",
    "MULTITASK_PROMPT_TUNING": "multitask prompt tuning",
    "CPT": "CPT",
    "CARTRIDGE": "a cartridge",
}


@dataclass(frozen=True)
class PromptModule:
    """What assemble takes of a prompt: PEFT's `prompt_embeddings`, or what makes it, or both."""

    prompt: torch.Tensor | None
    encoder: Mapping[str, torch.Tensor] = field(default_factory=dict)
    task_id: int | None = None
    all_tasks: Mapping[str, torch.Tensor] = field(default_factory=dict)


def trained_prompt(
    where: Path,
    config: PeftConfig,
    raw: Mapping[str, Any],
    found: str,
    tensors: Mapping[str, torch.Tensor],
    task_id: int | None,
) -> PromptModule:
    """The prompt of a kind's module, evaluated where it is a prefix KV or CPT's.

    `found` is what the tensors are of by their names, `raw` the config as PEFT wrote it. A model
    that PEFT loaded for inference holds an evaluated prompt in its table.
    Raises CheckpointError if the tensors are not those of the config's kind, or a task is asked for
    that it has not.
    """
    import torch

    from ptdeploy.program.prompt import evaluate_prompt_encoder

    kind = config.kind
    _check_kind(where, config, bool(raw.get("inference_mode")), found)
    if kind == "MULTITASK_PROMPT_TUNING":
        several = {"prompt_embeddings": tensors[_TABLE]} if _TABLE in tensors else {}
        several |= {name: tensors[name] for name in FACTORS if name in tensors}
        prompt, chosen = of_task(where, several, task_id)
        return PromptModule(prompt, {}, chosen, {name: several[name] for name in MULTITASK})
    if task_id is not None:
        raise CheckpointError(
            f"{where}: is a state dict of {found}, which is of one task.", "Leave --task-id out."
        )
    if kind == "CARTRIDGE":
        parts = [tensors[name] for name in _CARTRIDGE if name in tensors]
        if any(part.ndim != 2 or part.shape[1:] != parts[0].shape[1:] for part in parts):
            raise CheckpointError(
                f"{where}: a cartridge's two parts are of unequal widths.", TWO_TRAININGS
            )
        return PromptModule(torch.cat(parts))
    if _TABLE not in tensors:
        raise CheckpointError(f"{where}: the prompt encoder has no {_TABLE!r}.", TWO_TRAININGS)
    if found == EVALUATED:
        return PromptModule(tensors[_TABLE])
    if kind == "CPT":
        tensors = {**tensors, _DELTA: _within_bounds(where, raw, tensors)}
    if kind == "P_TUNING":
        return PromptModule(None, tensors)
    state = encoder_state(where, config, tensors)
    assert state is not None, "it has tensors"
    return PromptModule(torch.from_numpy(evaluate_prompt_encoder(state)), tensors)


def _check_kind(where: Path, config: PeftConfig, for_inference: bool, found: str) -> None:
    words = _WORDS.get(config.kind, EVALUATED)
    if config.projected:
        words = "prefix tuning with a projection"
    # Of CPT such a model has a delta too, of zeros.
    evaluated = for_inference and config.made_by not in (None, "delta")
    if found != words and not (evaluated and found == EVALUATED):
        raise CheckpointError(
            f"{where}: holds {found}, but its config says {config.kind}.", TWO_TRAININGS
        )


def _within_bounds(
    where: Path, raw: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """CPT's delta as PEFT cuts it whenever the prompt is used: each token's norm is bounded by
    what kind of token it is.

    Raises CheckpointError if the config does not say which kinds they are.
    Source: PEFT's CPTEmbedding.get_projection, peft/tuners/cpt/model.py (Blau et al. 2024).
    """
    import torch

    delta = torch.from_numpy(finite(where, _DELTA, tensors[_DELTA]).copy())
    kinds = raw.get("cpt_tokens_type_mask")
    bounds = [raw.get(f"opt_projection_{name}", 0.1) for name in ("epsilon", "format_epsilon")]
    if (
        not isinstance(kinds, list)
        or not all(type(one) is int and one >= 0 for one in kinds)
        or delta.ndim != 2
        or len(kinds) != delta.shape[0]
        or not all(isinstance(one, int | float) for one in bounds)
    ):
        raise CheckpointError(
            f"{where}: the config says no cpt_tokens_type_mask and opt_projection_epsilon for its "
            "delta's tokens.",
            TWO_TRAININGS,
        )
    of_inputs, of_format = (float(one) * (delta.shape[1] / 2048) ** 0.5 for one in bounds)
    sizes = {1: of_format, 2: of_inputs, 3: of_format}
    most = torch.tensor([sizes.get(one % 4, 1e-10) if one else 1e-10 for one in kinds])
    norm = torch.norm(delta, dim=1)
    scale = most / torch.maximum(norm, most)
    return torch.where(norm > 0, scale, torch.ones(()))[:, None] * delta
