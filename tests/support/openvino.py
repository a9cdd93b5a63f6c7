"""Bundles for OpenVINO, made of those for ONNX Runtime."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from ptdeploy.files import sha256_of

Change = Callable[[onnx.ModelProto], None]


def copied(bundle: Path, folder: Path, change: Change | None = None, **fields: Any) -> Path:
    """A bundle of ONNX Runtime's as one of OpenVINO's: its graph is as good for it.

    With `change` its graph is changed, and all hashes are right again.
    """
    shutil.copytree(bundle, folder)
    manifest = {**json.loads((folder / "manifest.json").read_text()), "target": "openvino"}
    if change is not None:
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        change(model)
        onnx.save(model, folder / "model.onnx")
    for entry in manifest["files"]:
        path = folder / entry["path"]
        entry.update(size=path.stat().st_size, sha256=sha256_of(path))
    (folder / "manifest.json").write_text(json.dumps({**manifest, **fields}))
    return folder
