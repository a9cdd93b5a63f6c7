"""NeMo's prompt learning: a `.nemo` archive with a table of virtual tokens, or what makes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptdeploy.bundle.task import WRITING, Task
from ptdeploy.errors import CheckpointError
from ptdeploy.files import sha256_of
from ptdeploy.source.checkpoint.archive import opened_archive
from ptdeploy.source.checkpoint.assemble import finite
from ptdeploy.source.checkpoint.found import choose_by_name
from ptdeploy.source.checkpoint.nemo_config import (
    CONFIG,
    MAX_CONFIG_BYTES,
    check_model,
    check_template,
    read_config,
)
from ptdeploy.source.checkpoint.tensors import read_tensors
from ptdeploy.source.checkpoint.types import BaseReference, Checkpoint, PromptEncoderState

if TYPE_CHECKING:
    import torch

_WEIGHTS = "model_weights.ckpt"
# Of a model in parallel parts this one has the virtual tokens, whole; of layers it has a share.
_FIRST_PARTS = (f"mp_rank_00/{_WEIGHTS}", f"tp_rank_00_pp_rank_000/{_WEIGHTS}")
_MOST_BYTES = 1 << 40  # the archive's own size is the bound
_WANTED = {CONFIG: MAX_CONFIG_BYTES, **dict.fromkeys((_WEIGHTS, *_FIRST_PARTS), _MOST_BYTES)}
_TABLE = re.compile(r"(?:.*\.)?prompt_table\.([^.]+)\.prompt_embeddings\.weight")
# What the later P-Tuning adapter calls its only task.
_ADAPTER, _ADAPTER_TASK = "ptuning_adapter", "taskname"
_ADAPTER_TABLE = re.compile(rf"(?:.*\.)?{_ADAPTER}\.inference_table")
_LAYER = re.compile(
    r"(?:.*\.)?((?:mlp_head|lstm_head)\.\w+(?:\.\w+)?|(?:first|second)\.(?:weight|bias)"
    r"|embeddings?\.weight)"
)
# What the encoders that keep what they give call their table.
_LATER = re.compile(r"(?:.*\.)?embeddings\.weight")
_SAVE = "Let NeMo's training finish: its last step saves a .nemo with the virtual tokens evaluated."


@dataclass(frozen=True)
class _State:
    """What an archive's weights hold: tables of virtual tokens by task, and an encoder's layers."""

    where: str
    tables: Mapping[str, torch.Tensor]
    layers: Mapping[str, torch.Tensor]
    whole: bool
    takes_task_name: bool
    of_adapter: bool


def matches(path: Path) -> bool:
    """Whether `path` is a file that is called `.nemo`."""
    return path.suffix == ".nemo" and path.is_file()


def read(
    path: Path,
    adapter: str | None = None,
    task: Task | None = None,
    task_id: int | None = None,
) -> Checkpoint:
    """Read the virtual tokens of the task named `adapter`, or of the only one there is.

    Where they were not evaluated yet, NeMo's prompt encoder is, in float32.
    Raises CheckpointError if there are several tasks and none is named, if the tokens did not stand
    before the text in training, or if anything is broken. Nothing is unpickled.
    Source: NeMo's MegatronGPTPromptLearningModel, PromptTable and PromptEncoder
    (nemo/collections/nlp), and the P-Tuning adapter that took their place.
    """
    if task_id is not None:
        raise CheckpointError(f"{path}: has tasks by name.", "Say which one with --adapter NAME.")
    if task not in (None, WRITING):
        raise CheckpointError(
            f"{path}: NeMo trains prompts of models that write, not for {task}.",
            "Leave --task out.",
        )
    with opened_archive(path, _WANTED) as found:
        if CONFIG not in found:
            raise CheckpointError(f"{path}: holds no {CONFIG}.", "Pass a .nemo file of NeMo's own.")
        where = f"{path}: {CONFIG}"
        config = read_config(where, found[CONFIG])
        check_model(where, config)
        state = _state(path, found)
        tasks = sorted(state.tables) or [_ADAPTER_TASK]
        name = choose_by_name(path, adapter, tasks, "task", "virtual tokens of ")
        if state.of_adapter:
            _check_positions(where, config)
        tokens, dtype = _virtual_tokens(state, name)
        _check_count(where, tokens, check_template(where, config, name), name)
    return Checkpoint(
        path=path,
        weights_file=path,
        format="NeMo archive",
        adapter=name,
        task=WRITING,
        num_virtual_tokens=int(tokens.shape[0]),
        token_dim=int(tokens.shape[1]),
        kind="VIRTUAL_TOKENS",
        virtual_tokens=tokens,
        prefix_kv=None,
        encoder=None,
        weights={},
        heads=(),
        base=BaseReference(None, None),
        dtype=dtype,
        files={path.name: sha256_of(path)},
    )


def _state(path: Path, found: Mapping[str, Path]) -> _State:
    member = next((one for one in (_WEIGHTS, *_FIRST_PARTS) if one in found), None)
    if member is None:
        raise CheckpointError(
            f"{path}: holds no {_WEIGHTS}.",
            "Pass a .nemo file of NeMo's own, whose weights are one file or one for each rank.",
        )
    where = f"{path}: {member}"
    try:
        # What read_tensors maps is copied where it is used, before the file goes.
        tensors = read_tensors(found[member])
    except CheckpointError as error:
        shown = error.problem.replace(str(found[member]), where)
        raise CheckpointError(shown, error.fix) from error
    tables: dict[str, torch.Tensor] = {}
    layers: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        of_table, of_layer = _TABLE.fullmatch(name), _LAYER.fullmatch(name)
        if of_table or _ADAPTER_TABLE.fullmatch(name):
            key, into = of_table[1] if of_table else _ADAPTER_TASK, tables
        elif of_layer and ("prompt_encoder." in name or _ADAPTER in name or name == of_layer[0]):
            key, into = of_layer[1].replace("embeddings.", "embedding."), layers
        else:
            continue
        if key in into:
            raise CheckpointError(f"{where}: holds {key} twice, once as {name}.")
        into[key] = tensor
    if not tables and not layers:
        shown = ", ".join(sorted(tensors)[:3])
        raise CheckpointError(
            f"{where}: holds no virtual tokens and no prompt encoder, but {len(tensors)} tensors: "
            f"{shown}{', ...' if len(tensors) > 3 else ''}.",
            "Pass a .nemo file of prompt tuning or P-Tuning.",
        )
    # The first encoders wrote the task's name over their table's first rows.
    own_table = any("inference_table" in n or _LATER.fullmatch(n) for n in tensors)
    of_adapter = any(_ADAPTER in name for name in tensors)
    return _State(where, tables, layers, member == _WEIGHTS, not own_table, of_adapter)


def _virtual_tokens(state: _State, task: str) -> tuple[NDArray[np.float32], str]:
    """A task's virtual tokens, (tokens, width), and the element type that they were stored in."""
    table = state.tables.get(task)
    # NeMo clears the table while it trains: nothing but zeros is not evaluated yet.
    if table is not None and bool(table.any()):
        name = f"the table of task {task!r}"
        tokens = finite(Path(state.where), name, table).copy()
        if tokens.ndim != 2 or not tokens.size:
            raise CheckpointError(
                f"{state.where}: {name} has shape {tokens.shape}, not (tokens, width)."
            )
        return tokens, str(table.dtype).removeprefix("torch.")
    if not state.layers:
        raise CheckpointError(
            f"{state.where}: the table of task {task!r} is all zeros, with no prompt encoder.",
            _SAVE,
        )
    if state.takes_task_name:
        raise CheckpointError(
            f"{state.where}: has a prompt encoder that is not evaluated, and that takes the base "
            "model's own embeddings of the task's name too.",
            _SAVE,
        )
    if not state.whole:
        raise CheckpointError(
            f"{state.where}: has a prompt encoder in parts of several ranks, not evaluated.",
            _SAVE,
        )
    tokens, dtype = _evaluated(state)
    if tokens.ndim != 2 or not np.isfinite(tokens).all():
        raise CheckpointError(f"{state.where}: the prompt encoder gives NaN or infinite values.")
    return tokens, dtype


