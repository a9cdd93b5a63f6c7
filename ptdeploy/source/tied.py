"""Weights under two names, such as embeddings and the output layer, and what trained them apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ptdeploy.source.checkpoint import Checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def untie(
    model: PreTrainedModel, brought: Mapping[str, NDArray[np.float32]], copied: Mapping[str, str]
) -> None:
    """Give every tied weight that training parted from the other a parameter of its own.

    `brought` is what a checkpoint has of the model, by name; `copied` those that were trained in a
    copy of a module, with its name. That leaves what is tied to them as it was, unless it is within
    that module and so tied in the copy. One that was trained in its own place stays tied, unless
    the other is brought too and differs.
    Whether the base model's own file has them apart is transformers' to see, and it has done so.
    """
    import torch

    for target, source in list(tied_weights(model).items()):
        own, other = brought.get(target), brought.get(source)
        if own is not None and other is not None:
            apart = not np.array_equal(own, other)
        else:
            given, tied = (target, source) if own is not None else (source, target)
            apart = given in brought and trained_apart(given, tied, copied)
        if not apart:
            continue
        of, _, name = target.rpartition(".")
        parameter = model.get_parameter(target)
        clone = torch.nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
        setattr(model.get_submodule(of), name, clone)
        # As transformers does where a file has two of them: the names say what is tied.
        del model.all_tied_weights_keys[target]


def trained_apart(name: str, tied: str, copied: Mapping[str, str]) -> bool:
    """Whether a weight was trained in a copy that left `tied`, outside its module, as it was."""
    return name in copied and not tied.startswith(f"{copied[name]}.")


def tied_weights(model: PreTrainedModel) -> dict[str, str]:
    """The model's tied weights: the name of each one, and of the one that it is tied to."""
    found: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    return found


def unused_copies(checkpoint: Checkpoint, model: PreTrainedModel) -> frozenset[str]:
    """Token embeddings that were trained in a copy beside virtual tokens.

    PEFT takes the untrained ones for the text there, in training as after it, or those of its own
    name.
    """
    if not checkpoint.copied or checkpoint.prefix_kv is not None:
        return frozenset()
    return token_embeddings(model) & set(checkpoint.copied)


def token_embeddings(model: PreTrainedModel) -> frozenset[str]:
    """The name of the model's token embeddings, in a set."""
    table = model.get_input_embeddings().weight
    return frozenset(name for name, parameter in model.named_parameters() if parameter is table)


def text_embeddings(
    checkpoint: Checkpoint, model: PreTrainedModel
) -> dict[str, NDArray[np.float32]]:
    """The token embeddings that a checkpoint has for the text alone, by their name in the model:
    trained under PEFT's own name, or untrained beside a copy that is not run.

    With a prefix KV PEFT runs the model's own, as of any other module.
    """
    if checkpoint.prefix_kv is not None:
        return {}
    if checkpoint.text_embeddings is not None:
        return dict.fromkeys(token_embeddings(model), checkpoint.text_embeddings)
    unused = unused_copies(checkpoint, model)
    return {name: own for name, own in checkpoint.untrained.items() if name in unused}
