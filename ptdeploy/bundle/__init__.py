"""The bundle: a folder that says what it is. Manifest schema, checked read, atomic write."""

from __future__ import annotations

from ptdeploy.bundle.publish import (
    Destination,
    check_destination,
    check_room,
    publish,
    stage_bundle,
)
from ptdeploy.bundle.read import Bundle, check_hashes, is_bundle, read_bundle, whole
from ptdeploy.bundle.schema import (
    FORMAT,
    FORMAT_VERSION,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    FileEntry,
    GenerationOptions,
    Graph,
    Limits,
    Manifest,
    ParitySummary,
    PromptInfo,
    Quantization,
    Role,
    SourceInfo,
    TokenizerInfo,
    manifest_schema,
    staged,
)

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "MANIFEST_NAME",
    "MAX_MANIFEST_BYTES",
    "Bundle",
    "Destination",
    "FileEntry",
    "GenerationOptions",
    "Graph",
    "Limits",
    "Manifest",
    "ParitySummary",
    "PromptInfo",
    "Quantization",
    "Role",
    "SourceInfo",
    "TokenizerInfo",
    "check_destination",
    "check_hashes",
    "check_room",
    "is_bundle",
    "manifest_schema",
    "publish",
    "read_bundle",
    "stage_bundle",
    "staged",
    "whole",
]
