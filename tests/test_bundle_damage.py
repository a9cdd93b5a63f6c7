"""A damaged or dishonest bundle is refused with its reason, and a kill never leaves half of one.

test_bundle.py has the plain damages: files missing, cut or flipped, and fields changed. Here the
manifest agrees with the files, but says what the engine in it cannot do.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from damage import MANIFEST, edit_json, make_unreadable, refused, rewrite
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save

import ptdeploy
from ptdeploy.bundle import MAX_MANIFEST_BYTES, publish, read_bundle, stage_bundle
from ptdeploy.cli import main
from ptdeploy.errors import BundleError, PtdeployError


@pytest.fixture
def bundle(compiled, tmp_path: Path) -> Path:
    return Path(shutil.copytree(compiled("gpt2", "CAUSAL_LM").bundle, tmp_path / "bundle"))


@pytest.fixture
def classifier(compiled, tmp_path: Path) -> Path:
    return Path(shutil.copytree(compiled("bert", "SEQ_CLS").bundle, tmp_path / "classifier"))


def refused_by_all(bundle: Path, capsys, reason: str) -> None:
    """read_bundle raises BundleError; verify, inspect and run exit with 2."""
    with pytest.raises(BundleError, match=reason):
        read_bundle(bundle)
    for command in (["verify", "-q"], ["inspect"], ["run", "--ids", "5"]):
        refused(capsys, [command[0], str(bundle), *command[1:]])


def first_file(manifest: dict) -> dict:
    return manifest["files"][0]


# The folder


def test_a_copied_bundle_works_after_the_first_is_gone(bundle, tmp_path, monkeypatch):
    want = ptdeploy.load(bundle).logits([[5, 6, 7]])[0]
    shutil.move(bundle, tmp_path / "elsewhere" / "näme with spaces")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert np.array_equal(ptdeploy.load("näme with spaces").logits([[5, 6, 7]])[0], want)
    assert main(["verify", "näme with spaces", "-q"]) == 0


def test_a_bundle_behind_a_link_works(bundle, tmp_path):
    (tmp_path / "current").symlink_to(bundle)
    assert main(["verify", str(tmp_path / "current"), "-q"]) == 0


def test_a_read_only_bundle_works(bundle):
    for path in (*bundle.iterdir(), bundle):
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert main(["verify", str(bundle), "-q"]) == 0


@pytest.mark.parametrize("name", [MANIFEST, "model.onnx"])
def test_a_file_that_cannot_be_read_is_refused(bundle, capsys, name):
    make_unreadable(bundle / name)
    # Of the listed files, a link that leaves the bundle is refused before it is read.
    refused_by_all(bundle, capsys, name if name == MANIFEST else "link that leaves")


def test_a_folder_or_a_pipe_in_place_of_a_file_is_refused(bundle, capsys):
    (bundle / "prompt.safetensors").unlink()
    (bundle / "prompt.safetensors").mkdir()
    refused_by_all(bundle, capsys, "missing")
    (bundle / "prompt.safetensors").rmdir()
    os.mkfifo(bundle / "prompt.safetensors")
    refused_by_all(bundle, capsys, "missing")


def test_a_manifest_that_is_a_pipe_is_refused(bundle, capsys):
    (bundle / MANIFEST).unlink()
    os.mkfifo(bundle / MANIFEST)
    refused_by_all(bundle, capsys, "no manifest.json")


def test_a_link_in_a_circle_is_refused(bundle, capsys):
    (bundle / "model.onnx").unlink()
    (bundle / "model.onnx").symlink_to("model.onnx")
    refused_by_all(bundle, capsys, "model.onnx")


def test_a_folder_link_out_of_the_bundle_is_refused(bundle, capsys, tmp_path):
    (tmp_path / "outside").mkdir()
    shutil.move(bundle / "model.onnx", tmp_path / "outside" / "model.onnx")
    (bundle / "in").symlink_to(tmp_path / "outside")
    edit_json(bundle / MANIFEST, lambda m: first_file(m).update(path="in/model.onnx"))
    refused_by_all(bundle, capsys, "link that leaves")


# The manifest


@pytest.mark.parametrize("path", ["x" * 300, "a/" * 3000 + "b", "model.onnx\0", "\ud800"])
def test_a_path_that_no_file_can_have_is_refused(bundle, capsys, path):
    edit_json(bundle / MANIFEST, lambda m: first_file(m).update(path=path))
    with pytest.raises(BundleError):
        read_bundle(bundle)
    assert main(["verify", str(bundle), "-q"]) == 2


@pytest.mark.parametrize("spelling", ["./model.onnx", "model.onnx/"])
def test_a_file_listed_under_two_spellings_is_refused(bundle, spelling):
    edit_json(
        bundle / MANIFEST, lambda m: m["files"].append({**first_file(m), "path": spelling})
    )
    with pytest.raises(BundleError, match="twice"):
        read_bundle(bundle)


@pytest.mark.parametrize("role", ["model", "prompt"])
def test_two_files_of_a_role_that_only_one_can_have_are_refused(bundle, role):
    rewrite(bundle, "second", b"x", role)
    with pytest.raises(BundleError, match=role):
        read_bundle(bundle)


def test_an_oversize_manifest_is_not_even_read(bundle, capsys):
    with (bundle / MANIFEST).open("wb") as file:
        file.truncate(MAX_MANIFEST_BYTES * 1000)
    refused_by_all(bundle, capsys, "not a manifest")


@pytest.mark.parametrize("keep", [1, 100, 0.5, -3])
def test_a_truncated_manifest_is_refused(bundle, capsys, keep):
    content = (bundle / MANIFEST).read_bytes()
    (bundle / MANIFEST).write_bytes(content[: len(content) // 2 if keep == 0.5 else keep])
    refused_by_all(bundle, capsys, "not a valid manifest")


REQUESTS = (
    ["verify", "-q"],
    ["run", "--ids", "5,6"],
    ["run", "--ids", ",".join(["5"] * 100)],
    ["run", "--ids", "3000"],
)


@pytest.mark.parametrize(
    "changes",
    [
        {"target": "abacus"},
        {"device": "tpu"},
        {"precision": "fp3"},
        {"labels": ["only one"]},
        {"labels": []},
        {"task": "TOKEN_CLS"},
        {"task": "CAUSAL_LM"},
        {"inputs": []},
        {"outputs": []},
        {"limits": {"max_sequence": 500, "max_context": 505, "vocab_size": 101}},
        {"limits": {"max_sequence": 59, "max_context": 64, "vocab_size": 5000}},
        {"limits": {"max_sequence": 0, "max_context": 64, "vocab_size": 101}},
        {"limits": {"max_sequence": -3, "max_context": 64, "vocab_size": 101}},
    ],
    ids=str,
)
@pytest.mark.parametrize("request_", REQUESTS, ids=["verify", "short", "long", "outside"])
def test_a_manifest_that_its_engine_contradicts_is_never_our_own_fault(
    classifier, capsys, changes, request_
):
    """Whoever edits a manifest by hand gets a reason; exit code 4 would say ptdeploy is broken."""
    edit_json(classifier / MANIFEST, lambda m: m.update(changes))
    code = main([request_[0], str(classifier), *request_[1:]])
    assert code != 4, capsys.readouterr().err[-500:]


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": []},
        {"outputs": []},
        {"generation": {"eos_token_ids": [-1], "max_new_tokens": -5}},
        {"limits": {"max_sequence": 500, "max_context": 505, "vocab_size": 101}},
        {"limits": {"max_sequence": 59, "max_context": 64, "vocab_size": 5000}},
        {"limits": {"max_sequence": -3, "max_context": 64, "vocab_size": 101}},
        {"task": "SEQ_CLS"},
    ],
    ids=str,
)
@pytest.mark.parametrize("request_", REQUESTS, ids=["verify", "short", "long", "outside"])
def test_a_manifest_that_its_decoder_contradicts_is_never_our_own_fault(
    bundle, capsys, changes, request_
):
    edit_json(bundle / MANIFEST, lambda m: m.update(changes))
    code = main([request_[0], str(bundle), *request_[1:]])
    assert code != 4, capsys.readouterr().err[-500:]


# The files' content, with hashes that agree


@pytest.mark.parametrize("content", [b"", b"not onnx", b"\x08\x09" * 500])
def test_an_engine_that_is_no_onnx_is_refused(bundle, capsys, content):
    rewrite(bundle, "model.onnx", content)
    refused(capsys, ["verify", str(bundle), "-q"])
    refused(capsys, ["run", str(bundle), "--ids", "5"])


def external(bundle: Path, location: str) -> bytes:
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    return model.SerializeToString()


@pytest.mark.parametrize("how", ["parent", "absolute", "nested", "link", "proc"])
def test_weights_outside_the_folder_are_never_read(bundle, capsys, tmp_path, how):
    secret = tmp_path / "secret"
    shutil.copy(bundle / "model.onnx.data", secret)
    location = {
        "parent": "../secret",
        "absolute": str(secret),
        "nested": "a/../../secret",
        "link": "link",
        "proc": "/proc/self/environ",
    }[how]
    if how == "link":
        (bundle / "link").symlink_to(secret)
    if how == "nested":
        (bundle / "a").mkdir()
    rewrite(bundle, "model.onnx", external(bundle, location))
    read_bundle(bundle)
    refused(capsys, ["verify", str(bundle), "-q"])
    refused(capsys, ["run", str(bundle), "--ids", "5"])


def test_an_engine_with_another_models_outputs_is_refused(bundle, compiled, capsys):
    other = compiled("bert", "SEQ_CLS").bundle
    for name in ("model.onnx", "model.onnx.data"):
        rewrite(bundle, name, (other / name).read_bytes())
    refused(capsys, ["verify", str(bundle), "-q"])
    refused(capsys, ["run", str(bundle), "--ids", "5"])


@pytest.mark.parametrize("content", [b"", b"x" * 100, save({"a": np.zeros(1, np.float32)})])
@pytest.mark.parametrize("name", ["prompt.safetensors", "reference.safetensors"])
def test_a_tensor_file_of_something_else_is_refused(bundle, capsys, name, content):
    rewrite(bundle, name, content)
    assert name in refused(capsys, ["verify", str(bundle), "-q"])


@pytest.mark.parametrize(
    "change",
    [
        lambda t, m: m.update(rows=0),
        lambda t, m: m.update(rows=-1),
        lambda t, m: m.update(rows=99),
        lambda t, m: m.update(texts=["a"]),
        lambda t, m: t.update({"rows.000.ids": np.array([5000])}),
        lambda t, m: t.update({"rows.000.ids": np.zeros(0, np.int64)}),
        lambda t, m: t.update({"rows.000.ids": np.array([0.5])}),
        lambda t, m: t.update({"rows.000.logits": np.zeros((1, 7), np.float32)}),
        lambda t, m: t.update({"rows.000.logits": np.zeros((0, 101), np.float32)}),
        lambda t, m: t.update({"greedy.000.tokens": np.zeros((2, 2), np.int64)}),
    ],
    ids=[
        "no rows",
        "fewer than no rows",
        "rows that are not there",
        "texts that are not there",
        "ids outside the vocabulary",
        "an empty row",
        "ids that are no integers",
        "another vocabulary's logits",
        "no logits",
        "greedy tokens in two dimensions",
    ],
)
def test_a_reference_that_does_not_fit_the_bundle_is_refused(bundle, capsys, change):
    from safetensors import safe_open

    with safe_open(bundle / "reference.safetensors", framework="np") as file:
        metadata = json.loads(file.metadata()["ptdeploy"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(tensors, metadata)
    content = save(tensors, {"ptdeploy": json.dumps(metadata)})
    rewrite(bundle, "reference.safetensors", content)
    assert main(["verify", str(bundle), "-q"]) in (1, 2)
    assert "parity holds" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"model": {"type": "Magic"}}'])
def test_a_tokenizer_that_is_none_is_refused(bundle, capsys, content):
    rewrite(bundle, "tokenizer.json", content, "tokenizer")
    assert "tokenizer.json" in refused(capsys, ["verify", str(bundle), "-q"])


def test_a_bundle_without_a_reference_says_what_to_pass(bundle, capsys):
    edit_json(
        bundle / MANIFEST,
        lambda m: m.update(files=[f for f in m["files"] if f["role"] != "reference"]),
    )
    assert "--checkpoint" in refused(capsys, ["verify", str(bundle), "-q"])


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["x" * 400, "\0", "../..", "cpu", "fp32", "model.onnx"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)


def places(value: object, here: tuple = ()) -> list[tuple]:
    """Every place in nested JSON, as the keys that lead there."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [here, *(p for key in keys for p in places(value[key], (*here, key)))]


