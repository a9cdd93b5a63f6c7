"""Several prompts trained over one base, each in a bundle of its own: the engine is the same."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support import tiny
from support.damage import PROMPT, edit
from support.prompts import Tuned
from support.shared import Compiled, Shared

import ptdeploy
from ptdeploy.program.prompt import save_prompt

# Kind, virtual tokens, labels, by the prompt's name; "default" is P-Tuning's, with 5 and 3.
OTHERS = {
    "long": ("P-Tuning, MLP", 9, 2),
    "short": ("prompt tuning", 3, 6),
    "prefix": ("prefix tuning", 7, 4),
}

# Rows for a batch that mixes prompts: of unlike lengths, and two pairs that are the same text.
ROWS: list[list[int]] = [
    [5, 6, 7],
    [40],
    list(range(10, 30)),
    [9, 10, 11, 12],
    list(range(50, 62)),
    [9, 10, 11, 12],
    [5, 6, 7],
]


@dataclass(frozen=True)
class Siblings:
    """The first prompt and others by name: PEFT's model of each, and its bundle."""

    task: str
    first: Compiled
    others: dict[str, Compiled]

    def engine(self, **options: Any) -> Any:
        """The first's engine, in which all prompts are loaded."""
        engine = ptdeploy.load(self.first.bundle, **options)
        for name, one in self.others.items():
            engine.load_prompt(one.bundle, name)
        return engine

    @property
    def names(self) -> list[str]:
        return ["default", *self.others]

    def of(self, name: str | None) -> Compiled:
        return self.first if name in (None, "default") else self.others[str(name)]

    def labels(self, name: str | None) -> int:
        return int(self.of(name).trained.model.config.num_labels)

    def alone(self, ids: Any, name: str | None) -> np.ndarray:
        """PEFT's logits of one unpadded row: (classes,), or (tokens, columns) of its own tokens."""
        model = self.of(name).trained.model
        model = model.get_base_model() if name is None else model
        row = torch.tensor([list(map(int, ids))])
        with torch.no_grad():
            logits = model(input_ids=row, attention_mask=torch.ones_like(row)).logits[0]
        return np.asarray((logits if logits.dim() == 1 else logits[-row.shape[1] :]).numpy())


def siblings(
    shared: Shared,
    architecture: str,
    task: str,
    names: tuple[str, ...],
    options: dict[str, Any],
    **how: Any,
) -> Siblings:
    """A tiny model with P-Tuning's prompt, and the named others over the same base."""
    first = shared.compiled(architecture, task, options, **how)
    others = {name: _another(shared, first, task, name) for name in names}
    return Siblings(task, first, others)


def _another(shared: Shared, first: Compiled, task: str, name: str) -> Compiled:
    kind, tokens, labels = OTHERS[name]
    seed = 1 + list(OTHERS).index(name)
    live: list[tiny.Trained] = []

    def fill(folder: Path) -> None:
        live.append(tiny.another(folder, first.trained, task, tokens, labels, seed, kind))
        _with_prompt(first.bundle, live[0], folder / "bundle", name)

    folder = shared.folder((str(first.bundle), name), fill)
    if not live:
        again = folder / "again"
        live.append(tiny.another(again, first.trained, task, tokens, labels, seed, kind))
    return Compiled(live[0], folder / "bundle")


def _with_prompt(bundle: Path, trained: tiny.Trained, place: Path, name: str) -> None:
    """A copy of a bundle with another prompt in the first one's place, and nothing proven."""
    shutil.copytree(bundle, place)
    manifest = json.loads((place / "manifest.json").read_text())
    (info,) = manifest["prompts"].values()
    prompt = Tuned.of(trained).prompt
    if info["prefix_kv"] is None and prompt.virtual_tokens is not None:
        prompt = replace(prompt, prefix_kv=None)
    save_prompt(prompt, (place / PROMPT).parent)
    info["num_virtual_tokens"], info["sha256"] = prompt.num_virtual_tokens, prompt.sha256
    info["token_dim"] = None if prompt.virtual_tokens is None else prompt.virtual_tokens.shape[1]
    info["prefix_kv"] = None if prompt.prefix_kv is None else prompt.prefix_kv.shape
    # PEFT gives the ids to a decoder alone, behind a prefix KV that was trained itself.
    reads_ids = prompt.virtual_tokens is None and hasattr(trained.model.get_base_model(), "score")
    info["padding_id"] = trained.model.config.pad_token_id if reads_ids else None
    if info["labels"]:
        labels = trained.model.config.num_labels
        info["labels"] = [f"{trained.adapter.parent.name[:3]}_{i}" for i in range(labels)]
    files = [one for one in manifest["files"] if one["of"] != "default" or one["path"] == PROMPT]
    content = (place / PROMPT).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    for entry in files:
        if entry["path"] == PROMPT:
            entry.update(size=len(content), sha256=digest)
    manifest["files"] = files
    edit(place, lambda old: old.update(manifest))
    rename_prompt(place, name)


def rename_prompt(bundle: Path, name: str) -> Path:
    """Call the one prompt of a bundle so."""

    def change(manifest: dict[str, Any]) -> None:
        ((old, info),) = manifest["prompts"].items()
        manifest.update(prompts={name: info}, default_prompt=name)
        for entry in manifest["files"]:
            if entry["of"] == old:
                entry["of"] = name

    edit(bundle, change)
    return bundle


def renamed(bundle: Path, place: Path, name: str) -> Path:
    """A copy of a bundle of one prompt, called so there."""
    return rename_prompt(Path(shutil.copytree(bundle, place)), name)
