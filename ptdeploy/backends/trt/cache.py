"""Engines that were built before, so that the same build is not done twice."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ptdeploy.files import replace_file

# Engines hold their weights: the oldest go where all together are larger.
_MOST_BYTES = 20 << 30


def folder() -> Path:
    """$PTDEPLOY_CACHE, or ptdeploy in the user's cache folder."""
    if given := os.environ.get("PTDEPLOY_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ptdeploy"


def key(facts: Mapping[str, Any]) -> str:
    """A name for everything that a build depends on."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def find(name: str, kind: str) -> bytes | None:
    """What was kept under that name, if it is still whole; what is not is removed."""
    for path in sorted(folder().glob(f"{name}-*.{kind}")):
        try:
            content = path.read_bytes()
            whole = path.stem == f"{name}-{hashlib.sha256(content).hexdigest()}"
            # When it was last of use; another user's cache cannot be told.
            with contextlib.suppress(OSError):
                os.utime(path) if whole else path.unlink(missing_ok=True)
        except OSError:
            continue
        if whole:
            return content
    return None


def keep(name: str, kind: str, content: bytes) -> None:
    """Keep it in place of what had that name. Raises OSError if the folder cannot be written to."""
    final = folder() / f"{name}-{hashlib.sha256(content).hexdigest()}.{kind}"
    older = list(folder().glob(f"{name}-*.{kind}"))
    replace_file(final, content)
    for path in older:
        if path != final:
            path.unlink(missing_ok=True)
    _trim()


def _trim() -> None:
    files = [(path.stat(), path) for path in folder().glob("*-*.*") if path.is_file()]
    total = sum(found.st_size for found, _ in files)
    for found, path in sorted(files, key=lambda item: item[0].st_mtime):
        if total <= _MOST_BYTES:
            return
        path.unlink(missing_ok=True)
        total -= found.st_size
