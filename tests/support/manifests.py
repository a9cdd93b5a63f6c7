"""A manifest made by hand, for what needs no bundle around it."""

from __future__ import annotations

from typing import Any

import msgspec

from ptdeploy.bundle import DEFAULT_PROMPT, MODEL, Graph, Limits, Manifest
from ptdeploy.bundle.schema import BaseInfo, PromptInfo, SourceInfo
from ptdeploy.bundle.task import Task, TensorSpec

INPUTS = (
    TensorSpec("input_ids", "ids", "int64", ("batch", "sequence"), "token ids"),
    TensorSpec("attention_mask", "mask", "int64", ("batch", "sequence"), "1 for tokens"),
    TensorSpec("virtual_tokens", "table", "float32", ("virtual", 32), "of all prompts"),
)
OUTPUTS = (TensorSpec("logits", "logits", "float32", ("batch", 3), "class scores"),)


def made_manifest(base: str = "bert-tiny", **changes: Any) -> Manifest:
    """Of a classifier with five virtual tokens and three labels, in fp32 for ONNX Runtime."""
    prompt = PromptInfo(
        kind="P_TUNING, evaluated",
        num_virtual_tokens=5,
        token_dim=32,
        sha256="",
        prefix_kv=None,
        labels=("no", "maybe", "yes"),
        source=SourceInfo("peft", "default", {}),
    )
    manifest = Manifest(
        versions={"ptdeploy": "0.1", "onnxruntime": "1.23"},
        target="ort",
        device="cpu",
        precision="fp32",
        task=Task.SEQ_CLS,
        graphs={MODEL: Graph("plain", "attention as it is", INPUTS, OUTPUTS)},
        prompts={DEFAULT_PROMPT: prompt},
        default_prompt=DEFAULT_PROMPT,
        base=BaseInfo(base, "bert", "", ""),
        limits=Limits(64, 101),
        files=(),
    )
    return msgspec.structs.replace(manifest, **changes)


def with_prompt(manifest: Manifest, **changes: Any) -> Manifest:
    """The manifest with some fields of its prompt changed."""
    return manifest.with_prompt(DEFAULT_PROMPT, **changes)


def causal_manifest() -> Manifest:
    """Of a decoder that continues its text over a KV buffer of one layer."""
    two = ("batch", "sequence")
    past = ("batch", 2, "slots", 8)
    inputs = (
        TensorSpec("input_ids", "ids", "int64", two, ""),
        TensorSpec("past_lengths", "lengths", "int64", ("batch",), ""),
        TensorSpec("logits_positions", "positions", "int64", ("kept",), ""),
        TensorSpec("past_key_values.0.key", "past", "float32", past, ""),
        TensorSpec("past_key_values.0.value", "past", "float32", past, ""),
    )
    outputs = (
        TensorSpec("logits", "logits", "float32", ("batch", "kept", 101), ""),
        TensorSpec("present.0.key", "present", "float32", past, ""),
        TensorSpec("present.0.value", "present", "float32", past, ""),
    )
    graph = Graph("fused", "", inputs, outputs)
    return made_manifest(task=Task.CAUSAL_LM, graphs={MODEL: graph})
