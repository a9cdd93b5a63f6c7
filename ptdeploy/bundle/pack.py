"""A pack: one prompt in a folder of its own, which any bundle of its engine can take."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from ptdeploy.bundle.held import Held
from ptdeploy.bundle.manifest_file import Kind, check_files, hold, read_manifest
from ptdeploy.bundle.read import Bundle, whole
from ptdeploy.bundle.schema import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    PACK_FORMAT,
    BaseInfo,
    FileEntry,
    Header,
    Manifest,
    PromptInfo,
    is_prompt_name,
)
from ptdeploy.bundle.signature import AGAIN
from ptdeploy.bundle.task import Task
from ptdeploy.bundle.whose import OF_PROMPT
from ptdeploy.errors import BundleError
from ptdeploy.files import json_document, read_regular

PACK_VERSION = 1


class PackManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A pack's `manifest.json`, described in docs/bundle.md and docs/pack.schema.json.

    `name` is what the prompt is called unless it is given another name. `target`, `device`,
    `precision` and `engine_sha256` are of the engine that it was proven over, `base` of the base
    model that both were made from.
    """

    format: Literal["ptdeploy-prompt"] = "ptdeploy-prompt"
    format_version: int = PACK_VERSION
    versions: dict[str, str]
    name: str
    task: Task
    target: str
    device: str
    precision: str
    engine_sha256: str
    base: BaseInfo
    prompt: PromptInfo
    files: tuple[FileEntry, ...]


PACK = Kind(
    PackManifest,
    PACK_FORMAT,
    PACK_VERSION,
    "pack",
    "ptdeploy compile CHECKPOINT --over BUNDLE -o PACK",
)


@dataclass(frozen=True)
class Pack:
    """A pack on disk whose manifest was read and whose files were checked against it.

    Its files are held open; one that was just written is not held. `notes` are what compile has to
    say of it.
    """

    path: Path
    manifest: PackManifest
    held: Held | None = field(default=None, repr=False, compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def name(self) -> str:
        """What the prompt is called unless it is given another name."""
        return self.manifest.name

    def over(self, engine: Manifest, name: str | None = None) -> Bundle:
        """The bundle that has this prompt alone, its default, beside that engine.

        Its path and files are the pack's: the engine's own files are in none of them.
        """
        name = name or self.name
        files = tuple(msgspec.structs.replace(one, of=name) for one in self.manifest.files)
        manifest = msgspec.structs.replace(
            engine, prompts={name: self.manifest.prompt}, default_prompt=name, files=files
        )
        return Bundle(self.path, manifest, self.held)


def read_pack(path: str | Path, hashes: bool = True) -> Pack:
    """Read a pack and check every file in its manifest; `hashes=False` checks sizes only.

    Raises BundleError on a missing or oversize manifest, an unknown version, a field that is not
    in the schema, a name that no prompt can have, a file that is no prompt's, a path that leaves
    the folder, and a missing or changed file.
    """
    return whole(path, lambda: _read(Path(path), hashes))


def is_pack(path: Path) -> bool:
    """Whether `path` looks like a pack, whole or damaged: a folder with a manifest of one."""
    return manifest_format(path) == PACK_FORMAT


def manifest_format(path: Path) -> str | None:
    """What a folder's manifest says that it is of; None if it has none that can be read."""
    try:
        raw = read_regular(path / MANIFEST_NAME, MAX_MANIFEST_BYTES)
        return msgspec.json.decode(raw, type=Header).format
    except (OSError, ValueError, RecursionError):
        return None


def pack_schema() -> bytes:
    """The JSON Schema of a pack's manifest, as docs/pack.schema.json publishes it."""
    return json_document(msgspec.json.schema(PackManifest))


def _read(path: Path, hashes: bool) -> Pack:
    held = hold(path, PACK)
    manifest = read_manifest(held, PACK)
    for problem in _problems(manifest):
        raise BundleError(f"{path / MANIFEST_NAME}: {problem}.", AGAIN)
    every = {one.path for one in manifest.files}
    check_files(held, manifest.files, every, every if hashes else ())
    return Pack(path, manifest, held)


def _problems(manifest: PackManifest) -> Iterator[str]:
    """What is wrong with names and roles, the first cause first."""
    if not is_prompt_name(manifest.name):
        yield "name is one that no prompt can have"
    if not re.fullmatch(r"[0-9a-f]{64}", manifest.engine_sha256):
        yield "engine_sha256 is no SHA-256"
    roles = set[str]()
    for index, entry in enumerate(manifest.files):
        if entry.role not in OF_PROMPT:
            yield f"files[{index}].role is {entry.role!r}, which is no file of a prompt"
        if entry.role in roles:
            yield f"lists two files with the role {entry.role!r}"
        if entry.of != manifest.name:
            yield f"files[{index}].of is not the pack's name"
        roles.add(entry.role)
    for role in ("prompt", "reference"):
        if role not in roles:
            yield f"lists no file with the role {role!r}"
