"""Reading a bundle: strictly, and all of one."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeVar

import msgspec

from ptdeploy.bundle.held import Held, standing
from ptdeploy.bundle.schema import (
    FORMAT,
    FORMAT_VERSION,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    FileEntry,
    Header,
    Manifest,
    Role,
)
from ptdeploy.bundle.signature import AGAIN
from ptdeploy.bundle.whose import misnamed, owner
from ptdeploy.errors import BundleError, PtdeployError
from ptdeploy.files import POINTER_FIX, POINTER_PROBLEM, is_pointer_text

_ATTEMPTS = 60
_T = TypeVar("_T")


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose manifest was read and whose files were checked against it.

    Its files are held open, so that it stays this bundle whatever takes its place; one that is
    still being made is not held. `notes` are what compile and rebuild have to say of it.
    """

    path: Path
    manifest: Manifest
    held: Held | None = field(default=None, repr=False, compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)

    def file(self, role: Role, prompt: str | None = None) -> Path | None:
        """The path of the one file with this role, if there is one: for people, not to open.

        Of a role that prompts have, the named one's, else the default one's.
        """
        entry = self.entry(role, prompt)
        return self.path / entry.path if entry else None

    def opened(self, role: Role, prompt: str | None = None) -> Path | None:
        """A path to read the very file with this role that was checked, if there is one."""
        entry = self.entry(role, prompt)
        if entry is None or self.held is None:
            return self.file(role, prompt)
        return self.held.reopened(entry.path)

    def in_folder(self, role: Role) -> Path | None:
        """Like `opened`, for what finds other files beside it; `check_unchanged` must follow."""
        entry = self.entry(role)
        if entry is None or self.held is None:
            return self.file(role)
        return self.held.inside(entry.path)

    @contextmanager
    def reading(self, role: Role) -> Iterator[Path | None]:
        """`opened` for readers that name the file in their errors: those get its own path."""
        opened, shown = self.opened(role), self.file(role)
        try:
            yield opened
        except PtdeployError as error:
            problem = error.problem.replace(str(opened), str(shown))
            raise type(error)(problem, error.fix) from error

    def copy(self, entry: FileEntry, place: Path) -> None:
        """Copy the very file that was checked; its folder is made if need be."""
        assert self.held is not None, "it was read"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.held.reopened(entry.path), place)

    def manifest_bytes(self) -> bytes:
        """The manifest as it lies in the folder that was read."""
        assert self.held is not None, "it was read"
        return self.held.read(MANIFEST_NAME)

    def check_unchanged(self) -> None:
        """Raises BundleError if a file was replaced since the bundle was read."""
        names = [entry.path for entry in self.manifest.files if not Path(entry.path).is_absolute()]
        if self.held is not None and not self.held.same(names):
            raise BundleError(
                f"{self.path}: its files were replaced while they were opened.", "Open it again."
            )

    def entry(self, role: Role, prompt: str | None = None) -> FileEntry | None:
        """What the manifest lists with this role: of prompts, the named one's or the default's."""
        of = prompt or owner(role, self.manifest)
        return next((e for e in self.manifest.files if (e.role, e.of) == (role, of)), None)


def whole(path: str | Path, work: Callable[[], _T]) -> _T:
    """Do what opens the bundle at `path`, again where it failed and the bundle was replaced.

    Raises what `work` raises while the bundle stays as it is, BundleError where it never does.
    """
    for attempt in range(_ATTEMPTS):
        before = standing(Path(path))
        try:
            return work()
        except PtdeployError:
            if standing(Path(path)) == before:
                raise
        time.sleep(0.001 * attempt)
    raise BundleError(
        f"{path}: was replaced again and again while it was read.",
        "Read it once it stays as it is.",
    )


def check_hashes(bundle: Bundle) -> None:
    """Hash every file. Raises BundleError on the first whose SHA-256 is not the manifest's."""
    assert bundle.held is not None, "it was read"
    for entry in bundle.manifest.files:
        _check_hash(bundle.held, entry)


