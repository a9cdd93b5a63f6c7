"""The C++ library opens the bundles that Python opens, and refuses others in its words."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support import native
from support.damage import DAMAGE, edit, first_file
from support.native import opened
from support.refusals import python_refusal, same_refusal
from support.values import VALUES


def test_a_bundle_for_another_engine_is_refused(bundles, probe, tmp_path):
    shutil.copytree(bundles("fused"), tmp_path / "bundle")
    edit(tmp_path / "bundle", lambda m: m.update(target="trt", device="cuda"))
    answer = probe.ask("open", "e", tmp_path / "bundle")
    assert answer["error"] == "TargetUnavailable"
    assert "no backend for the target trt" in answer["problem"]
    assert "-DPTDEPLOY_TENSORRT=ON" in answer["fix"]


def test_another_device_or_an_unknown_one_is_refused(bundles, probe):
    for device in ("cuda", "abacus"):
        answer = probe.ask("open", "e", bundles("fused"), "", device)
        assert answer["error"] == "TargetUnavailable"
        assert f"not on '{device}'" in answer["problem"]


@pytest.mark.parametrize("damage", DAMAGE, ids=str)
def test_a_damaged_bundle_is_refused_as_in_python(compiled, probe, tmp_path, damage):
    bundle = tmp_path / "bundle"
    shutil.copytree(compiled(*damage.bundle).bundle, bundle)
    damage.do(bundle)
    theirs, ours = probe.ask("open", "d", bundle), python_refusal(bundle)
    assert damage.reason in theirs["problem"].replace("\\\\", "\\")
    assert same_refusal(theirs, ours, damage.same_words), (theirs, ours)


@pytest.mark.parametrize("kind", ["encoder classifier", "decoder classifier", "fused", "plain"])
def test_a_bundle_is_described_by_its_default_prompt(bundles, probe, tmp_path, kind):
    bundle = Path(shutil.copytree(bundles(kind), tmp_path / "bundle"))

    def rename(manifest: dict[str, Any]) -> None:
        manifest["prompts"] = {"Eu.ro_pa-1": manifest["prompts"].pop("default")}
        manifest["default_prompt"] = "Eu.ro_pa-1"
        for entry in manifest["files"]:
            entry["of"] = "Eu.ro_pa-1" if entry["of"] == "default" else entry["of"]

    edit(bundle, rename)
    manifest = opened(probe, bundle).manifest
    prompt, context = manifest.prompt, manifest.limits.max_context
    assert probe.ask("info", "e") == {
        "prompt": "Eu.ro_pa-1",
        "labels": list(prompt.labels),
        "route": manifest.graph.route,
        "num_virtual_tokens": prompt.num_virtual_tokens,
        "prefix_kv": prompt.prefix_kv is not None,
        "max_sequence": context - prompt.num_virtual_tokens,
        "max_context": context,
        "columns": len(prompt.labels) or manifest.graph.outputs[0].shape[-1],
    }


@pytest.mark.parametrize("kind", ["encoder classifier", "decoder classifier", "fused"])
@pytest.mark.parametrize("shape", [[], [2], [2, 2, 2, 5], [2, 2, 2, 5, 8, 1]], ids=str)
def test_a_prefix_of_other_axes_is_refused_as_in_python(bundles, probe, tmp_path, kind, shape):
    bundle = Path(shutil.copytree(bundles(kind), tmp_path / "bundle"))
    edit(bundle, lambda m: m["prompts"]["default"].update(prefix_kv=shape))
    theirs, ours = probe.ask("open", "d", bundle), python_refusal(bundle)
    assert ours is not None
    assert "prompts['default'].prefix_kv is not " in ours.problem
    assert same_refusal(theirs, ours, True), (theirs, ours)


def test_a_bundle_reached_through_links_and_odd_paths_opens(compiled, probe, tmp_path):
    source = compiled("gpt2", "CAUSAL_LM").bundle
    shutil.copytree(source, tmp_path / "bundle")
    (tmp_path / "bundle" / "model.onnx.data").rename(tmp_path / "bundle" / "moved")
    (tmp_path / "bundle" / "model.onnx.data").symlink_to("moved")
    (tmp_path / "link").symlink_to(tmp_path / "bundle")
    edit(tmp_path / "bundle", lambda m: first_file(m).update(path=".//./model.onnx"))
    for path in (tmp_path / "link", f"{tmp_path}//link/./", f"{tmp_path}/bundle/../link"):
        assert probe.ask("open", "e", path) == {}
        assert python_refusal(Path(path)) is None
    assert (
        probe.ask("read", "e", "parity")
        == (source / "prompts" / "default" / "parity.json").read_text()
    )
    assert probe.ask("read", "e", "tokenizer") == ""


def test_json_that_is_nested_without_end_is_refused_on_a_small_stack(built):
    deep = str(built / "deep")
    assert native.checked([deep, "32"]) == "read"
    for levels in ("33", "100000"):
        assert native.checked([deep, levels]) == "JSON is malformed: nested too deeply (byte 197)"


JSON_ERROR = re.compile(r"malformed|truncated|codec can't|surrogate|Expected `object`, got")


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
@example(place=0.0078125, byte=128)
def test_any_changed_byte_of_the_manifest_is_judged_as_in_python(
    compiled, probe, tmp_path, place, byte
):
    bundle = tmp_path / "bundle"
    if not bundle.exists():
        shutil.copytree(compiled("gpt2", "CAUSAL_LM").bundle, bundle)
    original = (compiled("gpt2", "CAUSAL_LM").bundle / "manifest.json").read_bytes()
    content = bytearray(original)
    content[int(place * len(content))] = byte
    (bundle / "manifest.json").write_bytes(content)
    theirs, ours = probe.ask("open", "d", bundle), python_refusal(bundle)
    same_words = ours is None or not JSON_ERROR.search(ours.problem)
    assert same_refusal(theirs, ours, same_words), (theirs, ours)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_changed_field_is_judged_as_in_python(compiled, probe, tmp_path, data):
    source = compiled("gpt2", "CAUSAL_LM").bundle
    bundle = tmp_path / "bundle"
    if not bundle.exists():
        shutil.copytree(source, bundle)
    manifest = json.loads((source / "manifest.json").read_text())
    place: Any = manifest
    while True:
        keys = sorted(place) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(keys))
        inner = place[key]
        if isinstance(inner, (dict, list)) and inner and data.draw(st.booleans()):
            place = inner
            continue
        place[key] = data.draw(VALUES)
        break
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    theirs, ours = probe.ask("open", "d", bundle), python_refusal(bundle)
    assert same_refusal(theirs, ours, True), (theirs, ours)


def test_sha256_of_every_length_around_a_block(built, tmp_path):
    """With the processor's instructions and without."""
    for size in (0, 1, 55, 56, 57, 63, 64, 65, 119, 120, 127, 128, 1000, 3 << 20):
        content = np.random.default_rng(size).bytes(size)
        (tmp_path / "file").write_bytes(content)
        got = native.checked([str(built / "hash"), str(tmp_path / "file")]).split()
        assert set(got) == {hashlib.sha256(content).hexdigest()}
        assert len(got) == 3