@given(data=st.data())
@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_value_at_any_depth_of_a_manifest_is_read_or_refused(compiled, tmp_path, data):
    source = compiled("gpt2", "CAUSAL_LM").bundle
    folder = tmp_path / "mutated"
    if not folder.exists():
        shutil.copytree(source, folder)
    manifest = json.loads((source / MANIFEST).read_text())
    *path, last = data.draw(st.sampled_from(places(manifest)[1:]))
    inside = manifest
    for key in path:
        inside = inside[key]
    inside[last] = data.draw(JSON)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    try:
        read_bundle(folder)
    except BundleError as error:
        assert str(error)


@given(data=st.data())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_manifest_with_any_bytes_changed_runs_or_is_refused(compiled, tmp_path, data):
    """Not only read: opened and run, where what the reader let through would come out."""
    source = compiled("bert", "SEQ_CLS").bundle
    folder = tmp_path / "mutated"
    if not folder.exists():
        shutil.copytree(source, folder)
    content = bytearray((source / MANIFEST).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    (folder / MANIFEST).write_bytes(content)
    try:
        ptdeploy.load(folder, device="cpu").classify([[5, 6]])
    except PtdeployError as error:
        assert str(error)


# Writing


PUBLISH = """
import os, shutil, signal, sys
from pathlib import Path
from ptdeploy import bundle as module

source, destination, name, at, when = Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:6]
real, calls = getattr(os, name), 0

def dies(*arguments, **options):
    global calls
    calls += 1
    if calls == int(at) and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = real(*arguments, **options)
    if calls == int(at):
        os.kill(os.getpid(), signal.SIGKILL)
    return result

manifest = module.read_bundle(source).manifest
with module.stage_bundle(destination) as staging:
    for entry in manifest.files:
        shutil.copy(source / entry.path, staging / entry.path)
    setattr(os, name, dies)
    module.publish(staging, manifest, destination)
"""


def publish_until(source: Path, destination: Path, *arguments: str) -> int:
    command = [sys.executable, "-c", PUBLISH, str(source), str(destination), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, -9), done.stderr
    return done.returncode


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("name", "at"), [("fsync", 1), ("fsync", 7), ("rename", 1)])
def test_a_kill_while_publishing_leaves_a_whole_bundle_or_none(
    compiled, tmp_path, name, at, when
):
    destination = tmp_path / "published"
    source = compiled("gpt2", "CAUSAL_LM").bundle
    assert publish_until(source, destination, name, str(at), when) == -9
    assert destination.exists() == ((name, when) == ("rename", "after"))
    if destination.exists():
        read_bundle(destination)
    # Whatever was left behind is in nobody's way.
    assert publish_until(source, destination, "rename", "0", "never") == 0
    read_bundle(destination)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("at", [1, 2])
