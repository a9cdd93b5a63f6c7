"""Fixtures: tiny trained models and their bundles, each compiled once in a session."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from support import native, tiny

import ptdeploy

# Two cores, and as many processes as pytest-xdist was asked for.
torch.set_num_threads(max(2 // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")), 1))


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


@pytest.fixture(scope="session")
def bundles(tmp_path_factory, compiled) -> Callable[[str], Path]:
    """`bundles(kind)`: compiled when first asked for."""
    trained: dict[tuple[str, str], tiny.Trained] = {}
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        architecture, task, options = native.KINDS[kind]
        if task != "CAUSAL_LM" and not options:
            return Path(compiled(architecture, task).bundle)
        if kind not in made:
            folder = tmp_path_factory.mktemp("cpp")
            if (architecture, task) not in trained:
                trained[architecture, task] = tiny.make(
                    folder, architecture, task, max_position_embeddings=700
                )
            one = trained[architecture, task]
            made[kind] = ptdeploy.compile(
                one.adapter, target="ort", base=str(one.base), output=folder / "bundle", **options
            ).path
        return made[kind]

    return get


@pytest.fixture(scope="session")
def built() -> Path:
    """Where the C++ tests and examples were built."""
    return native.build(native.TESTS, BUILD_SHARED_LIBS="ON")
