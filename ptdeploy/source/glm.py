"""ChatGLM's trained prefix KV on transformers' GLM, which numbers texts from behind it on."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from ptdeploy.source.checkpoint import Checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ARCHITECTURES = ("glm", "glm4")
HOW = (
    "Pass a base with --base whose weights were converted to transformers' GLM; its repository has "
    "models/glm/convert_glm_weights_to_hf.py for that."
)


def placed_prefix(checkpoint: Checkpoint, model: PreTrainedModel) -> NDArray[np.float32]:
    """A checkpoint's prefix KV for a text that is numbered from behind it on, as here all are.

    ChatGLM numbers a text from 0, with or without a prefix, and does not rotate the prefix's keys.
    Rotary attention sees only how far the rotations of query and key are apart: keys rotated by
    the prefix's length, and a text numbered from there on, give the same.
    """
    import torch

    prefix = checkpoint.prefix_kv
    assert prefix is not None, "the caller has one"
    if not checkpoint.text_from_zero:
        return prefix
    kind = model.config.model_type
    module: Any = importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
    keys = torch.from_numpy(prefix[:, 0])
    length = torch.tensor([[prefix.shape[3]]])
    with torch.no_grad():
        cos, sin = cast("Any", model).model.rotary_emb(keys, length)
        rotated, _ = module.apply_rotary_pos_emb(keys, keys, cos, sin)
    return np.stack([rotated.numpy(), prefix[:, 1]], axis=1)
