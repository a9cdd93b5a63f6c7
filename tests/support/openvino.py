"""Bundles for OpenVINO, made of those for ONNX Runtime."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save
from support.damage import PROMPT, edit, replace, the_graph, the_prompt

from ptdeploy.backends.telemetry import import_openvino
from ptdeploy.files import sha256_of

Change = Callable[[onnx.ModelProto], None]


def cpu_has_bf16() -> bool:
    """Whether OpenVINO is here, and finds that this CPU computes in bfloat16."""
    if importlib.util.find_spec("openvino") is None:
        return False
    can = import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "BF16" in can


needs_bf16 = pytest.mark.skipif(not cpu_has_bf16(), reason="this CPU has no bfloat16")


def copied(bundle: Path, folder: Path, change: Change | None = None, **fields: Any) -> Path:
    """A bundle of ONNX Runtime's as one of OpenVINO's: its graph, of rows apart, is as good for it.

    With `change` its graph is changed, and all hashes are right again.
    """
    shutil.copytree(bundle, folder)
    take_rows_apart(folder)
    if change is not None:
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        change(model)
        onnx.save(model, folder / "model.onnx")

    def turn(manifest: dict[str, Any]) -> None:
        manifest.update(target="openvino", **fields)
        for entry in manifest["files"]:
            path = folder / entry["path"]
            entry.update(size=path.stat().st_size, sha256=sha256_of(path))

    edit(folder, turn)
    return folder


def take_rows_apart(bundle: Path) -> None:
    """Have a graph that keeps joined rows apart take rows of one token each, as OpenVINO's."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    inputs = the_graph(manifest)["inputs"]
    names = [one["name"] for one in inputs if one["role"] == "offsets"]
    if not names:
        return
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    (given,) = [one for one in model.graph.input if one.name in names]
    model.graph.input.remove(given)
    place = onnx.numpy_helper.from_array(np.zeros((3, 1), np.int64), given.name)
    model.graph.initializer.append(place)
    for node in model.graph.node:
        if node.op_type == "GroupQueryAttention":
            del node.input[7:]
    replace(bundle, "model.onnx", model.SerializeToString())
    edit(bundle, lambda manifest: the_graph(manifest)["inputs"].pop(len(inputs) - 1))


def behind(bundle: Path, folder: Path, tokens: int) -> Path:
    """A model that writes, as OpenVINO's, behind another prompt: a random one of so many tokens."""
    copied(bundle, folder)
    random = np.random.default_rng(tokens)
    path = folder / "prompts" / "default" / "prompt.safetensors"
    arrays = load_file(path)
    layers, two, heads, _, width = arrays["prefix_kv"].shape
    shapes = {
        "virtual_tokens": (tokens, arrays["virtual_tokens"].shape[1]),
        "prefix_kv": (layers, two, heads, tokens, width),
    }
    made = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    replace(folder, PROMPT, save(made))

    def change(manifest: dict[str, Any]) -> None:
        the_prompt(manifest).update(
            num_virtual_tokens=tokens,
            prefix_kv=list(shapes["prefix_kv"]),
            sha256=hashlib.sha256(made["virtual_tokens"].tobytes()).hexdigest(),
        )

    edit(folder, change)
    return folder


def keep_kv_in(bundle: Path, kv: str) -> None:
    """Make a bundle whose manifest lists no engine.json one that keeps keys and values in `kv`."""
    info = json.dumps({"kv_precision": kv}).encode()

    def change(manifest: dict[str, Any]) -> None:
        entry = {"path": "engine.json", "role": "engine_info", "of": "model"}
        digest = hashlib.sha256(info).hexdigest()
        manifest["files"].append({**entry, "size": len(info), "sha256": digest})

    (bundle / "engine.json").write_bytes(info)
    edit(bundle, change)
