"""Writing a bundle: staged beside its place, then put there whole; nothing else is touched."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ptdeploy.bundle.contents import (
    COMPLETED,
    check_in_no_bundle,
    listed_files,
    manifest_of,
    others_in,
    remove_files,
)
from ptdeploy.bundle.manifest_file import Kind
from ptdeploy.bundle.pack import Pack, PackManifest
from ptdeploy.bundle.read import BUNDLE, Bundle
from ptdeploy.bundle.schema import MANIFEST_NAME, FileEntry, Manifest
from ptdeploy.bundle.working_folder import LOCK, NEW, OLD, clear_left, working_folder
from ptdeploy.errors import OutputError
from ptdeploy.files import (
    disk_refusal,
    exchange,
    flush,
    json_document,
    nearest_folder,
    rename_new,
    sha256_of,
)

_CD_AGAIN = 'the working folder is of what was replaced, and is gone; enter it again: cd "$PWD"'
_M = TypeVar("_M", Manifest, PackManifest)


@dataclass(frozen=True)
class Destination:
    """Where a bundle, or a pack, may go: `place` is `path` in a folder without links.

    `force` lets it replace one of its `kind`; `replaces` is the only manifest it may replace, if
    not all. `chosen` says whether the command has an option for the place, so that it can be
    another. `notes` are what its user should know once it was published to.
    """

    path: Path
    place: Path
    force: bool
    replaces: bytes | None = None
    kind: Kind[Any] = BUNDLE
    chosen: bool = True
    notes: tuple[str, ...] = ()

    def fix(self, first: str = "") -> str:
        """How to go on: what to do first, or another place where there can be one."""
        return _or_elsewhere(first, self.chosen)

    @property
    def left_alone(self) -> str:
        """What is said of something there that is not replaced."""
        return "--force leaves it alone" if self.replaces is None else "it is left alone"


def check_destination(
    path: Path,
    force: bool,
    replaces: bytes | None = None,
    kind: Kind[Any] = BUNDLE,
    chosen: bool = True,
) -> Destination:
    """Refuse, before any work, a destination that could not be published to.

    Only an older one of its kind without other files in its folder, or an empty folder, is ever
    replaced, and only with `force`. What killed processes left there is cleared, and one that
    they had moved aside is brought back. Raises OutputError.
    """
    try:
        place = _place(path)
        nearest = nearest_folder(place)
        if nearest == place.parent:
            clear_left(place)
        check_in_no_bundle(place.parent, "", _or_elsewhere("", chosen))
        notes: tuple[str, ...] = ()
        if _holds_working_folder(place):
            # A relative path would lead nowhere once the folder that it starts from is gone.
            path, notes = place, (_CD_AGAIN,)
        destination = Destination(path, place, force, replaces, kind, chosen, notes)
        if os.path.lexists(place):
            _check_replaceable(destination)
        with working_folder(nearest, place.name):
            pass
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written to ({error.strerror}).", _or_elsewhere("", chosen)
        ) from error
    return destination


def check_room(destination: Destination, needed: int) -> None:
    """Refuse, before the long work, a disk that has not even `needed` bytes left."""
    try:
        free = shutil.disk_usage(nearest_folder(destination.place)).free
    except OSError:
        return
    if free < needed:
        raise OutputError(
            f"{destination.path}: the bundle takes at least {needed / 1e6:.1f} MB, and its disk "
            f"has {free / 1e6:.1f} MB left.",
            destination.fix("Make room"),
        )


@contextmanager
def stage_bundle(destination: Destination) -> Iterator[Path]:
    """A folder to make the bundle in, beside its place; nothing of it stays unless published.

    Raises OutputError where a disk refuses what is written inside, whoever writes it.
    """
    made = []
    try:
        for parent in reversed(destination.place.parents):
            if not parent.exists():
                parent.mkdir(exist_ok=True)
                made.append(parent)
        with working_folder(destination.place.parent, destination.place.name) as working:
            (working / NEW).mkdir()
            yield working / NEW
    except OutputError:
        raise
    except Exception as error:
        reason = disk_refusal(error)
        if reason is None:
            raise
        raise OutputError(
            f"{destination.path}: cannot be written ({reason}).", destination.fix("Make room")
        ) from error
    finally:
        for parent in reversed(made):
            with contextlib.suppress(OSError):
                parent.rmdir()


def publish(staging: Path, manifest: Manifest, destination: Destination) -> Bundle:
    """Write the manifest over the staged files, flush everything, and put it into its place.

    Whatever kills the process, the older bundle or the new one is there. Raises OutputError,
    nothing changed, if something else has come there meanwhile.
    """
    done = _put(staging, manifest, destination)
    return Bundle(destination.path, done, notes=destination.notes)


def publish_pack(staging: Path, manifest: PackManifest, destination: Destination) -> Pack:
    """`publish` for a pack, in a folder that was staged for one."""
    done = _put(staging, manifest, destination)
    return Pack(destination.path, done, notes=destination.notes)


def _put(staging: Path, manifest: _M, destination: Destination) -> _M:
    place = destination.place
    try:
        entries = tuple(_entry(staging, entry) for entry in manifest.files)
        manifest = msgspec.structs.replace(manifest, files=entries)
        (staging / MANIFEST_NAME).write_bytes(json_document(manifest))
        _flush_all(staging)
        _check_complete(staging, entries)
        while not _placed(staging, destination):
            pass
        flush(place.parent)
    except OSError as error:
        raise OutputError(
            f"{destination.path}: cannot be written ({error.strerror}).", destination.fix()
        ) from error
    return manifest


def _placed(staging: Path, destination: Destination) -> bool:
    """Put the staged folder into its place; False if what is there changed at that moment."""
    if destination.replaces is None:
        try:
            rename_new(staging, destination.place)
        except FileExistsError:
            pass
        else:
            return True
    elif not os.path.lexists(destination.place):
        raise OutputError(
            f"{destination.path}: was moved away or removed meanwhile.",
            "Start again where it is now.",
        )
    _check_replaceable(destination)
    return _replace(staging, destination)


def _place(path: Path) -> Path:
    """Where a path given by a user is, with the links of its folder resolved, not its own."""
    nearest_folder(path)  # as it is given, before links are followed to where nothing is
    place = path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name
    if not place.name:
        raise OutputError(f"{path}: is the root of all folders.", "Choose another -o.")
    return place


def _holds_working_folder(place: Path) -> bool:
    """Whether this process works in what is there now, or in a folder of it."""
    try:
        return Path.cwd().is_relative_to(place) and place.is_dir()
    except OSError:
        return False


def _or_elsewhere(first: str, chosen: bool) -> str:
    if not chosen:
        return f"{first}." if first else ""
    return f"{first}, or choose another -o." if first else "Choose another -o."


def _check_replaceable(destination: Destination) -> None:
    """Raises OutputError unless what is there may go."""
    path, place, noun = destination.path, destination.place, destination.kind.noun
    alone = destination.left_alone
    if not destination.force:
        raise OutputError(
            f"{path}: exists already.", "Choose another -o, or replace it with --force."
        )
    if place.is_symlink():
        raise OutputError(
            f"{path}: is a link to {os.readlink(place)}, so {alone}.",
            "Write to another -o and turn the link to it, or give the folder itself.",
        )
    if not place.is_dir():
        raise OutputError(f"{path}: is not a folder, so {alone}.", destination.fix())
    if not any(place.iterdir()):
        return
    raw = manifest_of(place)
    listed = listed_files(raw, destination.kind)
    if raw is None or listed is None:
        raise OutputError(
            f"{path}: is a folder of something else than a {noun}, so {alone}.",
            destination.fix("Remove the folder yourself"),
        )
    if destination.replaces is not None and raw != destination.replaces:
        raise OutputError(
            f"{path}: has become another {noun} meanwhile, so it is left alone.", "Start again."
        )
    if others := others_in(place, listed):
        raise OutputError(
            f"{path}: its folder holds {others[0]!r}, which is not of the {noun}"
            + (f" ({len(others)} such files)" if len(others) > 1 else "")
            + f", so {alone}.",
            destination.fix("Move it elsewhere"),
        )


def _replace(staging: Path, destination: Destination) -> bool:
    """Put the new bundle where the older one is; False if that has gone meanwhile."""
    place, old = destination.place, staging.parent / OLD
    try:
        if exchange(staging, place):
            os.rename(staging, old)
            if _is_foreign(old, destination):
                # It has changed since the last look.
                exchange(old, place)
                os.rename(old, staging)
                _check_replaceable(destination)
                return False
        else:
            # Whatever ends it in between: discarding the working folder brings the older one back.
            os.rename(place, old)
            if _is_foreign(old, destination):
                rename_new(old, place)
                _check_replaceable(destination)
                return False
            rename_new(staging, place)
    except FileNotFoundError:
        return False
    flush(place.parent)
    remove_files(old)
    return True


def _is_foreign(folder: Path, destination: Destination) -> bool:
    """Whether what was replaced is another folder than may be, or none, or holds anything else."""
    if folder.is_symlink() or not folder.is_dir():
        return True
    raw = manifest_of(folder)
    listed = listed_files(raw, destination.kind)
    if listed is None:
        return any(folder.iterdir())
    changed = destination.replaces is not None and raw != destination.replaces
    return changed or bool(others_in(folder, listed))


def _flush_all(staging: Path) -> None:
    """Flush all that was staged, readable as the umask has it.

    safetensors writes files that only their owner can read, whatever the umask. A file that is
    another bundle's too was flushed with that one, and stays as it is.
    """
    mode = stat.S_IMODE((staging.parent / LOCK).stat().st_mode)
    for item in sorted(staging.rglob("*")):
        if not item.is_dir():
            if item.stat().st_nlink > 1:
                continue
            item.chmod(mode)
        flush(item)
    flush(staging)


def _check_complete(staging: Path, entries: tuple[FileEntry, ...]) -> None:
    listed = {MANIFEST_NAME, COMPLETED, *(entry.path for entry in entries)}
    others = others_in(staging, listed)
    assert not others, f"staged but not listed: {others}"


def _entry(folder: Path, entry: FileEntry) -> FileEntry:
    """A staged file with its size and hash; one that is of a bundle that was read has them."""
    if entry.sha256:
        return entry
    file = folder / entry.path
    return msgspec.structs.replace(entry, size=file.stat().st_size, sha256=sha256_of(file))
