"""An engine's prompts by name: read when they are asked for, and taken in and out while it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from threading import Condition, Lock
from types import MappingProxyType

import msgspec

from ptdeploy.backends.forks import follow_forks
from ptdeploy.bundle import Bundle, FileEntry, Manifest, PromptInfo
from ptdeploy.bundle.held import Held
from ptdeploy.bundle.schema import is_prompt_name
from ptdeploy.errors import BundleError, InputError
from ptdeploy.runtime.layout import check_manifest
from ptdeploy.runtime.prompt_choice import (
    DEFAULT,
    Chosen,
    Default,
    OnePrompt,
    PromptChoice,
    in_words,
)
from ptdeploy.runtime.prompts import Prompt, check_prefix, read_prompt

_PUT_BACK = "Put back the file that it was loaded from, or unload the prompt."


@dataclass(frozen=True)
class PromptPlace:
    """Where a prompt is read from: a folder, and the manifest that it had.

    `held` keeps the engine's own bundle open. Other folders are opened anew for each read: a
    thousand of them would take more descriptors than a process has.
    """

    folder: Path
    manifest: Manifest
    name: str
    held: Held | None = None

    def read(self) -> Prompt:
        """Read the prompt. Raises BundleError if its file is gone, or not the one it was."""
        entry = Bundle(self.folder, self.manifest).entry("prompt", self.name)
        if entry is None:
            raise BundleError(f"{self.folder}: lists no file of the prompt {self.name!r}.")
        if self.held is not None:
            # Where another folder took the bundle's place, as ptdeploy prompt puts one there, that
            # may have the same file; its hash says so.
            with contextlib.suppress(OSError):
                return self._read(self.held, entry)
        try:
            return self._read(Held(self.folder), entry)
        except (OSError, ValueError) as error:
            raise BundleError(
                f"{self.folder / entry.path}: cannot be read ({error}).", _PUT_BACK
            ) from error

    def _read(self, held: Held, entry: FileEntry) -> Prompt:
        if (
            held.look(entry.path) != entry.size
            or held.sha256(entry.path, entry.size) != entry.sha256
        ):
            raise BundleError(
                f"{self.folder / entry.path}: was changed since the prompt was loaded.", _PUT_BACK
            )
        return read_prompt(Bundle(self.folder, self.manifest, held), self.name)


@dataclass(eq=False)
class _Entry:
    """A prompt that can be asked for, and how many requests use it just now."""

    name: str
    place: PromptPlace
    info: PromptInfo
    uses: int = 0
    last_used: int = 0
    prompt: Prompt | None = None
    # Whether another has its name, and nobody waits for it to be idle.
    replaced: bool = False
    # One thread reads the file, the others wait for it.
    reading: Lock = field(default_factory=Lock)


class PromptStore:
    """The prompts of one engine. Any number of threads may use it.

    `base` says whether a row can do without a prompt. At most `most` prompts stay in memory beside
    those that requests are using: the least recently used leave it, and are read again when they
    are asked for. `forget` are called with a prompt that leaves. `problems` says what is wrong with
    a manifest for this engine.
    """

    def __init__(
        self,
        bundle: Bundle,
        base: bool,
        most: int | None,
        problems: Callable[[Manifest], Iterable[str]],
    ) -> None:
        self.bundle, self._base, self._most = bundle, base, most
        self._problems = problems
        self.forget: list[Callable[[Prompt], None]] = []
        manifest = bundle.manifest
        self.default = manifest.default_prompt
        self._entries = {
            name: _Entry(name, PromptPlace(bundle.path, manifest, name, bundle.held), info)
            for name, info in manifest.prompts.items()
        }
        self._ticks = count(1)
        self._changed, self._forks = Condition(), 0
        follow_forks(self)
        if self.default is not None:
            # The files of a bundle that is being opened are hashed by whoever opens it.
            self._entries[self.default].prompt = read_prompt(bundle, self.default)

    @property
    def infos(self) -> Mapping[str, PromptInfo]:
        """What can be asked for just now, by name; later changes do not show in it."""
        return MappingProxyType({name: one.info for name, one in list(self._entries.items())})

    def info(self, name: str) -> PromptInfo:
        """What a prompt is. Raises InputError, listing those there are, if there is none so."""
        return self._entry(name).info

    @contextmanager
    def held(self, choice: PromptChoice, default: str | None) -> Iterator[Chosen]:
        """Read what a request names, and keep it until the request is over.

        `default` is the prompt of rows that name none, None for the base model alone. Raises
        InputError if there is no such prompt, or a row has none that needs one, BundleError if a
        prompt's file was changed.
        """
        asked: list[OnePrompt] = (
            [choice] if isinstance(choice, str | None | Default) else list(choice)
        )
        each = not isinstance(choice, str | None | Default)
        names = [self._checked(default if one is DEFAULT else one) for one in asked]
        taken: dict[str | None, Prompt | None] = {}
        entries: list[_Entry] = []
        forks = self._forks
        try:
            for name in dict.fromkeys(names):
                if name is None:
                    taken[name] = None
                    continue
                entries.append(self._take(name))
                taken[name] = self._read(entries[-1])
            yield Chosen(tuple(taken[name] for name in names), each)
        finally:
            # A forked process counts its own requests alone.
            self._give_back(entries if forks == self._forks else [])

    def load(self, place: PromptPlace, name: str) -> None:
        """Read a prompt that can be asked for from now on.

        Raises InputError if the name is taken or is none, BundleError as reading does.
        """
        if not is_prompt_name(name):
            raise InputError(
                f"{name[:64]!r} is no name of a prompt.",
                "Use letters, digits, dots, underscores and dashes, at most 64.",
            )
        self._refuse_taken(name)
        entry = _Entry(name, place, place.manifest.prompts[place.name])
        self._check_beside(entry)
        entry.prompt = replace(place.read(), name=name)
        with self._changed:
            self._refuse_taken(name)
            entry.last_used = next(self._ticks)
            self._entries[name] = entry
            gone = self._surplus()
        self._tell(gone)

    def unload(self, name: str, default: str | None) -> None:
        """Take a prompt out: nobody can ask for it from now on. Waits for those that use it.

        Left by an exception meanwhile, the prompt is there as before. Raises InputError if there
        is none of that name, or it is the default one: the bundle's, or `default`, that of the
        engine that asks.
        """
        if name in (self.default, default):
            raise InputError(
                f"{name!r} is the prompt of requests that name none, and stays.",
                "Bound the memory of prompts with load(..., max_prompts=N).",
            )
        with self._changed:
            entry = self._entry(name)
            try:
                del self._entries[name]
                while entry.uses:
                    self._changed.wait()
            except BaseException:  # Ctrl-C
                # Another may have its name by now: then its last request lets go of it.
                entry.replaced = self._entries.setdefault(name, entry) is not entry
                raise
            gone, entry.prompt = entry.prompt, None
        self._tell([gone] if gone else [])

    def prompt(self, name: str | None) -> Prompt:
        """One prompt. Raises InputError if it is None, BundleError as reading does."""
        if name is None:
            raise InputError(f"{self.bundle.path}: has no default prompt.", self._which())
        with self.held(name, name) as chosen:
            (prompt,) = chosen.prompts
        assert prompt is not None, "it was asked for by its name"
        return prompt

    def _checked(self, name: str | None) -> str | None:
        if name is None and not self._base:
            raise InputError(
                f"{self.bundle.path}: a head belongs to a prompt, and the base model has none.",
                self._which(),
            )
        return name

    def _which(self) -> str:
        return f"Name a prompt: there is {in_words(self._entries)}."

    def _entry(self, name: str) -> _Entry:
        entry = self._entries.get(name)
        if entry is None:
            raise InputError(
                f"{self.bundle.path}: has no prompt {name[:64]!r}; it has "
                f"{in_words(list(self._entries))}.",
                "Put one into the bundle with ptdeploy prompt add, or into this engine with "
                "engine.load_prompt.",
            )
        return entry

    def _refuse_taken(self, name: str) -> None:
        if name in self._entries:
            raise InputError(
                f"There is a prompt {name!r} already.", "Unload that one, or give another name."
            )

    def _take(self, name: str) -> _Entry:
        with self._changed:
            entry = self._entry(name)
            entry.uses += 1
            entry.last_used = next(self._ticks)
            return entry

    def _read(self, entry: _Entry) -> Prompt:
        """The prompt of an entry that was taken, so that it cannot leave memory meanwhile."""
        with entry.reading:
            if entry.prompt is not None:
                return entry.prompt
            self._check_own(entry)
            prompt = entry.prompt = replace(entry.place.read(), name=entry.name)
        with self._changed:
            gone = self._surplus()
        self._tell(gone)
        return prompt

    def _check_own(self, entry: _Entry) -> None:
        """Raises BundleError if the engine cannot run a prompt of its own bundle's: opening the
        bundle looked at the default one."""
        place = entry.place
        if place.held is None:
            return
        alone = msgspec.structs.replace(
            place.manifest, prompts={place.name: entry.info}, default_prompt=place.name
        )
        check_manifest(Bundle(place.folder, alone), self._problems(alone))
        self._check_beside(entry)

    def _check_beside(self, entry: _Entry) -> None:
        if self.default is not None:
            check_prefix(entry.place.folder, entry.info, [self._entries[self.default].info])

    def _give_back(self, entries: Iterable[_Entry]) -> None:
        with self._changed:
            gone = []
            for entry in entries:
                entry.uses -= 1
                if entry.replaced and not entry.uses and entry.prompt is not None:
                    gone.append(entry.prompt)
                    entry.prompt = None
            gone += self._surplus()
            self._changed.notify_all()
        self._tell(gone)

    def _surplus(self) -> list[Prompt]:
        """Let the least recently used prompts leave memory; the lock is held."""
        if self._most is None:
            return []
        here = [one for one in self._entries.values() if one.prompt is not None]
        idle = sorted((one for one in here if not one.uses), key=lambda one: one.last_used)
        gone = []
        for entry in idle[: max(len(here) - self._most, 0)]:
            assert entry.prompt is not None
            gone.append(entry.prompt)
            entry.prompt = None
        return gone

    def _tell(self, gone: Iterable[Prompt]) -> None:
        for prompt in gone:
            for forget in self.forget:
                forget(prompt)

    def after_fork(self) -> None:
        """The threads that held locks, and the requests that were counted, stayed behind."""
        self._changed, self._forks = Condition(), self._forks + 1
        for entry in self._entries.values():
            entry.uses, entry.reading = 0, Lock()
