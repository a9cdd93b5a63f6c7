"""One process at a time changes a bundle; readers need no lock: they hold what they opened."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ptdeploy.errors import BundleError, OutputError


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep others that lock it from changing the bundle at `path`.

    The lock is the folder's own and goes with the process that has it. A file system without locks
    is no reason to refuse: publishing sees whatever has changed meanwhile.
    Raises OutputError if another process is changing it, BundleError if there is no such folder.
    """
    folder = _open(path)
    try:
        while True:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise OutputError(
                    f"{path}: another process is changing it just now.", "Start again afterwards."
                ) from error
            except OSError:
                break
            # The one who had the lock may have put another folder into its place.
            now = _open(path)
            if os.path.sameopenfile(folder, now):
                os.close(now)
                break
            os.close(folder)
            folder = now
        yield
    finally:
        os.close(folder)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: no such bundle folder.") from error
