"""From named tensors to a Checkpoint: what both readers share, and every check on the tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from ptdeploy.errors import CheckpointError
from ptdeploy.files import sha256_of
from ptdeploy.source.checkpoint.names import TEXT_EMBEDDINGS
from ptdeploy.source.checkpoint.peft_config import TWO_TRAININGS, PeftConfig
from ptdeploy.source.checkpoint.prefix import prefix_kv
from ptdeploy.source.checkpoint.types import (
    PREFIX_KINDS,
    BaseReference,
    Checkpoint,
    EncoderKind,
    PromptEncoderState,
    Unusable,
)

if TYPE_CHECKING:
    import torch


def _no_prompt(where: Path) -> CheckpointError:
    return CheckpointError(
        f"{where}: holds neither 'prompt_embeddings' nor a prompt encoder.",
        "Pass the file or folder that PEFT's save_pretrained, torch.save(model.state_dict()) "
        "or ptdeploy.save_full wrote.",
    )


def assemble(
    *,
    path: Path,
    weights_file: Path,
    format: str,
    adapter: str,
    config: PeftConfig,
    prompt: torch.Tensor | None,
    encoder: Mapping[str, torch.Tensor],
    weights: Mapping[str, torch.Tensor],
    heads: Iterable[str],
    copied: Mapping[str, str],
    files: Iterable[Path],
    encoder_file: Path | None = None,
    task_id: int | None = None,
    all_tasks: Mapping[str, torch.Tensor] | None = None,
    text_embeddings: torch.Tensor | None = None,
    untrained: Mapping[str, torch.Tensor] | None = None,
) -> Checkpoint:
    """Check shapes against the config and values against NaN, and build the Checkpoint.

    `all_tasks` are what a multitask prompt of several tasks is made of, `prompt` the one's of
    `task_id`.
    Raises CheckpointError naming the tensor, its file and what it should have been.
    """
    where = weights_file
    several = {name: finite(where, name, one) for name, one in sorted((all_tasks or {}).items())}
    state = encoder_state(encoder_file or where, config, encoder)
    virtual_tokens, prefix = _stored_prompt(where, config, prompt)
    if state is not None:
        _check_table(
            encoder_file or where, "embedding.weight", state.tensors["embedding.weight"], config
        )
    if virtual_tokens is None and prefix is None and state is None:
        raise _no_prompt(where)
    text = text_embeddings
    # Buffers of whole numbers are no weights.
    before = {n: one for n, one in (untrained or {}).items() if one.dtype.is_floating_point}
    heads = tuple(sorted(heads))
    usable, unusable = usable_weights(where, weights, heads)
    first = prompt if prompt is not None else encoder["embedding.weight"]
    return Checkpoint(
        path=path,
        weights_file=weights_file,
        format=format,
        adapter=adapter,
        task=config.task,
        num_virtual_tokens=config.num_virtual_tokens,
        token_dim=int(config.token_dim or 0) if prefix is not None else int(first.shape[1]),
        kind=config.kind,
        virtual_tokens=virtual_tokens,
        prefix_kv=prefix,
        encoder=state,
        weights=usable,
        heads=heads,
        base=BaseReference(config.base_name, config.base_revision),
        dtype=str(encoder.get("embedding.weight", first).dtype).removeprefix("torch."),
        files={file.name: sha256_of(file) for file in files},
        unusable=unusable,
        projected=config.projected,
        task_id=task_id,
        all_tasks=several,
        copied=copied,
        text_embeddings=None if text is None else finite(where, TEXT_EMBEDDINGS, text),
        untrained={name: finite(where, name, one) for name, one in before.items()},
    )


def _stored_prompt(
    where: Path, config: PeftConfig, prompt: torch.Tensor | None
) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
    """The virtual tokens, or the prefix KV of kinds that have one; P-Tuning may have neither."""
    if prompt is None:
        if config.kind == "P_TUNING":
            return None, None
        raise CheckpointError(
            f"{where}: holds no 'prompt_embeddings', but its config says {config.kind}.",
            TWO_TRAININGS,
        )
    found = finite(where, "prompt_embeddings", prompt)
    if config.kind in PREFIX_KINDS:
        return None, prefix_kv(where, found, config)
    _check_table(where, "prompt_embeddings", found, config)
    return found, None


def usable_weights(
    where: Path, weights: Mapping[str, torch.Tensor], heads: Collection[str]
) -> tuple[dict[str, NDArray[np.float32]], dict[str, Unusable]]:
    """The weights that can be some, and those that cannot; a head's must."""
    usable: dict[str, NDArray[np.float32]] = {}
    unusable: dict[str, Unusable] = {}
    for name, tensor in weights.items():
        try:
            usable[name] = finite(where, name, tensor)
        except CheckpointError as error:
            if name in heads:
                raise
            unusable[name] = Unusable(tuple(tensor.shape), error)
    return usable, unusable


