"""PEFT's own objects, made of what was read: nothing else of the folder has a say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ptdeploy.source.checkpoint.names import TEXT_EMBEDDINGS
from ptdeploy.source.checkpoint.peft_config import BEGAN_AS, CONFIG_NAME
from ptdeploy.source.checkpoint.tensors import read_json
from ptdeploy.source.checkpoint.types import Checkpoint

if TYPE_CHECKING:
    import peft

# PEFT's own name of an adapter that nobody named. A folder's may be none that a module can have.
DEFAULT_ADAPTER = "default"


def own_config(checkpoint: Checkpoint) -> peft.PeftConfig:
    """PEFT's configuration of a checkpoint that has one beside its weights.

    It is of the checkpoint's task, as the file may name none, and says nothing of what the prompt
    began as: PEFT would open files for that which need not be at hand.
    """
    import peft

    left_out = {*BEGAN_AS, "runtime_config"}
    raw = read_json(checkpoint.weights_file.parent / CONFIG_NAME)
    found: dict[str, Any] = {name: raw[name] for name in raw if name not in left_out}
    found["task_type"] = checkpoint.task.value
    return peft.PeftConfig.from_peft_type(**found)


def modules_to_save(checkpoint: Checkpoint) -> list[str] | None:
    """The modules that PEFT must be told to copy, as a configuration has them.

    Without, it loads a copy into the base's own module: into what is tied to that, and into the
    token embeddings of the text, which beside virtual tokens are never a copy. A classifier's head
    it copies untold too.
    """
    told = set(checkpoint.copied.values())
    if checkpoint.text_embeddings is not None:
        told.add(TEXT_EMBEDDINGS.removesuffix(".weight"))
    return sorted(told) or None


def module_name(adapter: str) -> str:
    """The adapter's name, or PEFT's default where no module can be called that."""
    import torch

    usable = adapter and "." not in adapter and not hasattr(torch.nn.ModuleDict(), adapter)
    return adapter if usable else DEFAULT_ADAPTER
