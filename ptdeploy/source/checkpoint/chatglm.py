"""P-Tuning v2 of ChatGLM2, ChatGLM3 and GLM-4: `transformer.prefix_encoder.*` in a state dict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ptdeploy.bundle.task import WRITING, Task
from ptdeploy.errors import CheckpointError, PtdeployError
from ptdeploy.source.checkpoint.found import refuse_several
from ptdeploy.source.checkpoint.p_tuning_v2 import (
    encoded_prefix,
    of_prefix,
    sizes_in,
    tensor_file,
)
from ptdeploy.source.checkpoint.tensors import read_json, read_tensors, tensor_names
from ptdeploy.source.checkpoint.types import Checkpoint

_BEFORE = "transformer."
_ENCODER = f"{_BEFORE}prefix_encoder."


def matches(path: Path) -> bool:
    """Whether `path` is a tensor file, or a Trainer's folder with one, with ChatGLM's prefix."""
    file = tensor_file(path)
    if file is None:
        return False
    try:
        names = tensor_names(file)
    except PtdeployError:  # a broken file is another reader's to name
        return False
    return any(name.startswith(_ENCODER) for name in names)


def read(
    path: Path,
    adapter: str | None = None,
    task: Task | None = None,
    task_id: int | None = None,
) -> Checkpoint:
    """Read the prefix KV, its projection evaluated; the `config.json` beside it has the sizes.

    The model's own weights, if they are there, are left out: they are frozen in such a training.
    Raises CheckpointError if it is the first ChatGLM, or sizes are missing or do not fit.
    Source: THUDM/ChatGLM2-6B, ptuning/ and its model's PrefixEncoder and get_prompt.
    """
    if adapter is not None or task_id is not None:
        option = "--adapter" if adapter is not None else "--task-id"
        raise CheckpointError(f"{path}: is one P-Tuning v2 model.", f"Leave {option} out.")
    if task not in (None, WRITING):
        raise CheckpointError(
            f"{path}: ChatGLM's P-Tuning v2 trains models that write, not for {task}.",
            "Leave --task out.",
        )
    file = tensor_file(path)
    assert file is not None, "matches says so"
    tensors = read_tensors(file)
    refuse_several(file, tensors)
    config_file = file.parent / "config.json"
    config = read_json(config_file)
    prefix = encoded_prefix(file, tensors, _BEFORE, _shape(config_file, config))
    table = tensors[f"{_ENCODER}embedding.weight"]
    words = "ChatGLM P-Tuning v2 state dict"
    plain = of_prefix(words, path, file, config, prefix, table, WRITING)
    return replace(plain, text_from_zero=True)


def _shape(config_file: Path, config: Mapping[str, object]) -> tuple[int, int, int]:
    """Layers, heads of keys and values, and the width of one.

    Raises CheckpointError for the first ChatGLM, which transformers has nothing like.
    """
    if config.get("position_encoding_2d") or "multi_query_attention" not in config:
        raise CheckpointError(
            f"{config_file}: is of the first ChatGLM, whose positions are of two dimensions; only "
            "remote code has such a model, and ptdeploy runs none.",
            "P-Tuning v2 of ChatGLM2, ChatGLM3 and GLM-4 is read.",
        )
    grouped = config["multi_query_attention"]
    heads = "multi_query_group_num" if grouped else "num_attention_heads"
    layers, number, width = sizes_in(config_file, config, "num_layers", heads, "kv_channels")
    return layers, number, width
