"""What reading a bundle and reading a pack have in common: a manifest, and the files it lists."""

from __future__ import annotations

import errno
import os
from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Generic, TypeVar

import msgspec

from ptdeploy.bundle.held import Held
from ptdeploy.bundle.schema import (
    FORMAT,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    MOST_BYTES,
    PACK_FORMAT,
    FileEntry,
    Header,
)
from ptdeploy.errors import BundleError
from ptdeploy.files import POINTER_FIX, POINTER_PROBLEM, is_pointer_text, read_regular

_M = TypeVar("_M")
# What a folder is by its manifest's format, and what to do with it.
_OTHERS = {
    FORMAT: ("a bundle", "Load it with ptdeploy.load, or run it with ptdeploy run."),
    PACK_FORMAT: (
        "a pack, which holds a prompt and no engine",
        "Put it into a bundle (ptdeploy prompt add BUNDLE PACK), or load it into an open engine "
        "(engine.load_prompt).",
    ),
}


@dataclass(frozen=True)
class Kind(Generic[_M]):
    """A kind of folder with a manifest: what its manifest is, and how to make such a folder."""

    type: type[_M]
    format: str
    version: int
    noun: str
    make: str


def hold(path: Path, kind: Kind[_M]) -> Held:
    """A folder held open. Raises BundleError if there is none, or it cannot be read."""
    try:
        return Held(path)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EMFILE, errno.ENFILE):
            raise BundleError(f"{path}: cannot be read ({error.strerror}).") from error
        raise BundleError(f"{path}: no such {kind.noun} folder.") from error


def read_manifest(held: Held, kind: Kind[_M]) -> _M:
    """The manifest of a folder of that kind. Raises BundleError unless it is one, strictly."""
    path, file = held.path, held.path / MANIFEST_NAME
    try:
        raw = held.read(MANIFEST_NAME, MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EISDIR, errno.ELOOP):
            raise BundleError(f"{file}: cannot be read ({error.strerror}).") from error
        raise BundleError(
            f"{path}: has no {MANIFEST_NAME}, so it is no {kind.noun}.",
            f"Make one with: {kind.make}",
        ) from error
    if len(raw) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{file}: larger than {MAX_MANIFEST_BYTES} bytes, not a manifest.")
    if is_pointer_text(raw):
        raise BundleError(f"{file}: {POINTER_PROBLEM}", POINTER_FIX)
    try:
        # msgspec does not look at the bytes of names it does not know.
        raw.decode()
        header = msgspec.json.decode(raw, type=Header)
        if (other := _OTHERS.get(header.format)) and header.format != kind.format:
            raise BundleError(f"{file}: is {other[0]}, not a {kind.noun}.", other[1])
        if header.format != kind.format or header.format_version != kind.version:
            raise BundleError(
                f"{file}: is {header.format!r} version {header.format_version}; this ptdeploy "
                f"reads {kind.format!r} version {kind.version}.",
                f"Compile the checkpoint again, or install the ptdeploy that made the {kind.noun}.",
            )
        return msgspec.json.decode(raw, type=kind.type)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(
            f"{file}: not a valid manifest ({error}).",
            "Compile the checkpoint again, or install the ptdeploy that made it.",
        ) from error


def is_foreign(path: Path) -> bool:
    """Whether a folder's manifest.json is another tool's: sound JSON with no format of ours."""
    try:
        found = msgspec.json.decode(read_regular(path / MANIFEST_NAME, MAX_MANIFEST_BYTES))
    except (OSError, ValueError, RecursionError):
        return False
    return not isinstance(found, dict) or found.get("format") not in _OTHERS


def check_files(
    held: Held, files: Iterable[FileEntry], kept: Container[str], hashed: Container[str]
) -> None:
    """Raises BundleError unless all files are inside the folder, once each, and as listed.

    `kept` are the paths of those that are held open from now on, `hashed` of those whose bytes are
    held against their hash; of the others the size is.
    """
    seen = set()
    for entry in files:
        if entry.path in seen:
            raise BundleError(f"{held.path / MANIFEST_NAME}: lists {entry.path!r} twice.")
        seen.add(entry.path)
        _check_file(held, entry, entry.path in kept)
        if entry.path in hashed:
            check_hash(held, entry)


def _check_file(held: Held, entry: FileEntry, keep: bool) -> None:
    """Its path, its kind and its size.

    A link may lead anywhere, as in the hub's cache: what it leads to must be a regular file of
    the listed size and hash, so that nothing can be read that the bundle does not hold already.
    """
    inside = PurePosixPath(entry.path)
    where = f"{held.path / MANIFEST_NAME}: {entry.path!r}"
    if (
        not entry.path
        or "\\" in entry.path
        or "\0" in entry.path
        or inside.is_absolute()
        or ".." in inside.parts
    ):
        raise BundleError(f"{where} leaves the bundle's folder.")
    file = held.path / inside
    try:
        size = held.size(entry.path) if keep else held.look(entry.path)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise BundleError(f"{where} is a link that leads back to itself.") from error
        if error.errno in (errno.EACCES, errno.EMFILE, errno.ENFILE, errno.EIO):
            raise BundleError(f"{file}: cannot be read ({error.strerror}).") from error
        if os.path.islink(file):
            raise BundleError(
                f"{file}: is a link to no file.", "Copy what the links lead to, too: cp -rL"
            ) from error
        raise BundleError(f"{file}: is missing.", "Copy the whole bundle folder again.") from error
    except ValueError as error:  # a name that no file system can hold
        raise BundleError(f"{file}: is missing.", "Copy the whole bundle folder again.") from error
    if size != entry.size:
        try:
            start = held.read(entry.path, 1025)
        except OSError as error:
            raise BundleError(f"{file}: cannot be read ({error.strerror}).") from error
        if is_pointer_text(start):
            raise BundleError(f"{file}: {POINTER_PROBLEM}", POINTER_FIX)
        raise BundleError(
            f"{file}: has {size} bytes, but the manifest says {entry.size}.",
            "The file is damaged. Copy the whole bundle folder again.",
        )
    _check_cost(held, entry)


def _check_cost(held: Held, entry: FileEntry) -> None:
    """That reading it takes no longer than its place on a disk accounts for."""
    file, most = held.path / entry.path, MOST_BYTES.get(entry.role, entry.size)
    if entry.size > most:
        raise BundleError(
            f"{file}: has {entry.size} bytes; at most {most} are read of a file with the role "
            f"{entry.role!r}.",
            "Compile the checkpoint again.",
        )
    try:
        hollow = held.is_hollow(entry.path)
    except OSError as error:
        raise BundleError(f"{file}: cannot be read ({error.strerror}).") from error
    if hollow:
        raise BundleError(
            f"{file}: has {entry.size} bytes, but nearly all of them are holes, which are on no "
            "disk.",
            "The file is damaged. Copy the whole bundle folder again.",
        )


def check_hash(held: Held, entry: FileEntry) -> None:
    try:
        found = held.sha256(entry.path, entry.size)
    except OSError as error:
        raise BundleError(
            f"{held.path / entry.path}: cannot be read ({error.strerror})."
        ) from error
    if found != entry.sha256:
        raise BundleError(
            f"{held.path / entry.path}: its SHA-256 is not the manifest's.",
            "The file was changed or damaged. Copy the whole bundle folder again.",
        )
