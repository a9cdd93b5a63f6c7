"""The one type that every checkpoint format is read into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ptdeploy.bundle.task import Task
from ptdeploy.errors import CheckpointError

# What makes a prompt of its embedding table: P-Tuning's two, prefix tuning's projection, and what
# CPT has learned to add to the embeddings of its context.
EncoderKind = Literal["MLP", "LSTM", "projection", "delta"]
# PEFT's names of the kinds of prompt that are read: virtual tokens that are run (Lester et al.
# 2021, Liu et al. 2021), and keys and values of every layer (Li and Liang 2021, Eyuboglu et al.
# 2025).
PeftKind = Literal[
    "P_TUNING", "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "CPT", "PREFIX_TUNING", "CARTRIDGE"
]
# And what a tensor by itself can be, which PEFT has no loader for; NONE is a base model alone.
PromptKind = PeftKind | Literal["VIRTUAL_TOKENS", "PREFIX_KV", "NONE"]
KINDS: tuple[PeftKind, ...] = get_args(PeftKind)
PREFIX_KINDS: tuple[PromptKind, ...] = ("PREFIX_TUNING", "CARTRIDGE")
# What a multitask prompt has of each task, by PEFT's names.
FACTORS = ("prefix_task_cols", "prefix_task_rows")


class NoTaskNamed(CheckpointError):
    """A checkpoint that does not say which task it was trained for, and none was given."""


@dataclass(frozen=True)
class PromptEncoderState:
    """A prompt encoder's tensors: its embedding table and what is above it.

    `tensors` has PEFT's names without the `prompt_encoder.<adapter>.` prefix, for instance
    `embedding.weight` and `mlp_head.0.weight`; all float32.
    """

    kind: EncoderKind
    tensors: Mapping[str, NDArray[np.float32]] = field(repr=False)

    @property
    def hidden_size(self) -> int:
        """The width of the prompt encoder's hidden layers."""
        if self.kind == "LSTM":
            return int(self.tensors["lstm_head.weight_hh_l0"].shape[1])
        first = {"MLP": "mlp_head.0.weight", "projection": "transform.0.weight"}.get(self.kind)
        table = self.tensors["embedding.weight"]
        return int(table.shape[1] if first is None else self.tensors[first].shape[0])

    @property
    def num_layers(self) -> int:
        """LSTM layers; 2 for the others that have layers, where PEFT ignores the setting."""
        if self.kind != "LSTM":
            return 0 if self.kind == "delta" else 2
        return sum(
            1
            for name in self.tensors
            if name.startswith("lstm_head.weight_ih_l") and not name.endswith("_reverse")
        )


@dataclass(frozen=True)
class Unusable:
    """A tensor that can be no weight, for its element type or its values, and why.

    Buffers that older versions of transformers kept in state dicts are such, and are left out.
    """

    shape: tuple[int, ...]
    error: CheckpointError


@dataclass(frozen=True)
class BaseReference:
    """The base model as the checkpoint names it: a local folder, a hub id, or nothing."""

    name: str | None
    revision: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A trained prompt, whatever format it was stored in.

    At least one of `virtual_tokens` (the evaluated prompt, shape (num_virtual_tokens, token_dim),
    float32) and `encoder` (from which it is evaluated) is there; or, of the kinds that have none,
    `prefix_kv`, float32 (layers, 2, kv heads, num_virtual_tokens, head dim), whose `token_dim` is
    the width of a layer's keys. `projected` says that a projection made it, which is `encoder` if
    it was saved;
    `text_from_zero` says that with its prefix KV a text's positions began at 0, as without.
    `task_id` is the one of several trained tasks that was asked for, and `all_tasks` what the
    prompts of all of them are made of, by PEFT's names, float32 (see multitask.of_task).
    `weights` holds the base model's tensors that the checkpoint overrides, by their name in the
    base model: the trained head at least, every weight for a full state dict; `copied` names those
    that PEFT trained in a copy of a module, beside the base's own, each with that module's name.
    `text_embeddings`, float32 (vocabulary, embedding dim), are the token embeddings that PEFT runs
    for a text beside virtual tokens, where it trained them apart from the base model's.
    `untrained` has of weights in `copied` what a state dict has of the base's own beside the copy.
    `unusable` are tensors under such names that are no finite floating point numbers: only the
    base model says whether any of them matters.
    """

    path: Path
    weights_file: Path
    format: str
    adapter: str
    task: Task
    num_virtual_tokens: int
    token_dim: int
    kind: PromptKind
    virtual_tokens: NDArray[np.float32] | None = field(repr=False)
    prefix_kv: NDArray[np.float32] | None = field(repr=False)
    encoder: PromptEncoderState | None
    weights: Mapping[str, NDArray[np.float32]] = field(repr=False)
    heads: tuple[str, ...]
    base: BaseReference
    dtype: str
    files: Mapping[str, str] = field(repr=False)
    labels: tuple[str, ...] = ()
    projected: bool = False
    task_id: int | None = None
    all_tasks: Mapping[str, NDArray[np.float32]] = field(default_factory=dict, repr=False)
    text_from_zero: bool = False
    unusable: Mapping[str, Unusable] = field(default_factory=dict, repr=False)
    copied: Mapping[str, str] = field(default_factory=dict)
    text_embeddings: NDArray[np.float32] | None = field(default=None, repr=False)
    untrained: Mapping[str, NDArray[np.float32]] = field(default_factory=dict, repr=False)

    @property
    def is_base(self) -> bool:
        """Whether it is a base model alone, without a prompt."""
        return self.kind == "NONE"

    @property
    def of_peft(self) -> bool:
        """Whether PEFT can load it, with the head that it trained."""
        return self.kind in KINDS

    @property
    def num_tasks(self) -> int:
        """How many tasks it was trained for: of a multitask prompt several."""
        return int(self.all_tasks[FACTORS[0]].shape[0]) if self.all_tasks else 1

    @property
    def resumable(self) -> bool:
        """Whether training can go on from it: not where only an encoder's output was saved."""
        kept_whole = self.of_peft and self.kind not in ("P_TUNING", "CPT") and not self.projected
        return self.encoder is not None or kept_whole
