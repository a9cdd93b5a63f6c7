"""Files: read only where they are files, written whole or not at all, with the umask's mode."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from ptdeploy.errors import InputError, OutputError

_POINTER = b"version https://git-lfs.github.com/spec/"
_POINTER_BYTES = 1024
POINTER_PROBLEM = "is a Git LFS pointer, not the file it stands for."
POINTER_FIX = "Fetch the files themselves: git lfs pull"

# What a disk says when it takes no more, or takes nothing.
_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}

_AT_FDCWD = -100
_NOREPLACE, _EXCHANGE = 1, 2
_UNSUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM}


def open_regular(path: str | Path, folder: int | None = None) -> int:
    """Open a regular file for reading, also through links; gives its descriptor.

    Nothing else is ever opened: a fifo would wait for its writer, a device may act on being opened.
    `folder` is a descriptor that `path` is relative to. Raises OSError, with EISDIR for what is no
    regular file.
    """
    check_regular(os.stat(path, dir_fd=folder), path)
    flags = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags, dir_fd=folder)
    try:
        check_regular(os.fstat(descriptor), path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def check_regular(found: os.stat_result, path: str | Path) -> None:
    """Raises OSError, with EISDIR, for what is no regular file."""
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EISDIR, "Not a regular file", str(path))


def read_regular(path: str | Path, most: int) -> bytes:
    """At most `most` + 1 bytes of a regular file. Raises OSError."""
    with os.fdopen(open_regular(path), "rb") as file:
        return file.read(most + 1)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_document(value: object) -> bytes:
    """A struct, or plain data, as a JSON file that people read too."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def is_pointer(path: Path) -> bool:
    """Whether a file is what Git LFS leaves in a clone where the file itself was not fetched."""
    try:
        return is_pointer_text(read_regular(path, _POINTER_BYTES))
    except OSError:
        return False


def pointer_in(model: Path) -> Path | None:
    """A file of a local model that would be read and is a Git LFS pointer, if there is one.

    Weights are read from safetensors where there are any: other formats beside them are not.
    """
    try:
        names = sorted(os.listdir(model))
    except OSError:
        return None  # a hub id
    weights = [name for name in names if name.endswith(".safetensors")]
    weights = weights or [name for name in names if name.endswith(".bin")]
    texts = [name for name in names if name.endswith((".json", ".txt", ".model", ".jinja"))]
    return next((model / name for name in (*texts, *weights) if is_pointer(model / name)), None)


def is_pointer_text(content: bytes) -> bool:
    """Whether a file's bytes, or the first 1025 of them, are a Git LFS pointer."""
    return len(content) <= _POINTER_BYTES and content.startswith(_POINTER)


def write_whole(path: Path, content: bytes, fix: str = "") -> Path:
    """Write a file beside its place and rename it there, so that nobody reads half of it.

    A link there is replaced, never written through. Raises OutputError if it cannot be written.
    """
    write_together(path.parent, {path.name: content}, fix)
    return path


def write_together(folder: Path, contents: Mapping[str, bytes], fix: str = "") -> None:
    """The same for files that belong together: on a disk that is full none of them is replaced."""
    try:
        _write_files(folder, contents)
    except OSError as error:
        names = ", ".join(str(folder / name) for name in contents)
        raise OutputError(f"{names}: cannot be written ({error.strerror}).", fix) from error


def write_new(path: Path, content: bytes) -> Path:
    """`write_whole` to where nothing is.

    Raises OutputError if something is there, whoever put it there meanwhile, or if it cannot be
    written.
    """
    try:
        _write_files(path.parent, {path.name: content}, rename_new)
    except FileExistsError as error:
        raise OutputError(f"{path}: exists already.", "Choose another -o.") from error
    except OSError as error:
        fix = "Choose another -o."
        raise OutputError(f"{path}: cannot be written ({error.strerror}).", fix) from error
    return path


def write_folder(
    path: Path, contents: Mapping[str, bytes], check: Callable[[Path], None] | None = None
) -> None:
    """Write a new folder of files, whole or not at all: it gets its name when all are on the disk.

    With a `check`, which raises OutputError for a folder that is to stay, an older one is replaced.
    Raises OutputError if something is there otherwise, or it cannot be written.
    """
    place = path.absolute()
    working = _beside(place)
    try:
        _write_files(working, contents)
        flush(working)
        if check is None or not os.path.lexists(place):
            rename_new(working, place)
        else:
            _take_place(working, place, check)
        flush(place.parent)
    except FileExistsError as error:
        raise OutputError(f"{path}: exists already.", "Choose another -o.") from error
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}).") from error
    finally:
        shutil.rmtree(working, ignore_errors=True)


