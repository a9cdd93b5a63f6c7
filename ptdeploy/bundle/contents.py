"""What lies in the folder of a bundle or a pack: what its manifest lists, and anything else."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import msgspec

from ptdeploy.bundle.manifest_file import Kind
from ptdeploy.bundle.pack import PACK
from ptdeploy.bundle.read import BUNDLE
from ptdeploy.bundle.schema import MANIFEST_NAME, MAX_MANIFEST_BYTES, Header
from ptdeploy.errors import OutputError
from ptdeploy.files import read_regular

# What verify leaves beside a manifest whose parity was pending.
COMPLETED = "parity.json"


class _Listed(msgspec.Struct):
    path: str


class _Listing(Header):
    """What every version of the manifest says of its files."""

    files: list[_Listed]


def manifest_of(folder: Path) -> bytes | None:
    """The bytes of a folder's manifest; None if it has none that can be read."""
    try:
        raw = read_regular(folder / MANIFEST_NAME, MAX_MANIFEST_BYTES)
    except OSError:
        return None
    return raw if len(raw) <= MAX_MANIFEST_BYTES else None


def listed_files(raw: bytes | None, *kinds: Kind[Any]) -> set[str] | None:
    """The files of a bundle or a pack of any version by its manifest; None if it is none for
    certain, or of none of these kinds. Many tools call a file manifest.json.
    """
    try:
        listing = msgspec.json.decode(raw or b"", type=_Listing)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if listing.format not in {kind.format for kind in kinds or (BUNDLE, PACK)}:
        return None
    return {MANIFEST_NAME, COMPLETED, *(os.path.normpath(one.path) for one in listing.files)}


def check_in_no_bundle(place: Path, option: str, fix: str) -> None:
    """Raises OutputError where a place to write to is a bundle's or a pack's folder, or in one:
    what is not listed in its manifest would spoil it."""
    whole = place.resolve()
    for folder in (whole, *whole.parents):
        if listed_files(manifest_of(folder)) is not None:
            where = "is" if folder == whole else f"lies in {folder},"
            raise OutputError(
                f"{option}{place}: {where} the folder of a bundle or a pack, which holds its own "
                "files alone.",
                fix,
            )


def others_in(folder: Path, listed: set[str]) -> list[str]:
    """What lies in a bundle's folder and is not the bundle's: files, links, folders without any."""
    parents = _parents(listed)
    found = []
    for root, folders, files in os.walk(folder):
        inside = root[len(str(folder)) :].lstrip(os.sep)
        for name in folders:
            is_folder = not os.path.islink(os.path.join(root, name))
            if os.path.join(inside, name) not in (parents if is_folder else listed):
                found.append(os.path.join(inside, name))
        found += (one for name in files if (one := os.path.join(inside, name)) not in listed)
    return sorted(found)


def _parents(listed: set[str]) -> set[str]:
    """The folders in which such files lie."""
    parents = set[str]()
    for parent in map(os.path.dirname, listed):
        while parent not in parents:
            parents.add(parent)
            parent = os.path.dirname(parent)
    return parents


def remove_files(folder: Path) -> None:
    """Remove what is a bundle's own: its files, the manifest last, and folders left empty."""
    listed = listed_files(manifest_of(folder)) or {MANIFEST_NAME}
    whole = folder.resolve()
    # Never through a link out of the folder.
    inside = {one: (folder / one).resolve().is_relative_to(whole) for one in _parents(listed)}
    for name in sorted(listed - {MANIFEST_NAME}):
        if inside[os.path.dirname(name)]:
            with contextlib.suppress(OSError):
                os.unlink(folder / name)
    with contextlib.suppress(OSError):
        os.unlink(folder / MANIFEST_NAME)
    for root, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(root)
