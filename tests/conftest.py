"""Fixtures: tiny trained models and their bundles, each compiled once in a session."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny
import torch

import ptdeploy

torch.set_num_threads(2)


@dataclass(frozen=True)
class Compiled:
    """A tiny trained model and the bundle it was compiled to."""

    trained: tiny.Trained
    bundle: Path


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Compiled]:
    """`compiled(architecture, task)`: the same bundle however often it is asked for."""
    made: dict[tuple[str, str], Compiled] = {}

    def get(architecture: str, task: str) -> Compiled:
        key = (architecture, task)
        if key not in made:
            folder = tmp_path_factory.mktemp(f"{architecture}-{task}")
            trained = tiny.make(folder, architecture, task)
            bundle = ptdeploy.compile(
                trained.adapter, target="ort", base=str(trained.base), output=folder / "bundle"
            )
            made[key] = Compiled(trained, bundle.path)
        return made[key]

    return get
