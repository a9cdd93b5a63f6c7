"""Reading a bundle: strictly, and all of one."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import msgspec

from ptdeploy.bundle.held import Held, spare_descriptors, standing
from ptdeploy.bundle.manifest_file import (
    Kind,
    check_files,
    check_hash,
    hold,
    is_foreign,
    read_manifest,
)
from ptdeploy.bundle.schema import (
    FORMAT,
    FORMAT_VERSION,
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    Role,
)
from ptdeploy.bundle.signature import AGAIN
from ptdeploy.bundle.whose import OF_PROMPT, misnamed, owner
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
    def reading(self, role: Role, prompt: str | None = None) -> Iterator[Path | None]:
        """`opened` for as long as it is read; errors that name the file get its own path.

        Raises BundleError if it is not the one that was checked any more.
        """
        entry, shown = self.entry(role, prompt), self.file(role, prompt)
        if entry is None or self.held is None:
            yield shown
            return
        with ExitStack() as reading:
            try:
                opened = reading.enter_context(self.held.reading(entry.path))
            except OSError as error:
                problem = f"{shown}: cannot be read ({error.strerror})."
                raise BundleError(problem, "Start again.") from error
            try:
                yield opened
            except PtdeployError as error:
                problem = error.problem.replace(str(opened), str(shown))
                raise type(error)(problem, error.fix) from error

    def copy(self, entry: FileEntry, place: Path) -> None:
        """Copy the very file that was checked; its folder is made if need be."""
        assert self.held is not None, "it was read"
        place.parent.mkdir(parents=True, exist_ok=True)
        with self.held.reading(entry.path) as opened:
            shutil.copyfile(opened, place)

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
        return self._entries.get((role, prompt or owner(role, self.manifest)))

    @cached_property
    def _entries(self) -> dict[tuple[Role, str | None], FileEntry]:
        # The first of several with one role, as `files` has them.
        return {(one.role, one.of): one for one in reversed(self.manifest.files)}


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


def check_hashes(bundle: Bundle, prompts: Collection[str | None] | None = None) -> None:
    """Hash every file; of prompts' files only those whose names are `prompts`, where it is given.

    Raises BundleError on the first whose SHA-256 is not the manifest's.
    """
    assert bundle.held is not None, "it was read"
    needed = _needed(bundle.manifest, prompts)
    for entry in bundle.manifest.files:
        if entry.path in needed:
            check_hash(bundle.held, entry)


def is_bundle(path: Path) -> bool:
    """Whether `path` looks like a bundle or a pack, whole or damaged: a folder with a manifest that
    is no other tool's."""
    return (path / MANIFEST_NAME).is_file() and not is_foreign(path)


def read_bundle(
    path: str | Path, hashes: bool = True, prompts: Collection[str | None] | None = None
) -> Bundle:
    """Read a bundle and check every file in its manifest; `hashes=False` checks sizes only.

    Of prompts' files those alone are hashed whose names are `prompts`, where that is given; None
    among them is the base model alone.
    Raises BundleError on a missing or oversize manifest, an unknown version, a field that is not
    in the schema, a name of a graph or a prompt that is not there or that none can have, a path
    that leaves the folder, and a missing or changed file.
    """
    return whole(path, lambda: _read(Path(path), hashes, prompts))


def _read(path: Path, hashes: bool, prompts: Collection[str | None] | None) -> Bundle:
    held = hold(path, BUNDLE)
    manifest = read_manifest(held, BUNDLE)
    for problem in misnamed(manifest):
        raise BundleError(f"{path / MANIFEST_NAME}: {problem}.", AGAIN)
    hashed = _needed(manifest, prompts) if hashes else ()
    check_files(held, manifest.files, _kept(manifest), hashed)
    bundle = Bundle(path, manifest, held)
    for found, words in (
        (bundle.entry("model") or bundle.entry("engine"), "'model' or 'engine'"),
        (manifest.default_prompt is None or bundle.entry("prompt"), "'prompt'"),
    ):
        if not found:
            raise BundleError(f"{path / MANIFEST_NAME}: lists no file with the role {words}.")
    return bundle


def _needed(manifest: Manifest, prompts: Collection[str | None] | None) -> set[str]:
    """The paths of all files but those of other prompts than these, if any are named."""
    return {
        one.path
        for one in manifest.files
        if prompts is None or one.role not in OF_PROMPT or one.of in prompts
    }


def _kept(manifest: Manifest) -> set[str]:
    """The paths of the files that are held open, so that they stay what they are.

    All that an engine opens with; of other prompts as many as there are descriptors for, what runs
    before what shows of it. The others are refused, when they are read, if they were replaced.
    """
    needed = _needed(manifest, (manifest.default_prompt,))
    others = [one for one in manifest.files if one.path not in needed]
    others.sort(key=lambda one: one.role != "prompt")
    return needed | {one.path for one in others[: spare_descriptors()]}