def is_bundle(path: Path) -> bool:
    """Whether `path` looks like a bundle, whole or damaged: a folder with a manifest."""
    return (path / MANIFEST_NAME).is_file()


def read_bundle(path: str | Path, hashes: bool = True) -> Bundle:
    """Read a bundle and check every file in its manifest; `hashes=False` checks sizes only.

    Raises BundleError on a missing or oversize manifest, an unknown version, a field that is not
    in the schema, a name of a graph or a prompt that is not there or that none can have, a path
    that leaves the folder, and a missing or changed file.
    """
    return whole(path, lambda: _read(Path(path), hashes))


def _read(path: Path, hashes: bool) -> Bundle:
    try:
        held = Held(path)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EMFILE, errno.ENFILE):
            raise BundleError(f"{path}: cannot be read ({error.strerror}).") from error
        raise BundleError(f"{path}: no such bundle folder.") from error
    manifest = _read_manifest(held)
    for problem in misnamed(manifest):
        raise BundleError(f"{path / MANIFEST_NAME}: {problem}.", AGAIN)
    seen = set()
    for entry in manifest.files:
        if entry.path in seen:
            raise BundleError(f"{path / MANIFEST_NAME}: lists {entry.path!r} twice.")
        seen.add(entry.path)
        _check_file(held, entry, hashes)
    bundle = Bundle(path, manifest, held)
    for found, words in (
        (bundle.entry("model") or bundle.entry("engine"), "'model' or 'engine'"),
        (bundle.entry("prompt"), "'prompt'"),
    ):
        if found is None:
            raise BundleError(f"{path / MANIFEST_NAME}: lists no file with the role {words}.")
    return bundle


def _read_manifest(held: Held) -> Manifest:
    path, file = held.path, held.path / MANIFEST_NAME
    try:
        raw = held.read(MANIFEST_NAME, MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EISDIR, errno.ELOOP):
            raise BundleError(f"{file}: cannot be read ({error.strerror}).") from error
        raise BundleError(
            f"{path}: has no {MANIFEST_NAME}, so it is no bundle.",
            "Make one with: ptdeploy compile CHECKPOINT --target ort -o BUNDLE",
        ) from error
    if len(raw) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{file}: larger than {MAX_MANIFEST_BYTES} bytes, not a manifest.")
    if is_pointer_text(raw):
        raise BundleError(f"{file}: {POINTER_PROBLEM}", POINTER_FIX)
    try:
        # msgspec does not look at the bytes of names it does not know.
        raw.decode()
        header = msgspec.json.decode(raw, type=Header)
        if header.format != FORMAT or header.format_version != FORMAT_VERSION:
            raise BundleError(
                f"{file}: is {header.format!r} version {header.format_version}; this ptdeploy "
                f"reads {FORMAT!r} version {FORMAT_VERSION}.",
                "Compile the checkpoint again, or install the ptdeploy that made the bundle.",
            )
        return msgspec.json.decode(raw, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(
            f"{file}: not a valid manifest ({error}).", "Compile the checkpoint again."
        ) from error


def _check_file(held: Held, entry: FileEntry, hashes: bool) -> None:
    """Its path, its kind, its size and its hash.

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
        size = held.size(entry.path)
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
        if is_pointer_text(held.read(entry.path, 1025)):
            raise BundleError(f"{file}: {POINTER_PROBLEM}", POINTER_FIX)
        raise BundleError(
            f"{file}: has {size} bytes, but the manifest says {entry.size}.",
            "The file is damaged. Copy the whole bundle folder again.",
        )
    if hashes:
        _check_hash(held, entry)


def _check_hash(held: Held, entry: FileEntry) -> None:
    try:
        found = held.sha256(entry.path)
    except OSError as error:
        raise BundleError(
            f"{held.path / entry.path}: cannot be read ({error.strerror})."
        ) from error
    if found != entry.sha256:
        raise BundleError(
            f"{held.path / entry.path}: its SHA-256 is not the manifest's.",
            "The file was changed or damaged. Copy the whole bundle folder again.",
        )
