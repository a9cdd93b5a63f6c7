"""Packs that say what is not so, and what they are then refused for: one table for both readers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Change = Callable[[dict[str, Any]], object]


def _first(**fields: Any) -> Change:
    return lambda manifest: manifest["files"][0].update(fields)


# A change of the manifest, and words of the refusal.
PACK_DAMAGE: list[tuple[Change, str]] = [
    (lambda m: m.update(format_version=2), "'ptdeploy-prompt' version 2; this ptdeploy reads"),
    (lambda m: m.update(extra=1), "not a valid manifest"),
    (lambda m: m.pop("engine_sha256"), "not a valid manifest"),
    (lambda m: m.update(task="SEQ"), "not a valid manifest"),
    (lambda m: m.update(base=1), "not a valid manifest"),
    (lambda m: m["prompt"].update(head="none"), "not a valid manifest"),
    (lambda m: m.update(engine_sha256="x"), "engine_sha256 is no SHA-256"),
    (lambda m: m.update(name="../up"), "name is one that no prompt can have"),
    (_first(role="model"), "files[0].role is 'model', which is no file of a prompt"),
    (_first(role="parity"), "lists two files with the role 'parity'"),
    (_first(of="another"), "files[0].of is not the pack's name"),
    (_first(of=None), "files[0].of is not the pack's name"),
    (_first(path="../prompt.safetensors"), "leaves the bundle's folder"),
    (_first(path="/etc/passwd"), "leaves the bundle's folder"),
    (lambda m: m["files"].append(m["files"][0]), "lists two files with the role 'prompt'"),
    (lambda m: m["files"][2].update(path=m["files"][0]["path"]), "'prompt.safetensors' twice"),
    (_first(path="gone"), "is missing"),
    (_first(size=1), "bytes, but the manifest says 1"),
    (lambda m: m["files"].pop(0), "lists no file with the role 'prompt'"),
    (lambda m: m["files"].pop(1), "lists no file with the role 'reference'"),
]
