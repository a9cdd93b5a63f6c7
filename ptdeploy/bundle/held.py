"""A bundle's folder held open: whatever takes its place later, its files stay what they were."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ptdeploy.files import check_regular, open_regular

_CHUNK = 1 << 20
_MOST_SPARE = 1024
# Holes of a smaller file are read in no time, and of a larger one it may have so many for each byte
# on the disk: file systems that compress may keep what is zero as holes.
_SMALL, _MOST_HOLLOW = 1 << 30, 16
_FOLDERS = Path("/proc/self/fd")


class Held:
    """A folder, and the regular files in it that were asked for, by their paths inside it.

    The folder is looked up once, so that all its files are of one folder though a link to it is
    turned, or the folder itself renamed, at any moment. A file that was opened once stays that
    file; of one that was only looked at, another in its place is refused. All methods raise
    OSError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        flags = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
        self._folder = os.open(path, flags)
        self._files: dict[str, int] = {}
        self._seen: dict[str, tuple[int, ...]] = {}
        weakref.finalize(self, _close, self._folder, self._files)

    def open(self, name: str) -> int:
        """The descriptor of a file, which stays ours."""
        if name not in self._files:
            self._files[name] = self._opened(name)
        return self._files[name]

    def look(self, name: str) -> int:
        """A file's size, without holding it open: it is opened again whenever it is read."""
        if name in self._files:
            return self.size(name)
        found = os.stat(name, dir_fd=self._folder)
        check_regular(found, name)
        self._seen[name] = _content(found)
        return found.st_size

    def size(self, name: str) -> int:
        return os.fstat(self.open(name)).st_size

    def read(self, name: str, most: int | None = None) -> bytes:
        """A file's bytes, or its first `most`."""
        with self._reading(name) as file:
            left = os.fstat(file).st_size if most is None else most
            content = bytearray()
            while piece := os.pread(file, min(left - len(content), _CHUNK), len(content)):
                content += piece
            return bytes(content)

    def sha256(self, name: str, size: int) -> str:
        """The SHA-256 of a file of so many bytes, read through the descriptor that everything else
        reads. One byte more shows a file that has grown, and no more is read of it."""
        digest, place = hashlib.sha256(), 0
        with self._reading(name) as file:
            while piece := os.pread(file, min(_CHUNK, size + 1 - place), place):
                digest.update(piece)
                place += len(piece)
        return digest.hexdigest()

    def is_hollow(self, name: str) -> bool:
        """Whether a large file is nearly all holes, so that reading it takes far longer than
        writing it did. False where the file system does not say."""
        with self._reading(name) as file:
            size = os.fstat(file).st_size
            if size <= _SMALL or not hasattr(os, "SEEK_DATA"):
                return False
            data = end = 0
            while data < size // _MOST_HOLLOW:
                try:
                    start = os.lseek(file, end, os.SEEK_DATA)
                    end = os.lseek(file, start, os.SEEK_HOLE)
                except OSError as error:
                    # The rest is one hole.
                    return error.errno == errno.ENXIO
                data += end - start
            return False

    def reopened(self, name: str) -> Path:
        """A path for libraries that open files themselves: it leads to the very file held here.

        Where the system has no such paths it is the file's own.
        """
        return self._path(name, self.open(name))

    @contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        """`reopened` for as long as a file is read, so that it need not be held open."""
        with self._reading(name) as file:
            yield self._path(name, file)

    def link(self, name: str, place: Path) -> bool:
        """Give the very file held here a second name; False where that cannot be done."""
        if not _FOLDERS.is_dir():
            return False
        try:
            with self.reading(name) as path:
                # Only beside a folder's descriptor does Python follow the link that /proc has.
                os.link(path, place, src_dir_fd=self._folder, follow_symlinks=True)
        except OSError:
            return False
        return True

    @contextmanager
    def _reading(self, name: str) -> Iterator[int]:
        if name in self._files or name not in self._seen:
            yield self.open(name)
            return
        file = self._opened(name)
        try:
            yield file
        finally:
            os.close(file)

    def _opened(self, name: str) -> int:
        file = open_regular(name, self._folder)
        if self._seen.get(name, found := _content(os.fstat(file))) != found:
            os.close(file)
            raise OSError(errno.ESTALE, "Replaced by another file", str(self.path / name))
        return file

    def _path(self, name: str, file: int) -> Path:
        return _FOLDERS / str(file) if _FOLDERS.is_dir() else self.path / name

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
                _content(os.stat(name, dir_fd=self._folder)) == self._known(name) for name in names
            )
        except OSError:
            return False

    def _known(self, name: str) -> tuple[int, ...]:
        """What identifies a file as it was when it was opened, or looked at."""
        if name not in self._files and name in self._seen:
            return self._seen[name]
        return _content(os.fstat(self.open(name)))


def spare_descriptors() -> int:
    """How many files one folder may hold open beside those that it needs: a process has many."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_SPARE if most == resource.RLIM_INFINITY else min(most // 16, _MOST_SPARE)


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