def _evaluated(state: _State) -> tuple[NDArray[np.float32], str]:
    """What the prompt encoder gives: an MLP, of any depth, with or without an LSTM below it."""
    import torch
    from torch.nn.functional import gelu, linear, relu

    from ptdeploy.program.prompt import evaluate_prompt_encoder

    place = Path(state.where)
    arrays = {name: finite(place, name, tensor).copy() for name, tensor in state.layers.items()}
    table = arrays.get("embedding.weight")
    if table is None or table.ndim != 2 or not table.size:
        raise CheckpointError(f"{state.where}: the prompt encoder has no two-dimensional table.")
    dtype = str(state.layers["embedding.weight"].dtype).removeprefix("torch.")
    layers: list[str] = [
        f"mlp_head.{number}"
        for number in sorted(
            int(n.split(".")[1]) for n in arrays if re.fullmatch(r"mlp_head\.\d+\.weight", n)
        )
    ]
    two = "first.weight" in arrays
    if two:
        layers = ["first", "second"]
    needed = {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    if any(name.startswith("lstm_head.") for name in arrays):
        needed |= {"lstm_head.weight_ih_l0", "lstm_head.weight_hh_l0"}
        needed |= {f"mlp_head.{place}.{part}" for place in (0, 2) for part in ("weight", "bias")}
    if missing := sorted(needed - arrays.keys()):
        raise CheckpointError(
            f"{state.where}: the prompt encoder misses {', '.join(missing)}.", _SAVE
        )
    if any(name.startswith("lstm_head.") for name in arrays):
        # PEFT's is the same, as it is from here.
        try:
            return evaluate_prompt_encoder(PromptEncoderState("LSTM", arrays)), dtype
        except CheckpointError as error:
            raise CheckpointError(f"{state.where}: {error.problem}", error.fix) from error
    hidden = torch.from_numpy(table)
    try:
        for layer in layers:
            weight, bias = (
                torch.from_numpy(arrays[f"{layer}.{part}"]) for part in ("weight", "bias")
            )
            hidden = linear(hidden, weight, bias)
            if layer != layers[-1]:
                hidden = gelu(hidden, approximate="tanh") if two else relu(hidden)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{state.where}: the prompt encoder's layers do not fit one another ({reason}).", _SAVE
        ) from error
    tokens: NDArray[np.float32] = hidden.numpy()
    return tokens, dtype


def _check_count(where: str, tokens: NDArray[np.float32], count: int | None, task: str) -> None:
    if count is not None and tokens.shape[0] != count:
        raise CheckpointError(
            f"{where}: total_virtual_tokens of task {task!r} is {count}, but the archive holds "
            f"{tokens.shape[0]}.",
            "The config and the weights come from two trainings. Save both again together.",
        )


def _check_positions(where: str, config: dict[str, Any]) -> None:
    """The P-Tuning adapter's tokens have no learned position, which those before a text do have."""
    kind = config.get("position_embedding_type", "learned_absolute")
    if kind == "learned_absolute":
        raise CheckpointError(
            f"{where}: position_embedding_type is learned_absolute, and NeMo's P-Tuning adapter "
            "gives its virtual tokens none of these positions, as no model of transformers can.",
            "Train over a base with rotary positions.",
        )
