"""Reading a bundle: strictly, and all of one."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import msgspec

from ptdeploy.bundle.held import Held, standing
from ptdeploy.bundle.manifest_file import Kind, check_files, check_hash, hold, read_manifest
from ptdeploy.bundle.schema import (
    FORMAT,
    FORMAT_VERSION,
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    Role,
)
from ptdeploy.bundle.signature import AGAIN
from ptdeploy.bundle.whose import misnamed, owner
from ptdeploy.errors import BundleError, PtdeployError

BUNDLE = Kind(
    Manifest,
    FORMAT,
    FORMAT_VERSION,
    "bundle",
    "ptdeploy compile CHECKPOINT --target ort -o BUNDLE",
)
_ATTEMPTS = 200
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

    def link(self, entry: FileEntry, place: Path) -> None:
        """`copy`, but the file itself under a second name where the file systems can do that."""
        assert self.held is not None, "it was read"
        place.parent.mkdir(parents=True, exist_ok=True)
        if not self.held.link(entry.path, place):
            self.copy(entry, place)

    def by_default(self, name: str | None) -> Bundle:
        """The same bundle, as if its default prompt were the one of that name, or none."""
        return replace(self, manifest=msgspec.structs.replace(self.manifest, default_prompt=name))

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
        time.sleep(0.001 * min(attempt, 50))
    raise BundleError(
        f"{path}: was replaced again and again while it was read.",
        "Read it once it stays as it is.",
    )


def check_hashes(bundle: Bundle) -> None:
    """Hash every file. Raises BundleError on the first whose SHA-256 is not the manifest's."""
    assert bundle.held is not None, "it was read"
    for entry in bundle.manifest.files:
        check_hash(bundle.held, entry)


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
    held = hold(path, BUNDLE)
    manifest = read_manifest(held, BUNDLE)
    for problem in misnamed(manifest):
        raise BundleError(f"{path / MANIFEST_NAME}: {problem}.", AGAIN)
    check_files(held, manifest.files, hashes)
    bundle = Bundle(path, manifest, held)
    for found, words in (
        (bundle.entry("model") or bundle.entry("engine"), "'model' or 'engine'"),
        (manifest.default_prompt is None or bundle.entry("prompt"), "'prompt'"),
    ):
        if not found:
            raise BundleError(f"{path / MANIFEST_NAME}: lists no file with the role {words}.")
    return bundle
