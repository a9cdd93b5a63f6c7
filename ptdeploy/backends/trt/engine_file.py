"""engine.json: what an engine was built for and how, which the plan itself does not say."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from ptdeploy.errors import BundleError
from ptdeploy.files import json_document

Flavor = Literal["tensorrt", "rtx"]
Compatibility = Literal["none", "ampere_plus", "same_compute_capability"]
INFO, PLAN = "engine.json", "engine.plan"
# A bundle's element types by TensorRT's names for them.
TYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "int64": "INT64"}
_MAX_BYTES = 4 * 1024 * 1024


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An optimization profile: for each input its least, usual and largest shape."""

    name: Literal["requests", "decode", "prefill"]
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]

    def takes(self, shapes: dict[str, tuple[int, ...]]) -> bool:
        """Whether every input's shape is within its range."""
        return all(
            len(shapes[name]) == len(least)
            and all(a <= b <= c for a, b, c in zip(least, shapes[name], most, strict=True))
            for name, (least, _, most) in self.shapes.items()
        )


class EngineInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a plan was built. `gpu` is empty where it was built ahead of time, without one.

    `compute_capabilities` are those it was built for; empty means what TensorRT-RTX supports, but
    for those that were `left_out`.
    `precisions` counts the graph's operators by the type they compute in; `onnx_sha256` is of the
    model and its weights as the parser got them.
    """

    flavor: Flavor
    version: str
    gpu: str
    compute_capabilities: tuple[str, ...]
    profiles: tuple[Profile, ...]
    tf32: bool
    strip_weights: bool
    version_compatible: bool
    hardware_compatibility: Compatibility
    workspace: int | None
    optimization_level: int | None
    precisions: dict[str, dict[str, int]]
    onnx_sha256: str
    left_out: tuple[str, ...] = ()


def write_info(info: EngineInfo, folder: Path) -> None:
    (folder / INFO).write_bytes(json_document(info))


def read_info(path: Path | None) -> EngineInfo:
    """Raises BundleError if there is no such file or it is not what `write_info` writes."""
    if path is None:
        raise BundleError("The bundle lists no file with the role 'engine_info'.")
    if path.stat().st_size > _MAX_BYTES:
        raise BundleError(f"{path}: larger than {_MAX_BYTES} bytes, not an engine's description.")
    try:
        return msgspec.json.decode(path.read_bytes(), type=EngineInfo)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(
            f"{path}: does not describe an engine ({error}).", "Compile the checkpoint again."
        ) from error
