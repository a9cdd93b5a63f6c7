"""Which prompts tensors are of, by their names alone: for checkpoints of several kinds, or none."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from ptdeploy.errors import CheckpointError

_LORA = re.compile(r".*\.lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)\b.*")
_OWN = r"(?:.*\.)?prompt_encoder\.[^.]+\."
# In the order in which a name is held against them.
_KINDS = {
    "P-Tuning": re.compile(rf"{_OWN}(?:mlp_head|lstm_head)\..+"),
    "prefix tuning with a projection": re.compile(rf"{_OWN}transform\..+"),
    "multitask prompt tuning": re.compile(rf"{_OWN}prefix_task_(?:cols|rows)"),
    "CPT": re.compile(rf"{_OWN}delta_embedding\..+"),
    "a cartridge": re.compile(rf"{_OWN}(?:trainable|frozen)_embedding"),
    "P-Tuning v2": re.compile(r"(?:.*\.)?prefix_encoder\..+"),
    "LoRA": _LORA,
}
_TABLE = re.compile(rf"{_OWN}embedding\.weight")
# Their only tensor is called the same, and how wide it is says nothing without the base.
EVALUATED = "an evaluated P-Tuning, prompt tuning or prefix tuning"


def kinds_in(names: Collection[str]) -> tuple[str, ...]:
    """The kinds of prompts, and LoRA, that a model's state dict holds, in words."""
    found = [kind for kind, pattern in _KINDS.items() if any(map(pattern.fullmatch, names))]
    own = set(found) - {"P-Tuning v2", "LoRA"}
    if not own and any(map(_TABLE.fullmatch, names)):
        found.insert(0, EVALUATED)
    return tuple(found)


def refuse_lora(where: Path, names: Iterable[str]) -> None:
    """Raises CheckpointError if LoRA, or DoRA, was trained beside a prompt."""
    if found := next((name for name in sorted(names) if _LORA.fullmatch(name)), None):
        raise CheckpointError(
            f"{where}: holds {found}: a LoRA adapter beside the prompt.",
            "Merge it into its base with merge_and_unload() on the model that was trained, "
            "save that base, and pass it with --base and the prompt alone.",
        )


def refuse_several(where: Path, names: Collection[str]) -> None:
    """Raises CheckpointError unless a state dict's prompts are of one kind, without LoRA."""
    refuse_lora(where, names)
    found = kinds_in(names)
    if len(found) > 1:
        raise CheckpointError(
            f"{where}: holds prompts of {len(found)} kinds: {', '.join(found)}.",
            "Save the one to compile by itself, with save_pretrained of its own PeftModel.",
        )


def choose_by_name(
    path: Path, asked: str | None, found: list[str], noun: str = "adapter", what: str = ""
) -> str:
    """The one of several prompts in a file that was asked for, or the only one.

    `noun` is what has the names, `what` stands before their number. Raises CheckpointError.
    """
    if asked is None and len(found) > 1:
        raise CheckpointError(
            f"{path}: holds {what}{len(found)} {noun}s: {', '.join(found)}.",
            "Say which one with --adapter NAME.",
        )
    if asked is not None and asked not in found:
        raise CheckpointError(
            f"{path}: has no {noun} named {asked!r}; it holds {', '.join(found)}."
        )
    return asked or found[0]
