"""A manifest made by hand, for what needs no bundle around it."""

from __future__ import annotations

from typing import Any

import msgspec

from ptdeploy.bundle import Graph, Limits, Manifest
from ptdeploy.bundle.schema import PromptInfo, SourceInfo
from ptdeploy.bundle.task import Task, TensorSpec


def made_manifest(base: str = "bert-tiny", **changes: Any) -> Manifest:
    """Of a classifier with five virtual tokens and three labels, in fp32 for ONNX Runtime."""
    manifest = Manifest(
        versions={"ptdeploy": "0.1", "onnxruntime": "1.23"},
        target="ort",
        device="cpu",
        precision="fp32",
        task=Task.SEQ_CLS,
        inputs=(TensorSpec("input_ids", "int64", ("batch", "sequence"), "token ids"),),
        outputs=(TensorSpec("logits", "float32", ("batch", 3), "class scores"),),
        prompt=PromptInfo("P_TUNING, evaluated", 5, 32, "", None),
        source=SourceInfo("peft", "default", {}, base, "", "bert"),
        limits=Limits(59, 64, 101),
        graph=Graph("plain", "attention as it is"),
        files=(),
    )
    return msgspec.structs.replace(manifest, **changes)
