"""P-Tuning v2 as its authors' code saves it: a whole model's state dict with `prefix_encoder.*`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from ptdeploy.bundle.task import Task
from ptdeploy.errors import CheckpointError, PtdeployError
from ptdeploy.files import sha256_of
from ptdeploy.source.checkpoint.assemble import finite, usable_weights
from ptdeploy.source.checkpoint.found import refuse_several
from ptdeploy.source.checkpoint.state_dict import FILE_NAMES
from ptdeploy.source.checkpoint.tensors import (
    TENSOR_SUFFIXES,
    read_json,
    read_tensors,
    tensor_files,
    tensor_names,
)
from ptdeploy.source.checkpoint.types import BaseReference, Checkpoint, NoTaskNamed

if TYPE_CHECKING:
    import torch

_TABLE = "prefix_encoder.embedding.weight"
# The same attribute where their switch --prompt, not --prefix, chose the model.
_PROMPT = "prefix_encoder.weight"
# The projection above the table, where there is one.
_LAYERS = tuple(f"prefix_encoder.trans.{i}.{part}" for i in (0, 2) for part in ("weight", "bias"))
_ROBERTA_HEAD = {
    f"{theirs}.{part}": f"classifier.{ours}.{part}"
    for theirs, ours in (("roberta.pooler.dense", "dense"), ("classifier", "out_proj"))
    for part in ("weight", "bias")
}
# Their heads whose tensors have other names in transformers, by model type and task. Their RoBERTa
# classifies by one linear layer behind the model's own pooler, which computes what the first layer
# of transformers' head does.
_HEADS = {("roberta", "SEQ_CLS"): _ROBERTA_HEAD}
_AGAIN = "Save the whole model.state_dict() of the model that was trained."


def matches(path: Path) -> bool:
    """Whether `path` is a tensor file, or a Trainer's folder with one, with a prefix encoder."""
    file = tensor_file(path)
    if file is None:
        return False
    try:
        names = tensor_names(file)
    except PtdeployError:  # a broken file is another reader's to name
        return False
    return any(name.startswith("prefix_encoder.") for name in names)


def read(
    path: Path,
    adapter: str | None = None,
    task: Task | None = None,
    task_id: int | None = None,
) -> Checkpoint:
    """Read the state dict of a BERT or RoBERTa with a prefix encoder, its projection evaluated.

    The `config.json` beside it says how many layers and heads the prefix is for.
    Raises CheckpointError if that is missing or does not fit, or no task is given.
    Source: THUDM/P-tuning-v2, model/prefix_encoder.py (Liu et al. 2022, "P-Tuning v2").
    """
    if adapter is not None or task_id is not None:
        option = "--adapter" if adapter is not None else "--task-id"
        raise CheckpointError(f"{path}: is one P-Tuning v2 model.", f"Leave {option} out.")
    file = tensor_file(path)
    assert file is not None, "matches says so"
    tensors = read_tensors(file)
    refuse_several(file, tensors)
    if _PROMPT in tensors and _TABLE not in tensors:
        raise CheckpointError(
            f"{file}: holds {_PROMPT}: virtual tokens that the authors' --prompt trains, before a "
            "text that their model embeds twice. No model of transformers does.",
            "Train with their --prefix, or virtual tokens with PEFT's PromptTuningConfig.",
        )
    if task is None:
        raise NoTaskNamed(
            f"{file}: a P-Tuning v2 state dict says no task.",
            f"Pass --task, one of {', '.join(one.value for one in Task)}.",
        )
    config_file = file.parent / "config.json"
    config = read_json(config_file)
    names = ("num_hidden_layers", "num_attention_heads", "hidden_size")
    layers, attention_heads, width = sizes_in(config_file, config, *names)
    shape = layers, attention_heads, width // attention_heads
    prefix = encoded_prefix(file, tensors, "", shape)
    weights = {n: t for n, t in tensors.items() if not n.startswith("prefix_encoder.")}
    if other := _HEADS.get((str(config.get("model_type")), task)):
        weights = _renamed_head(file, weights, other)
    heads = tuple(sorted(n for n in weights if n.startswith("classifier.")))
    usable, unusable = usable_weights(file, weights, heads)
    plain = of_prefix("P-Tuning v2 state dict", path, file, config, prefix, tensors[_TABLE], task)
    return replace(plain, weights=usable, heads=heads, unusable=unusable)


