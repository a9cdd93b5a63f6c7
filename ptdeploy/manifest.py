"""The manifest of a compilation, from what its stages gave."""

from __future__ import annotations

import hashlib
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ptdeploy.base import BaseModel
from ptdeploy.bundle import FileEntry, Generation, Limits, Manifest, PromptInfo, SourceInfo
from ptdeploy.checkpoint import Checkpoint
from ptdeploy.program import Signature
from ptdeploy.prompt import Prompt
from ptdeploy.task import Task

_PACKAGES = ("ptdeploy", "numpy", "onnx", "onnxruntime", "onnxscript", "peft", "torch")
_MAX_NEW_TOKENS = 128


def versions() -> dict[str, str]:
    """The versions that decide what a compilation gives."""
    found = {"python": platform.python_version()}
    for package in (*_PACKAGES, "onnxruntime-gpu", "tokenizers", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def build_manifest(
    *,
    checkpoint: Checkpoint,
    base: BaseModel,
    prompt: Prompt,
    signature: Signature,
    vocab_size: int,
    generation_config: Any,
    target: str,
    device: str,
    precision: str,
    files: tuple[FileEntry, ...],
) -> Manifest:
    """Say what the bundle is; sizes, hashes and parity are filled in later."""
    return Manifest(
        versions=versions(),
        target=target,
        device=device,
        precision=precision,
        task=checkpoint.task,
        inputs=signature.inputs,
        outputs=signature.outputs,
        prompt=PromptInfo(
            kind="evaluated prompt"
            if checkpoint.encoder is None
            else f"{checkpoint.encoder.kind} prompt encoder",
            num_virtual_tokens=prompt.num_virtual_tokens,
            token_dim=checkpoint.token_dim,
            sha256=prompt.sha256,
            prefix_kv=None if prompt.prefix_kv is None else prompt.prefix_kv.shape,
        ),
        source=SourceInfo(
            format=checkpoint.format,
            adapter=checkpoint.adapter,
            files=dict(checkpoint.files),
            base_model=_public_name(checkpoint.base.name or base.name),
            base_config_sha256=_config_hash(base),
            architecture=str(base.config.model_type),
        ),
        limits=Limits(
            max_sequence=base.max_positions - prompt.num_virtual_tokens,
            max_context=base.max_positions,
            vocab_size=vocab_size,
        ),
        labels=_labels(checkpoint, base),
        generation=_generation(checkpoint, base, generation_config),
        files=files,
    )


def _public_name(name: str) -> str:
    """A hub id as it is, a folder by its last part: a bundle holds no path of its maker's."""
    return Path(name).resolve().name if Path(name).is_absolute() or Path(name).exists() else name


def _config_hash(base: BaseModel) -> str:
    ignored = ("_name_or_path", "transformers_version", "id2label", "label2id", "num_labels")
    config = {k: v for k, v in base.config.to_dict().items() if k not in ignored}
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()


def _labels(checkpoint: Checkpoint, base: BaseModel) -> tuple[str, ...]:
    if checkpoint.task is Task.CAUSAL_LM:
        return ()
    if checkpoint.labels:
        return checkpoint.labels
    names = base.config.id2label or {}
    return tuple(str(names.get(i, f"LABEL_{i}")) for i in range(base.num_labels))


def _generation(checkpoint: Checkpoint, base: BaseModel, config: Any) -> Generation | None:
    if checkpoint.task is not Task.CAUSAL_LM:
        return None
    eos = getattr(config, "eos_token_id", None)
    if eos is None:
        eos = base.config.eos_token_id
    ids = tuple(eos) if isinstance(eos, (list, tuple)) else () if eos is None else (int(eos),)
    return Generation(eos_token_ids=ids, max_new_tokens=_MAX_NEW_TOKENS)
