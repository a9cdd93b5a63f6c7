"""Names of tensors without what wrapped the model: found by where the prompt stands."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ptdeploy.errors import CheckpointError

if TYPE_CHECKING:
    import torch

# The modules that torch.compile, DistributedDataParallel, FSDP, activation checkpoints and
# Accelerate put around a module, wherever it stands.
_WRAPPERS = frozenset(
    {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
)
# Keys that training loops keep a model's state dict under, beside an optimizer's and others'.
_KEYS = ("state_dict.", "model_state_dict.", "module.")
# The modules and parameters of PEFT's prompt encoders, of every kind that it trains.
_MODULES = "embedding|mlp_head|lstm_head|transform|delta_embedding"
_PARAMETERS = "prefix_task_cols|prefix_task_rows|trainable_embedding|frozen_embedding"
ENCODER = re.compile(rf"prompt_encoder\.([^.]+)\.((?:{_MODULES})\..+|{_PARAMETERS})")
EVALUATED = re.compile(r"prompt_embeddings")
# PEFT has the base model's token embeddings under a name of its own too, and runs them there for a
# text beside virtual tokens.
TEXT_EMBEDDINGS = "word_embeddings.weight"


def unwrap(
    file: Path, tensors: Mapping[str, torch.Tensor], prompt: re.Pattern[str]
) -> dict[str, torch.Tensor]:
    """The tensors of the PeftModel that `tensors` hold, under PEFT's own names.

    `prompt` matches the names of the prompt's tensors, and whatever stands before them there stands
    before the model's others too. Tensors of anything else, such as metrics, are left out; without
    any prompt all are.
    Raises CheckpointError if there are two such models in the file.
    """
    before = _prefixes(tensors, prompt)
    if len(before) > 1:
        before = {one for one in before if one.startswith(_KEYS)} or before
    if len(before) > 1:
        raise CheckpointError(
            f"{file}: holds {len(before)} models with a prompt, at "
            f"{', '.join(sorted(one or 'the top' for one in before))}.",
            "Save the one to compile by itself: torch.save(model.state_dict(), PATH).",
        )
    found: dict[str, torch.Tensor] = {}
    for prefix in before:
        for name, tensor in tensors.items():
            if name.startswith(prefix):
                own = plain(name[len(prefix) :])
                if own in found:
                    raise CheckpointError(f"{file}: holds {own} twice, once as {name}.")
                found[own] = tensor
    return found


def plain(name: str) -> str:
    """The name without wrappers in it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _prefixes(names: Iterable[str], prompt: re.Pattern[str]) -> set[str]:
    """What stands before the prompt's names, wrappers around the model among it."""
    first = "prompt_encoder" if prompt is ENCODER else "prompt_embeddings"
    found = set()
    for name in names:
        parts = name.split(".")
        for at, part in enumerate(parts):
            if part == first and prompt.fullmatch(plain(".".join(parts[at:]))):
                found.add("".join(f"{one}." for one in parts[:at]))
    return found


def copy_of(name: str, adapter: str) -> str:
    """Where a PeftModel's state dict has a weight that was trained in a copy of its module."""
    module, _, own = name.rpartition(".")
    return f"{module}.modules_to_save.{adapter}.{own}"
