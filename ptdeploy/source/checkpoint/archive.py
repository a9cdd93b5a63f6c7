"""Reading tar archives that we do not trust: nothing is unpacked under a name of theirs."""

from __future__ import annotations

import gzip
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from ptdeploy.errors import CheckpointError
from ptdeploy.memory import out_of_memory, ran_out_of_memory

_GZIP = b"\x1f\x8b"
_MOST_MEMBERS = 10_000
# What a compressed archive may unpack to: so many times its size, and what is free beside that.
_FOLDS, _FREE = 16, 64 << 20
_AGAIN = "The file is damaged or was cut short. Copy it again from where it was saved."
_PACK = "Pack its own files again, as they were trained: tar -cf FILE.nemo -C FOLDER ."


@contextmanager
def opened_archive(path: Path, wanted: Mapping[str, int]) -> Iterator[dict[str, Path]]:
    """The `wanted` members of a tar archive, gzipped or not, as files that the block's end removes.

    `wanted` has the bytes that each may be at most; members that are not there are left out.
    Every member is looked at, also those that nobody wants. Raises CheckpointError if one is no
    plain file or folder, leaves the archive, stands twice, is of absurd size, or if the archive is
    damaged.
    """
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        plain = _decompressed(path, folder)
        found = {}
        try:
            with tarfile.open(plain, "r:") as archive:
                members = _checked(path, archive, plain.stat().st_size)
                for name in wanted.keys() & members.keys():
                    member = members[name]
                    if member.size > wanted[name]:
                        raise CheckpointError(
                            f"{path}: {name} is {member.size} bytes long, more than the "
                            f"{wanted[name]} that it may be.",
                            _PACK,
                        )
                    source = archive.extractfile(member)
                    assert source is not None, "it is a plain file"
                    found[name] = folder / name.replace("/", " ")
                    with source, found[name].open("wb") as file:
                        shutil.copyfileobj(source, file)
        except CheckpointError:
            raise
        except OSError as error:
            # The disk's own words, unless it was tarfile that raised it of the file's content.
            if error.errno is not None:
                raise
            raise _damaged(path, error) from error
        except Exception as error:  # tarfile checks untrusted fields by raising anything
            if ran_out_of_memory(error):
                raise out_of_memory(f"{path} does not fit", error) from error
            raise _damaged(path, error) from error
        yield found


def _decompressed(path: Path, folder: Path) -> Path:
    """The archive itself, or what it unpacks to where it is compressed."""
    with path.open("rb") as file:
        if file.read(2) != _GZIP:
            return path
    most = _FOLDS * path.stat().st_size + _FREE
    plain = folder / "archive.tar"
    try:
        with gzip.open(path) as packed, plain.open("wb") as file:
            while block := packed.read(1 << 20):
                if file.tell() + len(block) > most:
                    raise CheckpointError(
                        f"{path}: unpacks to more than {most} bytes, far more than a file of "
                        f"{path.stat().st_size} bytes should.",
                        _PACK,
                    )
                file.write(block)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _damaged(path, error) from error
    return plain


def _checked(path: Path, archive: tarfile.TarFile, size: int) -> dict[str, tarfile.TarInfo]:
    """The archive's plain files by name, `./` left out. `size` is the archive's own."""
    files: dict[str, tarfile.TarInfo] = {}
    for number, member in enumerate(archive):
        where = f"{path}: {member.name[:200]!r}"
        name = PurePosixPath(member.name)
        if number == _MOST_MEMBERS:
            raise CheckpointError(f"{path}: holds more than {_MOST_MEMBERS} files.", _PACK)
        if name.is_absolute() or ".." in name.parts:
            raise CheckpointError(f"{where} leads out of the archive.", _PACK)
        if member.isdir():
            continue
        if member.issparse():
            raise CheckpointError(f"{where} is a sparse file, which is larger than stored.", _PACK)
        if not member.isreg():
            kind = "a link" if member.issym() or member.islnk() else "a device, or no file at all"
            raise CheckpointError(f"{where} is {kind}; only files and folders are read.", _PACK)
        if member.size > size:
            raise CheckpointError(
                f"{where} says it is {member.size} bytes long, in an archive of {size}.", _AGAIN
            )
        if str(name) in files:
            raise CheckpointError(f"{where} stands twice in the archive.", _PACK)
        files[str(name)] = member
    return files


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return CheckpointError(f"{path}: not a whole tar archive ({reason}).", _AGAIN)
