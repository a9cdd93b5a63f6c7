"""A bundle is read strictly and written atomically."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.damage import DAMAGE, edit, flip, the_graph, the_prompt

import ptdeploy
from ptdeploy.bundle import read_bundle
from ptdeploy.bundle.held import Held
from ptdeploy.cli.main import main
from ptdeploy.errors import BundleError


@pytest.mark.parametrize("damage", DAMAGE, ids=str)
def test_a_damaged_bundle_is_refused_with_the_reason(compiled, tmp_path, damage):
    bundle = tmp_path / "bundle"
    shutil.copytree(compiled(*damage.bundle).bundle, bundle)
    damage.do(bundle)
    with pytest.raises(damage.error, match=re.escape(damage.reason)):
        ptdeploy.load(bundle)
    assert main(["run", str(bundle), "--ids", "5"]) == 2


@pytest.mark.parametrize("command", [["verify", "-q"], ["inspect"], ["run", "--ids", "5"]])
def test_every_command_refuses_a_damaged_bundle(compiled, tmp_path, command):
    bundle = tmp_path / "bundle"
    shutil.copytree(compiled("gpt2", "CAUSAL_LM").bundle, bundle)
    flip(bundle / "model.onnx.data", 0.5)
    assert main([command[0], str(bundle), *command[1:]]) == 2


@pytest.mark.parametrize("command", ["verify", "inspect", "run", "rebuild", "diff"])
def test_the_format_before_is_refused_with_the_reason_and_the_way_out(
    compiled, tmp_path, capsys, command
):
    bundle = tmp_path / "bundle"
    shutil.copytree(compiled("gpt2", "CAUSAL_LM").bundle, bundle)
    edit(bundle, as_format_3)
    more = {"run": ["--ids", "5"], "diff": [str(bundle)]}.get(command, [])
    assert main([command, str(bundle), *more]) == 2
    said = capsys.readouterr().err
    assert (
        f"{bundle}/manifest.json: is 'ptdeploy-bundle' version 3; this ptdeploy reads "
        "'ptdeploy-bundle' version 4.\n"
    ) in said
    assert "Compile the checkpoint again, or install the ptdeploy that made the bundle." in said


def as_format_3(manifest: dict[str, Any]) -> None:
    """The manifest as the format before had it: one prompt, in the manifest itself."""
    graph, prompt = the_graph(manifest), the_prompt(manifest)
    base, limits = manifest.pop("base"), manifest["limits"]
    for name in ("graphs", "prompts", "default_prompt"):
        del manifest[name]
    for spec in (*graph["inputs"], *graph["outputs"]):
        del spec["role"]
    for entry in manifest["files"]:
        del entry["of"]
    source = {
        **prompt.pop("source"),
        "base_model": base["name"],
        "base_config_sha256": base["config_sha256"],
        "architecture": base["architecture"],
    }
    limits["max_sequence"] = limits["max_context"] - prompt["num_virtual_tokens"]
    of_prompt = ("labels", "head", "parity", "graph_parity")
    manifest.update({name: prompt.pop(name) for name in of_prompt})
    manifest.update(inputs=graph.pop("inputs"), outputs=graph.pop("outputs"), graph=graph)
    manifest.update(format_version=3, prompt=prompt, source=source)


def test_a_prompt_whose_name_leaves_the_bundle_is_refused_before_anything_is_done_with_it(
    compiled, tmp_path, capsys
):
    """Reading refuses it, and not only opening the engine: rebuild makes folders of names."""
    bundle = tmp_path / "bundle"
    shutil.copytree(compiled("bert", "SEQ_CLS").bundle, bundle)

    def change(manifest: dict[str, Any]) -> None:
        manifest["prompts"]["../../outside"] = the_prompt(manifest)

    edit(bundle, change)
    with pytest.raises(BundleError, match="prompts has a name that no prompt can have"):
        read_bundle(bundle)
    assert main(["inspect", str(bundle)]) == 2
    assert "prompts has a name that no prompt can have" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["inspect"], ["verify", "-q"], ["run", "--ids", "5"]])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m["prompts"].clear(), "default_prompt is not the name of a prompt"),
        (lambda m: m.update(default_prompt="x"), "default_prompt is not the name of a prompt"),
        (lambda m: m["graphs"].clear(), "graphs must have one, 'model'"),
    ],
)
def test_every_command_refuses_names_that_lead_nowhere(
    compiled, tmp_path, capsys, command, change, reason
):
    bundle = tmp_path / "bundle"
    shutil.copytree(compiled("bert", "SEQ_CLS").bundle, bundle)
    edit(bundle, change)
    assert main([command[0], str(bundle), *command[1:]]) == 2
    assert f"manifest.json: {reason}." in capsys.readouterr().err


def test_external_data_outside_the_folder_is_for_the_engine_to_refuse(compiled, tmp_path):
    """Its hashes are right: the bundle was made to attack, and reading alone finds nothing."""
    bundle = tmp_path / "bundle"
    shutil.copytree(compiled("gpt2", "CAUSAL_LM").bundle, bundle)
    (attack,) = (one for one in DAMAGE if one.name == "external data outside the folder")
    attack.do(bundle)
    read_bundle(bundle)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@given(data=st.data())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_changed_field_is_read_or_refused_with_a_reason(compiled, tmp_path, data):
    source = compiled("gpt2", "CAUSAL_LM").bundle
    manifest = json.loads((source / "manifest.json").read_text())
    key = data.draw(st.sampled_from(sorted(manifest)))
    inner = manifest[key]
    if isinstance(inner, dict) and inner and data.draw(st.booleans()):
        inner[data.draw(st.sampled_from(sorted(inner)))] = data.draw(JSON)
    else:
        manifest[key] = data.draw(JSON)
    folder = tmp_path / "mutated"
    if not folder.exists():
        shutil.copytree(source, folder)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with contextlib.suppress(BundleError):
        read_bundle(folder)


def test_the_manifest_round_trips(compiled):
    manifest = read_bundle(compiled("bert", "SEQ_CLS").bundle).manifest
    again = msgspec.json.decode(msgspec.json.encode(manifest), type=type(manifest))
    assert again == manifest


@pytest.mark.parametrize(("data", "refused"), [(1 << 16, True), (96 << 20, False)])
def test_a_file_of_few_holes_for_its_bytes_is_no_damage(tmp_path, data, refused):
    """A file system that compresses may keep zeros as holes, in the middle of weights too."""
    with (tmp_path / "weights").open("wb") as file:
        for place in range(0, 1 << 30, 1 << 28):
            file.seek(place)
            file.write(b"\1" * (data // 4))
        file.truncate((1 << 30) + 1)
    assert Held(tmp_path).is_hollow("weights") is refused
    os.truncate(tmp_path / "weights", 1 << 30)
    assert not Held(tmp_path).is_hollow("weights"), "that many bytes are read in a second"
