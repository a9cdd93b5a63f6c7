"""A bundle's folder held open: whatever takes its place later, its files stay what they were."""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Iterable
from pathlib import Path

from ptdeploy.files import open_regular

_CHUNK = 1 << 20
_FOLDERS = Path("/proc/self/fd")


class Held:
    """A folder, and the regular files in it that were asked for, by their paths inside it.

    The folder is looked up once, so that all its files are of one folder though a link to it is
    turned, or the folder itself renamed, at any moment. A file that was opened once stays that
    file. All methods raise OSError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        flags = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
        self._folder = os.open(path, flags)
        self._files: dict[str, int] = {}
        weakref.finalize(self, _close, self._folder, self._files)

    def open(self, name: str) -> int:
        """The descriptor of a file, which stays ours."""
        if name not in self._files:
            self._files[name] = open_regular(name, self._folder)
        return self._files[name]

    def size(self, name: str) -> int:
        return os.fstat(self.open(name)).st_size

    def read(self, name: str, most: int | None = None) -> bytes:
        """A file's bytes, or its first `most`."""
        size = self.size(name)
        left = size if most is None else most
        content = bytearray()
        while piece := self._piece(name, len(content), min(left - len(content), _CHUNK)):
            content += piece
        return bytes(content)

    def sha256(self, name: str) -> str:
        """The SHA-256 of a file, read through the descriptor that everything else reads."""
        digest, place = hashlib.sha256(), 0
        while piece := self._piece(name, place, _CHUNK):
            digest.update(piece)
            place += len(piece)
        return digest.hexdigest()

    def _piece(self, name: str, place: int, size: int) -> bytes:
        return os.pread(self.open(name), size, place)

    def reopened(self, name: str) -> Path:
        """A path for libraries that open files themselves: it leads to the very file held here.

        Where the system has no such paths it is the file's own.
        """
        if name not in self._files or not _FOLDERS.is_dir():
            return self.path / name
        return _FOLDERS / str(self._files[name])

    def link(self, name: str, place: Path) -> bool:
        """Give the very file held here a second name; False where that cannot be done."""
        if name not in self._files or not _FOLDERS.is_dir():
            return False
        try:
            # Only beside a folder's descriptor does Python follow the link that /proc has.
            os.link(self.reopened(name), place, src_dir_fd=self._folder, follow_symlinks=True)
        except OSError:
            return False
        return True

    def inside(self, name: str) -> Path:
        """A path through the held folder, beside which a library finds the folder's other files.

        It leads to what has that name now: ask `same` afterwards.
        """
        if not _FOLDERS.is_dir():
            return self.path / name
        return _FOLDERS / str(self._folder) / name

    def same(self, names: Iterable[str]) -> bool:
        """Whether these names still are the very files held here, unchanged.

        A second name for one of them, as `link` gives, is no change.
        """
        try:
            return all(
                _content(os.stat(name, dir_fd=self._folder)) == _content(os.fstat(self.open(name)))
                for name in names
            )
        except OSError:
            return False


def standing(path: Path) -> object:
    """What is at a path just now, to be compared with what is there later: any change shows."""
    found: list[object] = []
    for place, follow in ((path, False), (path, True), (path / "manifest.json", True)):
        try:
            found.append(_identity(os.stat(place, follow_symlinks=follow)))
        except (OSError, ValueError):
            found.append(None)
    return found


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return (*_content(found), found.st_ctime_ns)


def _content(found: os.stat_result) -> tuple[int, ...]:
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _close(folder: int, files: dict[str, int]) -> None:
    for descriptor in (folder, *files.values()):
        os.close(descriptor)
