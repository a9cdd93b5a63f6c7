"""A bundle is read strictly and written atomically."""

from __future__ import annotations

import contextlib
import json
import re
import shutil

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.damage import DAMAGE, flip

import ptdeploy
from ptdeploy.bundle import read_bundle
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