def _take_place(working: Path, place: Path, check: Callable[[Path], None]) -> None:
    """Put a folder where another is, which passes the check once it is out of its place."""
    check(place)
    if exchange(working, place):
        try:
            check(working)
        except OutputError:
            exchange(working, place)
            raise
        return
    aside = _beside(place)
    os.rename(place, aside)
    try:
        check(aside)
        rename_new(working, place)
    except BaseException:
        rename_new(aside, place)
        raise
    shutil.rmtree(aside)


def _beside(place: Path) -> Path:
    return place.with_name(f".{secrets.token_hex(6)}.tmp")


def replace_file(path: Path, content: bytes) -> None:
    """`write_whole` for callers that want the OSError."""
    _write_files(path.parent, {path.name: content})


def _write_files(
    folder: Path,
    contents: Mapping[str, bytes],
    put: Callable[[Path, Path], None] = os.replace,
) -> None:
    """Write all of them beside their places, then `put` each into its own."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[tuple[Path, Path]] = []
    try:
        for name, content in contents.items():
            # The file's own name may be as long as names can be.
            temporary = folder / f".{secrets.token_hex(6)}.tmp"
            # The mode is the umask's, unlike tempfile's.
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            descriptor = os.open(temporary, flags, 0o666)
            written.append((temporary, folder / name))
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for temporary, path in written:
            put(temporary, path)
    except BaseException:
        for temporary, _ in written:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise


def check_folder(folder: Path, option: str) -> None:
    """Refuse, before any work, a folder that files could not be written to; it is not made yet.

    Raises OutputError.
    """
    try:
        nearest = nearest_folder(folder / "file")
        probe = nearest / f".{secrets.token_hex(6)}.tmp"
        os.mkdir(probe)
        os.rmdir(probe)
    except OSError as error:
        raise OutputError(
            f"{option} {folder}: cannot be written to ({error.strerror}).",
            f"Choose another {option}.",
        ) from error


def check_readable(path: Path, option: str) -> None:
    """Refuse, before any work, a file that cannot be read later. Raises InputError."""
    try:
        # A pipe (as a shell's <(...) gives one) is read once, later.
        if not stat.S_ISFIFO(os.stat(path).st_mode):
            os.close(open_regular(path))
    except OSError as error:
        raise InputError(f"{option} {path}: cannot be read ({error.strerror}).") from error


def nearest_folder(path: Path) -> Path:
    """The nearest folder above `path` that exists.

    Raises OSError where one above is no folder, or a name is longer than the file system takes.
    """
    place = path.absolute()
    with contextlib.suppress(FileNotFoundError):
        os.lstat(place)
    for parent in place.parents:
        try:
            found = os.stat(parent)
        except FileNotFoundError as error:
            if parent.is_symlink():
                raise FileNotFoundError(errno.ENOENT, "A link to nothing", str(parent)) from error
            continue
        if not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, f"{parent} is no folder", str(parent))
        return parent
    return Path("/")


def disk_refusal(error: BaseException) -> str | None:
    """What a disk refused, if that is what an error of any library says, else None."""
    text = str(error)
    if isinstance(error, OSError) and error.errno is not None:
        return error.strerror if error.errno in _REFUSALS else None
    if re.search(r"\d+ requested and \d+ written", text):
        return text  # numpy does not ask why
    for number in _REFUSALS:
        # Rust's libraries raise classes of their own; their words carry the number.
        if f"(os error {number})" in text or os.strerror(number) in text:
            return os.strerror(number)
    return None


def flush(path: Path) -> None:
    """Have a file's or a folder's content on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems flush no folders.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


def rename_new(source: Path, destination: Path) -> None:
    """Rename a file or a folder to where nothing is.

    Raises FileExistsError, nothing changed, if something is there.
    """
    if _renameat2(source, destination, _NOREPLACE):
        return
    if not source.is_dir():
        # A file's rename replaces another one; its second name does not.
        os.link(source, destination)
        os.unlink(source)
        return
    if os.path.lexists(destination):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(destination))
    # A folder's rename replaces nothing but an empty folder.
    try:
        os.rename(source, destination)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.ENOTDIR, errno.EEXIST):
            raise FileExistsError(
                errno.EEXIST, os.strerror(errno.EEXIST), str(destination)
            ) from error
        raise


def exchange(one: Path, other: Path) -> bool:
    """Let two folders take each other's place at once; False where the system cannot."""
    return _renameat2(one, other, _EXCHANGE)


def _renameat2(source: Path, destination: Path, flags: int) -> bool:
    """Linux's renameat2; False where the system or the file system does not have it."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    done = call(
        _AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(destination), ctypes.c_uint(flags)
    )
    if done == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(destination))
