"""The manifest of a compilation, from what its stages gave."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ptdeploy.bundle import (
    MODEL,
    BaseInfo,
    FileEntry,
    Graph,
    Limits,
    Manifest,
    PromptInfo,
    Quantization,
    RequestLimits,
    Route,
    SourceInfo,
    TokenizerInfo,
)
from ptdeploy.bundle.signature import Signature
from ptdeploy.errors import InputError
from ptdeploy.program.prompt import Prompt
from ptdeploy.source.base import BaseModel
from ptdeploy.source.checkpoint import Checkpoint
from ptdeploy.source.checkpoint.types import PromptKind
from ptdeploy.source.meaning import Meaning
from ptdeploy.text_files import system_text

# What a prompt is, once it is evaluated.
_KINDS: dict[PromptKind, str] = {
    "P_TUNING": "an evaluated prompt",
    "PROMPT_TUNING": "prompt tuning's virtual tokens",
    "MULTITASK_PROMPT_TUNING": "a multitask prompt's virtual tokens",
    "CPT": "a context-aware prompt's virtual tokens",
    "PREFIX_TUNING": "prefix tuning's prefix KV",
    "CARTRIDGE": "a cartridge's prefix KV",
    "VIRTUAL_TOKENS": "virtual tokens",
    "PREFIX_KV": "a prefix KV",
    "NONE": "no prompt",
}
_PACKAGES = ("ptdeploy", "numpy", "onnx", "onnxruntime", "onnxscript", "peft", "torch")


def versions() -> dict[str, str]:
    """The versions that decide what a compilation gives."""
    found = {"python": platform.python_version()}
    for package in (*_PACKAGES, "onnxruntime-gpu", "openvino", "tokenizers", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def build_manifest(
    *,
    checkpoints: Mapping[str | None, Checkpoint],
    base: BaseModel,
    prompts: Mapping[str | None, Prompt],
    weights_sha256: str,
    signature: Signature,
    meaning: Meaning,
    target: str,
    device: str,
    precision: str,
    route: Route,
    quantization: Quantization | None,
    freeze_kv: bool,
    limits: RequestLimits,
    tokenizer: TokenizerInfo | None,
    files: tuple[FileEntry, ...],
) -> Manifest:
    """Say what the bundle of prompts by these names is, the first the default, or of None, which is
    the base model alone.

    Sizes, hashes and parity come later.
    """
    name, checkpoint = next(iter(checkpoints.items()))
    graph = Graph(route.route, route.reason, signature.inputs, signature.outputs)
    return Manifest(
        versions=versions(),
        target=target,
        device=device,
        precision=precision,
        task=checkpoint.task,
        graphs={MODEL: graph},
        prompts={
            own: prompt_info(checkpoints[own], prompt, meaning, freeze_kv)
            for own, prompt in prompts.items()
            if own is not None
        },
        default_prompt=name,
        base=BaseInfo(
            name=system_text(_public_name(checkpoint.base.name or base.name)),
            architecture=str(base.config.model_type),
            config_sha256=config_sha256(base),
            weights_sha256=weights_sha256,
        ),
        limits=limits.of_engine(),
        quantization=quantization,
        generation=meaning.generation,
        tokenizer=tokenizer,
        files=files,
    )


def prompt_info(
    checkpoint: Checkpoint, prompt: Prompt, meaning: Meaning, freeze_kv: bool
) -> PromptInfo:
    """Say what a prompt is; its parity comes later."""
    return PromptInfo(
        kind=_kind(checkpoint),
        num_virtual_tokens=prompt.num_virtual_tokens,
        token_dim=None if prompt.virtual_tokens is None else checkpoint.token_dim,
        sha256=prompt.sha256,
        prefix_kv=prompt.prefix_kv.shape if prompt.prefix_kv is not None and freeze_kv else None,
        labels=meaning.labels,
        head=meaning.head,
        padding_id=meaning.padding_id if prompt.virtual_tokens is None else None,
        source=SourceInfo(
            format=checkpoint.format,
            adapter=checkpoint.adapter,
            files=dict(checkpoint.files),
            task_id=checkpoint.task_id,
        ),
    )


def _kind(checkpoint: Checkpoint) -> str:
    if checkpoint.encoder is not None and checkpoint.kind == "P_TUNING":
        return f"an {checkpoint.encoder.kind} prompt encoder"
    return _KINDS[checkpoint.kind]


def _public_name(name: str) -> str:
    """A hub id as it is, a folder by its last part: a bundle holds no path of its maker's."""
    return Path(name).resolve().name if Path(name).is_absolute() or Path(name).exists() else name


def config_sha256(base: BaseModel) -> str:
    """The hash of a base model's configuration, without names and labels."""
    ignored = ("_name_or_path", "transformers_version", "id2label", "label2id", "num_labels")
    config = {k: v for k, v in base.config.to_dict().items() if k not in ignored}
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()


def limits(
    base: BaseModel,
    route: Route,
    virtual_tokens: int,
    max_batch: int | None,
    max_context: int | None,
) -> RequestLimits:
    """The model's own limits, or smaller ones that were asked for, in tokens and rows.

    Raises InputError if `max_context` is more than the model has or leaves no room for text.
    """
    positions = base.context(route)
    if max_context is not None and not virtual_tokens < max_context <= positions:
        raise InputError(
            f"--max-context {max_context}: must be more than the {virtual_tokens} virtual tokens "
            f"and at most the model's {positions} positions."
        )
    if max_batch is not None and max_batch < 1:
        raise InputError(f"--max-batch {max_batch}: must be at least 1.")
    context = max_context or positions
    of_engine = Limits(context, base.vocab_size, max_batch, type_vocab_size=base.type_vocab_size)
    return of_engine.beside(virtual_tokens)