def test_a_kill_while_replacing_never_loses_both_bundles(compiled, tmp_path, at, when):
    destination = tmp_path / "published"
    shutil.copytree(compiled("gpt2", "CAUSAL_LM").bundle, destination)
    source = compiled("bert", "SEQ_CLS").bundle
    publish_until(source, destination, "rename", str(at), when)
    if destination.exists():
        read_bundle(destination)
    whole = [read_bundle(path.parent) for path in tmp_path.rglob(MANIFEST)]
    assert len(whole) == 2, "the older and the newer one are both there, whole"


def test_a_replacement_that_fails_puts_the_older_bundle_back(compiled, tmp_path, monkeypatch):
    """The new one cannot be renamed into place: the older one must not stay hidden."""
    destination = tmp_path / "published"
    source = compiled("gpt2", "CAUSAL_LM").bundle
    shutil.copytree(source, destination)
    manifest = read_bundle(source).manifest
    with stage_bundle(destination) as staging:
        for entry in manifest.files:
            shutil.copy(source / entry.path, staging / entry.path)
        real = os.rename

        def rename(old: Path, new: Path) -> None:
            if Path(old) == staging:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(old, new)

        monkeypatch.setattr(os, "rename", rename)
        with pytest.raises(ptdeploy.OutputError):
            publish(staging, manifest, destination)
    read_bundle(destination)
    assert [path.name for path in tmp_path.iterdir()] == ["published"]
