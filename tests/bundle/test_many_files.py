"""A bundle of many prompts has more files than a process may hold open."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.damage import edit, flip

import ptdeploy
from ptdeploy.bundle import read_bundle
from ptdeploy.bundle.held import spare_descriptors
from ptdeploy.cli.main import main
from ptdeploy.errors import BundleError
from ptdeploy.runtime import open_engine

ROWS = [[5, 6, 7], [40], [9, 10, 11, 12]]
MANY = 150


@pytest.fixture(scope="module")
def many(compiled, tmp_path_factory) -> Path:
    """A bundle with over 450 files of prompts."""
    place = tmp_path_factory.mktemp("many") / "bundle"
    shutil.copytree(compiled("qwen2", "CAUSAL_LM").bundle, place)

    def multiply(manifest: dict) -> None:
        own = [one for one in manifest["files"] if one["of"] == "default"]
        for index in range(MANY):
            name = f"p{index:03}"
            shutil.copytree(place / "prompts/default", place / f"prompts/{name}")
            manifest["prompts"][name] = manifest["prompts"]["default"]
            for entry in own:
                path = entry["path"].replace("/default/", f"/{name}/")
                manifest["files"].append({**entry, "path": path, "of": name})

    edit(place, multiply)
    return place


@pytest.fixture
def copied(many, tmp_path) -> Path:
    shutil.copytree(many, tmp_path / "copied")
    return tmp_path / "copied"


@pytest.fixture(autouse=True)
def few_descriptors() -> Iterator[None]:
    """As `ulimit -n 256`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_it_is_opened_and_every_prompt_answers(many):
    engine = ptdeploy.load(many)
    wanted = engine.logits(ROWS)
    for name in ("p000", "p077", f"p{MANY - 1:03}"):
        assert all(map(np.array_equal, engine.logits(ROWS, prompt=name), wanted))
    assert len(engine.prompts) == MANY + 1


def test_every_command_takes_it(copied, packed, capsys):
    pack = str(packed("qwen2", "CAUSAL_LM").path)
    for action, *given in (
        ["add", pack, "--name", "more"],
        ["default", "p090"],
        ["remove", "default"],
        ["list"],
    ):
        assert main(["prompt", action, str(copied), *given]) == 0
    assert main(["inspect", str(copied), "--json"]) == 0
    assert main(["verify", str(copied), "--prompt", "more"]) == 0
    assert '"more"' in capsys.readouterr().out


def test_a_prompt_that_is_not_held_open_is_the_one_that_was_read(copied, tmp_path):
    """Of a folder that has gone, and of one whose file became another."""
    last = f"p{MANY - 1:03}"
    bundle = read_bundle(copied)
    assert spare_descriptors() < MANY
    engine = open_engine(bundle)
    wanted = engine.logits(ROWS)
    file = copied / f"prompts/{last}/prompt.safetensors"
    shutil.copy(file, tmp_path / "kept")
    flip(file, 0.9)
    with pytest.raises(BundleError, match="was changed since"):
        engine.logits(ROWS, prompt=last)
    shutil.copy(tmp_path / "kept", file)
    assert all(map(np.array_equal, engine.logits(ROWS, prompt=last), wanted))
    shutil.rmtree(copied)
    with pytest.raises(BundleError, match="cannot be read"):
        engine.logits(ROWS, prompt="p148")
    assert all(map(np.array_equal, engine.logits(ROWS, prompt="p000"), wanted))


def test_a_running_engine_finds_its_prompts_in_the_bundle_that_took_the_olds_place(copied, packed):
    engine = ptdeploy.load(copied)
    wanted = engine.logits(ROWS)
    ptdeploy.prompt_add(copied, packed("qwen2", "CAUSAL_LM").path, name="more")
    ptdeploy.prompt_remove(copied, "p140")
    assert all(map(np.array_equal, engine.logits(ROWS, prompt="p149"), wanted))
    with pytest.raises(BundleError, match=r"p140/prompt\.safetensors: cannot be read"):
        engine.logits(ROWS, prompt="p140")


def test_damage_of_a_prompt_is_seen_by_who_uses_it(copied):
    """Other prompts go on; what proves all of them says so."""
    flip(copied / "prompts/p090/prompt.safetensors", 0.9)
    engine = ptdeploy.load(copied)
    assert engine.logits(ROWS, prompt="p091")
    with pytest.raises(BundleError, match=r"p090/prompt\.safetensors: was changed"):
        engine.logits(ROWS, prompt="p090")
    with pytest.raises(BundleError, match="its SHA-256 is not the manifest's"):
        ptdeploy.verify(copied)
    with pytest.raises(BundleError, match=r"p090/prompt\.safetensors: its SHA-256 is not"):
        ptdeploy.verify(copied, prompt="p090")
    before = json.loads((copied / "manifest.json").read_text())
    with pytest.raises(BundleError, match=r"p090/prompt\.safetensors: was changed"):
        ptdeploy.prompt_default(copied, "p090")
    assert json.loads((copied / "manifest.json").read_text()) == before
    assert ptdeploy.verify(copied, prompt="p091").passed
