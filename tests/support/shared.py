"""What costs much is made once in a session, whichever test process asks for it first."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import families, tiny
from support.characters import add_tokenizer

import ptdeploy


@dataclass(frozen=True)
class Compiled:
    """A tiny trained model and the bundle it was compiled to. Tests that change one copy it."""

    trained: tiny.Trained
    bundle: Path


@dataclass(frozen=True)
class Packed:
    """A pack, and the adapter that it was compiled from."""

    path: Path
    adapter: Path


class Shared:
    """Folders by what lies in them, below one of the session's own or one that is kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._folder.mkdir(parents=True, exist_ok=True)
        self._compiled: dict[str, Compiled] = {}

    def folder(self, key: object, fill: Callable[[Path], object]) -> Path:
        """The folder that `fill` filled for a key (its `repr`); others wait until it has."""
        name = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
        folder, done = self._folder / name, self._folder / f"{name}.done"
        with (self._folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    def compiled(
        self,
        architecture: str,
        task: str,
        options: dict[str, Any] | None = None,
        tokenizer: str = "",
        **how: Any,
    ) -> Compiled:
        """A tiny model made as tiny.make is told, and its bundle, compiled with these options.

        `tokenizer`, that the base has, is one of families.KINDS or "characters".
        """
        made = {"architecture": architecture, "task": task, **how}
        options = options or {}
        key = repr((sorted(made.items()), tokenizer, sorted(options.items())))
        if key not in self._compiled:
            live = []

            def fill(folder: Path) -> None:
                trained = tiny.make(folder, **made)
                if tokenizer == "characters":
                    add_tokenizer(trained.base, wrap=architecture in tiny.ENCODERS)
                elif tokenizer:
                    families.make(tokenizer).save_pretrained(trained.base)
                ptdeploy.compile(
                    trained.adapter,
                    base=str(trained.base),
                    output=folder / "bundle",
                    **{"target": "ort", **options},
                )
                live.append(trained.model)

            folder = self.folder(key, fill)
            if not live:
                with tempfile.TemporaryDirectory() as again:
                    live.append(tiny.make(Path(again), **made).model)
            trained = tiny.Trained(live[0], folder / "base", folder / "adapter")
            self._compiled[key] = Compiled(trained, folder / "bundle")
        return self._compiled[key]

    def packed(
        self,
        architecture: str,
        task: str,
        name: str = "other",
        tokens: int = 3,
        labels: int = 5,
        options: dict[str, Any] | None = None,
    ) -> Packed:
        """Another prompt over the base and the engine of `compiled` with these options.

        Its reference has as many rows.
        """
        first = self.compiled(architecture, task, options)

        def fill(folder: Path) -> None:
            trained = tiny.another(folder, first.trained, task, tokens, labels, seed=7)
            ptdeploy.compile_prompt(
                trained.adapter,
                over=first.bundle,
                base=str(trained.base),
                output=folder / f"{name}.prompt",
                golden=(options or {}).get("golden"),
            )

        folder = self.folder(("pack", str(first.bundle), name, tokens, labels), fill)
        return Packed(folder / f"{name}.prompt", folder / "adapter")