def of_prefix(
    format: str,
    path: Path,
    file: Path,
    config: Mapping[str, object],
    prefix: NDArray[np.float32],
    table: torch.Tensor,
    task: Task,
) -> Checkpoint:
    """The checkpoint of a prefix KV, (layers, 2, heads, tokens, head dim), and of nothing else.

    `config` is that of the config.json beside `file`, `table` the prefix encoder's as stored.
    """
    name = config.get("_name_or_path")
    files = (*tensor_files(file), file.parent / "config.json")
    return Checkpoint(
        path=path,
        weights_file=file,
        format=format,
        adapter="default",
        task=task,
        num_virtual_tokens=int(prefix.shape[3]),
        token_dim=int(prefix.shape[2] * prefix.shape[4]),
        kind="PREFIX_KV",
        virtual_tokens=None,
        prefix_kv=prefix,
        encoder=None,
        weights={},
        heads=(),
        base=BaseReference(name if isinstance(name, str) and name else None, None),
        dtype=str(table.dtype).removeprefix("torch."),
        files={one.name: sha256_of(one) for one in files},
    )


def _renamed_head(
    file: Path, weights: Mapping[str, torch.Tensor], names: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    """The weights with the head's names in transformers."""
    missing = sorted(names.keys() - weights.keys())
    if missing:
        raise CheckpointError(f"{file}: the head misses {', '.join(missing)}.", _AGAIN)
    return {names.get(name, name): tensor for name, tensor in weights.items()}


def tensor_file(path: Path) -> Path | None:
    """The file of tensors at a path, itself or a Trainer's in a folder; None if there is none."""
    if path.is_file():
        whole = path.suffix in TENSOR_SUFFIXES or path.name.endswith(".index.json")
        return path if whole else None
    return next((path / name for name in FILE_NAMES if (path / name).is_file()), None)


def sizes_in(config_file: Path, config: Mapping[str, object], *names: str) -> list[int]:
    """Sizes that a model's config.json must have. Raises CheckpointError naming a wrong one."""
    for name in names:
        size = config.get(name)
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise CheckpointError(
                f"{config_file}: {name} is {size!r}, not a positive whole number.",
                "Copy the config.json that was saved with the model.",
            )
    return [cast("int", config[name]) for name in names]


def encoded_prefix(
    file: Path, tensors: Mapping[str, torch.Tensor], before: str, shape: tuple[int, int, int]
) -> NDArray[np.float32]:
    """What a prefix encoder gives, (layers, 2, heads, tokens, head dim): keys before values.

    `before` is what stands before its tensors' names, `shape` is layers, heads and head dim.
    Raises CheckpointError if a tensor is missing, or they do not fit one another or the shape.
    """
    import torch

    table, *layers = (f"{before}{name}" for name in (_TABLE, *_LAYERS))
    found = [name for name in layers if name in tensors]
    missing = [name for name in (table, *(layers if found else ())) if name not in tensors]
    if missing:
        raise CheckpointError(f"{file}: the prefix encoder misses {', '.join(missing)}.", _AGAIN)
    hidden = torch.from_numpy(finite(file, table, tensors[table]))
    if found:
        first, bias, second, last = (torch.from_numpy(finite(file, n, tensors[n])) for n in layers)
        try:
            hidden = torch.tanh(torch.nn.functional.linear(hidden, first, bias))
            hidden = torch.nn.functional.linear(hidden, second, last)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(
                f"{file}: the prefix encoder's layers do not fit one another ({reason}).", _AGAIN
            ) from error
    number, heads, width = shape
    if hidden.ndim != 2 or not hidden.numel() or hidden.shape[1] != number * 2 * heads * width:
        raise CheckpointError(
            f"{file}: the prefix encoder gives {tuple(hidden.shape)}, which are no keys and values "
            f"of {number} layers with {heads} heads of {width}.",
            "The config.json beside it is of another model. Copy the one that was saved with it.",
        )
    by_layer = hidden.numpy().reshape(-1, number, 2, heads, width)
    return np.ascontiguousarray(by_layer.transpose(1, 2, 3, 0, 4))
