"""engine.json: what an engine computes in and keeps its KV cache in, where its graph is silent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec

from ptdeploy.bundle import Bundle
from ptdeploy.errors import BundleError
from ptdeploy.files import json_document

KVPrecision = Literal["f32", "f16", "bf16", "u8"]
KV_PRECISIONS: tuple[str, ...] = get_args(KVPrecision)
INFO = "engine.json"
_MAX_BYTES = 64 * 1024
_MOST = 1 << 16


class EngineInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The type of the KV cache, and how products with quantized weights are computed.

    They are computed in int8, with a scale for each `group` activations; 0 computes in float32.
    A bundle without the file has a KV cache in float32 and no such products.
    """

    kv_precision: KVPrecision = "f32"
    group: Annotated[int, msgspec.Meta(ge=0, le=_MOST)] = 0


def write_info(info: EngineInfo, folder: Path) -> None:
    (folder / INFO).write_bytes(json_document(info))


def engine_info(bundle: Bundle) -> EngineInfo:
    """What a bundle's engine.json says. Raises BundleError if `write_info` did not write it."""
    if bundle.entry("engine_info") is None:
        return EngineInfo()
    with bundle.reading("engine_info") as path:
        if path is None or path.stat().st_size > _MAX_BYTES:
            raise BundleError(
                f"{bundle.file('engine_info')}: does not describe an engine.",
                "Compile the checkpoint again.",
            )
        try:
            return msgspec.json.decode(path.read_bytes(), type=EngineInfo)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BundleError(
                f"{bundle.file('engine_info')}: does not describe an engine ({error}).",
                "Compile the checkpoint again.",
            ) from error
