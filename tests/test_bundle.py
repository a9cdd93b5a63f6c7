"""A bundle is read strictly and written atomically."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ptdeploy
from ptdeploy.bundle import MAX_MANIFEST_BYTES, read_bundle
from ptdeploy.cli import main
from ptdeploy.errors import BundleError

FILES = (
    "model.onnx",
    "model.onnx.data",
    "prompt.safetensors",
    "reference.safetensors",
    "parity.json",
)


@pytest.fixture
def bundle(compiled, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(compiled("gpt2", "CAUSAL_LM").bundle, tmp_path / "bundle"))


def edit(bundle: Path, change: Callable[[dict], object]) -> None:
    file = bundle / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


def refused(bundle: Path, reason: str) -> None:
    with pytest.raises(BundleError, match=reason):
        ptdeploy.load(bundle)
    assert main(["verify", str(bundle), "-q"]) == 2
    assert main(["inspect", str(bundle)]) == 2


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(bundle, name):
    (bundle / name).unlink()
    refused(bundle, "missing")


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file(bundle, name):
    (bundle / name).write_bytes((bundle / name).read_bytes()[:-1])
    refused(bundle, "bytes, but the manifest says")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.0, 0.5, 0.999])
def test_one_flipped_bit(bundle, name, place):
    content = bytearray((bundle / name).read_bytes())
    content[int(place * len(content))] ^= 1
    (bundle / name).write_bytes(content)
    refused(bundle, "SHA-256")


def first_file(manifest: dict) -> dict:
    return manifest["files"][0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.update(format_version=3), "version 3"),
        (lambda m: m.update(format="zip"), "'zip'"),
        (lambda m: m.update(surprise=1), "surprise"),
        (lambda m: m.pop("limits"), "limits"),
        (lambda m: m.update(task="MAGIC"), "MAGIC"),
        (lambda m: first_file(m).update(path="../model.onnx"), "leaves the bundle"),
        (lambda m: first_file(m).update(path="/etc/passwd"), "leaves the bundle"),
        (lambda m: first_file(m).update(path="a/../../b"), "leaves the bundle"),
        (lambda m: first_file(m).update(path="a\\b"), "leaves the bundle"),
        (lambda m: first_file(m).update(path=""), "leaves the bundle"),
        (lambda m: first_file(m).update(role="virus"), "virus"),
        (lambda m: m["files"].append(first_file(m)), "twice"),
        (lambda m: m["files"].pop(0), "role 'model'"),
        (lambda m: m.update(generation=None), "generation"),
        (lambda m: m["prompt"].update(prefix_kv=[1, 2, 3]), "one KV buffer"),
        (lambda m: m["prompt"].update(num_virtual_tokens=4), "one KV buffer"),
        (lambda m: m["inputs"][3].update(shape=["batch", "heads", "slots", 8]), "one KV buffer"),
        (lambda m: m["inputs"][3].update(dtype="object"), "one KV buffer"),
        (lambda m: m["outputs"].pop(), "one KV buffer"),
        (lambda m: m["graph"].update(route="scenic"), "route"),
    ],
)
def test_a_manifest_that_says_what_it_must_not(bundle, change, reason):
    edit(bundle, change)
    with pytest.raises(BundleError, match=reason):
        ptdeploy.load(bundle)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_manifest_that_is_not_json(bundle, content):
    (bundle / "manifest.json").write_bytes(content)
    refused(bundle, "not a valid manifest")


def test_an_oversize_manifest(bundle):
    (bundle / "manifest.json").write_bytes(b" " * (MAX_MANIFEST_BYTES + 1))
    refused(bundle, "not a manifest")


def test_a_link_out_of_the_folder(bundle, tmp_path):
    shutil.move(bundle / "model.onnx", tmp_path / "outside.onnx")
    (bundle / "model.onnx").symlink_to(tmp_path / "outside.onnx")
    refused(bundle, "link that leaves")


def test_external_data_outside_the_folder_is_not_read(bundle, tmp_path):
    """The hashes are right, so this bundle was made to attack: the engine itself must refuse."""
    import hashlib

    import onnx

    shutil.copy(bundle / "model.onnx.data", tmp_path / "secret")
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../secret"
    content = model.SerializeToString()
    (bundle / "model.onnx").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    edit(bundle, lambda m: first_file(m).update(size=len(content), sha256=digest))
    read_bundle(bundle)
    with pytest.raises(BundleError, match="ONNX Runtime cannot load it"):
        ptdeploy.load(bundle)


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


# Dies at the n-th call of a function that publishing depends on.
CRASH = """
import os, sys
from pathlib import Path
import msgspec
from ptdeploy import bundle as module

source, destination, name, at = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
real, calls = getattr(os, name), 0

def dies(*arguments, **options):
    global calls
    calls += 1
    if calls == at:
        os._exit(9)
    return real(*arguments, **options)

setattr(os, name, dies)
manifest = module.read_bundle(source).manifest
import shutil
with module.stage_bundle(destination) as staging:
    for entry in manifest.files:
        shutil.copy(source / entry.path, staging / entry.path)
    module.publish(staging, manifest, destination)
"""


@pytest.mark.parametrize("replacing", [False, True])
@pytest.mark.parametrize(
    ("name", "at"), [("fsync", 1), ("fsync", 4), ("fsync", 7), ("rename", 1), ("rename", 2)]
)
def test_a_kill_leaves_a_whole_bundle_or_none(compiled, tmp_path, replacing, name, at):
    source = compiled("gpt2", "CAUSAL_LM").bundle
    destination = tmp_path / "published"
    if replacing:
        shutil.copytree(source, destination)
    arguments = [sys.executable, "-c", CRASH, str(source), str(destination), name, str(at)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    died = done.returncode == 9
    assert died or (done.returncode == 0 and name == "rename" and at == 2 and not replacing), (
        done.stderr
    )
    if destination.exists():
        read_bundle(destination)
    else:
        # Between two renames the older bundle waits, whole, beside the new one.
        waiting = list(tmp_path.glob(".published.*/replaced"))
        assert len(waiting) == (1 if replacing else 0)
        for folder in waiting:
            read_bundle(folder)


def test_the_manifest_round_trips(compiled):
    manifest = read_bundle(compiled("bert", "SEQ_CLS").bundle).manifest
    again = msgspec.json.decode(msgspec.json.encode(manifest), type=type(manifest))
    assert again == manifest