def encoder_state(
    where: Path, config: PeftConfig, tensors: Mapping[str, torch.Tensor]
) -> PromptEncoderState | None:
    """What makes a prompt, of its tensors by PEFT's names; None of no tensors.

    Raises CheckpointError if they are not those of the config's kind.
    """
    if not tensors:
        return None
    kind = config.made_by
    if kind is None:
        raise CheckpointError(
            f"{where}: holds a prompt encoder, but the config says {config.kind}.",
            TWO_TRAININGS,
        )
    if "embedding.weight" not in tensors:
        raise CheckpointError(
            f"{where}: the prompt encoder has no 'embedding.weight'.",
            "Save the whole model.state_dict() of the model that was trained.",
        )
    found = next((kind for first, kind in _LAYERS.items() if _any(tensors, first)), "MLP")
    if found != kind:
        raise CheckpointError(
            f"{where}: its prompt encoder is of {found}, but the config says {kind}.", TWO_TRAININGS
        )
    needed = _needed(kind, config.encoder_num_layers)
    missing = sorted(needed - set(tensors))
    if missing:
        raise CheckpointError(
            f"{where}: the {kind} prompt encoder misses {', '.join(missing)}.",
            "Save the whole model.state_dict() of the model that was trained; of one loaded for "
            "inference, save the adapter with save_pretrained.",
        )
    unknown = sorted(set(tensors) - needed - {"embedding.weight"})
    if unknown:
        raise CheckpointError(
            f"{where}: the {kind} prompt encoder has tensors that the config does not account for: "
            f"{', '.join(unknown)}.",
            TWO_TRAININGS,
        )
    return PromptEncoderState(kind, {n: finite(where, n, t) for n, t in sorted(tensors.items())})


# Whose layers' names start so.
_LAYERS: dict[str, EncoderKind] = {
    "lstm_head.": "LSTM",
    "transform.": "projection",
    "delta_embedding.": "delta",
}


def _any(names: Iterable[str], start: str) -> bool:
    return any(name.startswith(start) for name in names)


def _needed(kind: EncoderKind, layers: int) -> set[str]:
    """The names of an encoder's tensors above its embedding table, an LSTM's of so many layers."""
    if kind == "delta":
        return {"delta_embedding.weight"}
    head, places = {
        "MLP": ("mlp_head", (0, 2, 4)),
        "LSTM": ("mlp_head", (0, 2)),
        "projection": ("transform", (0, 2)),
    }[kind]
    names = {f"{head}.{place}.{part}" for place in places for part in ("weight", "bias")}
    if kind == "LSTM":
        names |= {
            f"lstm_head.{part}_l{layer}{direction}"
            for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            for layer in range(layers)
            for direction in ("", "_reverse")
        }
    return names


def _check_table(where: Path, name: str, table: NDArray[np.float32], config: PeftConfig) -> None:
    if not table.size:
        raise emptied(where, name)
    if table.ndim != 2:
        raise CheckpointError(f"{where}: {name} has shape {table.shape}, not two dimensions.")
    rows, columns = table.shape
    if rows != config.num_virtual_tokens:
        raise CheckpointError(
            f"{where}: {name} has {rows} rows, but the config says "
            f"num_virtual_tokens = {config.num_virtual_tokens}.",
            TWO_TRAININGS,
        )
    if config.token_dim is not None and columns != config.token_dim:
        raise CheckpointError(
            f"{where}: {name} has {columns} columns, but the config says "
            f"token_dim = {config.token_dim}.",
            TWO_TRAININGS,
        )


def emptied(where: Path, name: str) -> CheckpointError:
    """The error for a tensor whose values are elsewhere."""
    return CheckpointError(
        f"{where}: {name} is empty, as where DeepSpeed or FSDP keeps the values in shards.",
        "Save the gathered state dict: zero_to_fp32.py for DeepSpeed, FULL_STATE_DICT for FSDP.",
    )


def finite(where: Path, name: str, tensor: torch.Tensor) -> NDArray[np.float32]:
    """A tensor as float32. Raises CheckpointError unless it is dense, floating point and finite."""
    if tensor.is_meta or tensor.is_quantized or tensor.layout.__str__() != "torch.strided":
        raise CheckpointError(
            f"{where}: {name} is not a plain dense tensor.",
            "Save it dense and without quantization.",
        )
    if not tensor.dtype.is_floating_point:
        raise CheckpointError(
            f"{where}: {name} holds {tensor.dtype} values, not floating point.",
            "Save it as it was trained, in float32, bfloat16 or float16.",
        )
    # float32 holds every float16 and bfloat16 exactly, so nothing is rounded here.
    array = cast("NDArray[np.float32]", tensor.detach().float().numpy())
    if not np.isfinite(array).all():
        bad = int(array.size - np.isfinite(array).sum())
        raise CheckpointError(
            f"{where}: {name} holds {bad} NaN or infinite values of {array.size}.",
            "The training diverged; deploy an earlier checkpoint.",
        )
    return array
