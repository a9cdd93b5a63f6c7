"""The hidden folder beside a bundle's place in which it is made, locked while its maker lives."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ptdeploy.bundle.contents import listed_files, manifest_of, remove_files
from ptdeploy.files import rename_new

# In a working folder: who works in it, what is being made, and what that has replaced.
LOCK, NEW, OLD = "lock", "new", "old"
# Bytes of a place's name that its working folder's name has whole.
_LONG = 180


@contextmanager
def working_folder(parent: Path, name: str) -> Iterator[Path]:
    """A folder `.NAME.XXXXXXXX` that only we read, locked while this process lives.

    It is discarded at the end. What it had moved aside goes back if nothing has taken its place.
    """
    while True:
        working = parent / f"{_prefix(name)}{secrets.token_hex(4)}"
        working.mkdir(mode=0o700)
        try:
            lock = os.open(working / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            continue  # cleared before it was locked
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # whoever clears holds it
            except OSError:
                pass  # a file system without locks
            if os.fstat(lock).st_nlink == 0:
                continue
            try:
                yield working
            finally:
                _discard(working, parent / name)
            return
        finally:
            os.close(lock)


def clear_left(place: Path) -> None:
    """Clear what killed processes left for this destination; bring back what one moved aside."""
    pattern = re.compile(re.escape(_prefix(place.name)) + r"[0-9a-f]{8}")
    for working in sorted(one for one in place.parent.iterdir() if pattern.fullmatch(one.name)):
        try:
            lock = os.open(working / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            # Not locked yet, or killed before: an empty one goes, and its maker makes another.
            with contextlib.suppress(OSError):
                working.rmdir()
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _discard(working, place)
        except OSError:
            continue  # someone works there, or it is not ours to remove
        finally:
            os.close(lock)


def _discard(working: Path, place: Path) -> None:
    """Remove a working folder: all that was made in it, and of an older bundle what is its own.

    An older bundle in whose place nothing is goes back there; where it cannot, all of it stays.
    """
    old = working / OLD
    if old.is_dir() and not os.path.lexists(place):
        try:
            rename_new(old, place)
        except OSError:
            return
    if old.is_dir():
        remove_files(old)
    new = working / NEW
    if listed_files(manifest_of(new)) is not None:
        # Of a process that was killed in between, this may be the older one.
        remove_files(new)
    else:
        shutil.rmtree(new, ignore_errors=True)
    for remove, path in ((os.unlink, working / LOCK), (os.rmdir, working)):
        with contextlib.suppress(OSError):
            remove(path)


def _prefix(name: str) -> str:
    # Room for the rest of the name, whatever the file system counts in, and another one for each.
    raw = os.fsencode(name)
    if len(raw) > _LONG:
        name = f"{os.fsdecode(raw[:_LONG])}-{hashlib.sha256(raw).hexdigest()[:16]}"
    return f".{name}."
