"""Writing a bundle: staged beside its place, then put there whole; nothing else is touched."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ptdeploy.bundle.manifest_file import Kind
from ptdeploy.bundle.pack import PACK, Pack, PackManifest
from ptdeploy.bundle.read import BUNDLE, Bundle
from ptdeploy.bundle.schema import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    FileEntry,
    Header,
    Manifest,
)
from ptdeploy.errors import OutputError
from ptdeploy.files import (
    disk_refusal,
    exchange,
    flush,
    json_document,
    nearest_folder,
    read_regular,
    rename_new,
    sha256_of,
)

# In a working folder: who works in it, what is being made, and what that has replaced.
_LOCK, _NEW, _OLD = "lock", "new", "old"
# What verify leaves beside a manifest whose parity was pending.
COMPLETED = "parity.json"
_FIX = "Choose another -o."
_M = TypeVar("_M", Manifest, PackManifest)


@dataclass(frozen=True)
class Destination:
    """Where a bundle, or a pack, may go: `place` is `path` in a folder without links.

    `force` lets it replace one of its `kind`; `replaces` is the only manifest it may replace, if
    not all.
    """

    path: Path
    place: Path
    force: bool
    replaces: bytes | None = None
    kind: Kind[Any] = BUNDLE


class _Listed(msgspec.Struct):
    path: str


class _Listing(Header):
    """What every version of the manifest says of its files."""

    files: list[_Listed]


def check_destination(
    path: Path, force: bool, replaces: bytes | None = None, kind: Kind[Any] = BUNDLE
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
            _clear(place)
        destination = Destination(path, place, force, replaces, kind)
        if os.path.lexists(place):
            _check_replaceable(destination)
        with _working_folder(nearest, place.name):
            pass
    except OSError as error:
        raise OutputError(f"{path}: cannot be written to ({error.strerror}).", _FIX) from error
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
            "Make room, or choose another -o.",
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
        with _working_folder(destination.place.parent, destination.place.name) as working:
            (working / _NEW).mkdir()
            yield working / _NEW
    except OutputError:
        raise
    except Exception as error:
        reason = disk_refusal(error)
        if reason is None:
            raise
        raise OutputError(
            f"{destination.path}: cannot be written ({reason}).",
            "Make room, or choose another -o.",
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
    return Bundle(destination.path, _put(staging, manifest, destination))


def publish_pack(staging: Path, manifest: PackManifest, destination: Destination) -> Pack:
    """`publish` for a pack, in a folder that was staged for one."""
    return Pack(destination.path, _put(staging, manifest, destination))


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
            f"{destination.path}: cannot be written ({error.strerror}).", _FIX
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
    text = os.fspath(path)
    if text.startswith("~") and not os.path.lexists(Path(text).parts[0]):
        # `--output=~/x` is no place where shells put the home folder.
        path = Path(os.path.expanduser(text))
    nearest_folder(path)  # as it is given, before links are followed to where nothing is
    place = path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name
    if not place.name:
        raise OutputError(f"{path}: is the root of all folders.", _FIX)
    return place


def _check_replaceable(destination: Destination) -> None:
    """Raises OutputError unless what is there may go."""
    path, place, noun = destination.path, destination.place, destination.kind.noun
    if not destination.force:
        raise OutputError(
            f"{path}: exists already.", "Choose another -o, or replace it with --force."
        )
    if place.is_symlink():
        raise OutputError(
            f"{path}: is a link to {os.readlink(place)}, so --force leaves it alone.",
            "Write to another -o and turn the link to it, or give the folder itself.",
        )
    if not place.is_dir():
        raise OutputError(f"{path}: is not a folder, so --force leaves it alone.")
    if not any(place.iterdir()):
        return
    raw = _manifest_of(place)
    listed = _listed(raw, destination.kind)
    if raw is None or listed is None:
        raise OutputError(
            f"{path}: is a folder of something else than a {noun}, so --force leaves it alone.",
            "Choose another -o, or remove the folder yourself.",
        )
    if destination.replaces is not None and raw != destination.replaces:
        raise OutputError(
            f"{path}: has become another {noun} meanwhile, so it is left alone.", "Start again."
        )
    if others := _others(place, listed):
        raise OutputError(
            f"{path}: its folder holds {others[0]!r}, which is not of the {noun}"
            + (f" ({len(others)} such files)" if len(others) > 1 else "")
            + ", so --force leaves it alone.",
            "Move it elsewhere, or choose another -o.",
        )


def _replace(staging: Path, destination: Destination) -> bool:
    """Put the new bundle where the older one is; False if that has gone meanwhile."""
    place, old = destination.place, staging.parent / _OLD
    try:
        if exchange(staging, place):
            os.rename(staging, old)
            if _is_foreign(old, destination):
                # It has changed between the last look and the exchange.
                exchange(old, place)
                os.rename(old, staging)
                _check_replaceable(destination)
                return False
        else:
            os.rename(place, old)
            try:
                rename_new(staging, place)
            except BaseException:
                rename_new(old, place)
                raise
    except FileNotFoundError:
        return False
    flush(place.parent)
    _remove_old(old)
    return True


def _is_foreign(folder: Path, destination: Destination) -> bool:
    """Whether a folder that was replaced is another than may be, or holds anything else."""
    raw = _manifest_of(folder)
    listed = _listed(raw, destination.kind)
    if listed is None:
        return any(folder.iterdir())
    changed = destination.replaces is not None and raw != destination.replaces
    return changed or bool(_others(folder, listed))


def _manifest_of(folder: Path) -> bytes | None:
    try:
        raw = read_regular(folder / MANIFEST_NAME, MAX_MANIFEST_BYTES)
    except OSError:
        return None
    return raw if len(raw) <= MAX_MANIFEST_BYTES else None


def _listed(raw: bytes | None, *kinds: Kind[Any]) -> set[str] | None:
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


def _others(folder: Path, listed: set[str]) -> list[str]:
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


def _remove_old(folder: Path) -> None:
    """Remove a bundle that was replaced: its files, the manifest last, and folders left empty."""
    listed = _listed(_manifest_of(folder)) or {MANIFEST_NAME}
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


@contextmanager
def _working_folder(parent: Path, name: str) -> Iterator[Path]:
    """A folder `.NAME.XXXXXXXX` that only we read, locked while this process lives."""
    while True:
        working = parent / f"{_prefix(name)}{secrets.token_hex(4)}"
        working.mkdir(mode=0o700)
        try:
            lock = os.open(working / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            continue  # cleared before it was locked
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_nlink == 0:
                continue
            try:
                yield working
            finally:
                _discard(working)
            return
        finally:
            os.close(lock)


def _prefix(name: str) -> str:
    # Room for the rest of the name, whatever the file system counts in.
    return f".{os.fsdecode(os.fsencode(name)[:200])}."


def _discard(working: Path) -> None:
    """Remove a working folder: all that was made in it, and of an older bundle what is its own."""
    if (working / _OLD).is_dir():
        _remove_old(working / _OLD)
    new = working / _NEW
    if _listed(_manifest_of(new)) is not None:
        # Of a process that was killed in between, this may be the older one.
        _remove_old(new)
    else:
        shutil.rmtree(new, ignore_errors=True)
    for remove, path in ((os.unlink, working / _LOCK), (os.rmdir, working)):
        with contextlib.suppress(OSError):
            remove(path)


def _clear(place: Path) -> None:
    """Clear what killed processes left for this destination; bring back what one moved aside."""
    pattern = re.compile(re.escape(_prefix(place.name)) + r"[0-9a-f]{8}")
    for working in sorted(one for one in place.parent.iterdir() if pattern.fullmatch(one.name)):
        try:
            lock = os.open(working / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            # Not locked yet, or killed before: an empty one goes, and its maker makes another.
            with contextlib.suppress(OSError):
                working.rmdir()
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if (working / _OLD).is_dir() and not os.path.lexists(place):
                rename_new(working / _OLD, place)
            _discard(working)
        except OSError:
            continue  # someone works there, or it is not ours to remove
        finally:
            os.close(lock)


def _flush_all(staging: Path) -> None:
    """Flush all that was staged, readable as the umask has it.

    safetensors writes files that only their owner can read, whatever the umask. A file that is
    another bundle's too was flushed with that one, and stays as it is.
    """
    mode = stat.S_IMODE((staging.parent / _LOCK).stat().st_mode)
    for item in sorted(staging.rglob("*")):
        if not item.is_dir():
            if item.stat().st_nlink > 1:
                continue
            item.chmod(mode)
        flush(item)
    flush(staging)


def _check_complete(staging: Path, entries: tuple[FileEntry, ...]) -> None:
    listed = {MANIFEST_NAME, COMPLETED, *(entry.path for entry in entries)}
    others = _others(staging, listed)
    assert not others, f"staged but not listed: {others}"


def _entry(folder: Path, entry: FileEntry) -> FileEntry:
    """A staged file with its size and hash; one that is of a bundle that was read has them."""
    if entry.sha256:
        return entry
    file = folder / entry.path
    return msgspec.structs.replace(entry, size=file.stat().st_size, sha256=sha256_of(file))
