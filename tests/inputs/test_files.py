"""Files as they are found: links, Git LFS, modes, disks; and what ends a compilation halfway."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from support.damage import POINTER

import ptdeploy
from ptdeploy.bundle import check_destination, publish, read_bundle, stage_bundle
from ptdeploy.cli.main import main
from ptdeploy.errors import OutputError, PtdeployError
from ptdeploy.files import check_folder, disk_refusal, write_together, write_whole
from ptdeploy.signals import EndedBySignal, end_by_signals


def as_in_the_hub(source: Path, cache: Path) -> Path:
    """A snapshot as the hub's cache has it: every file a link to a blob outside its folder."""
    snapshot = cache / "snapshots" / "0123abcd"
    (cache / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    files = sorted(one for one in source.rglob("*") if one.is_file())
    for number, file in enumerate(files):
        blob, link = cache / "blobs" / f"{number:040x}", snapshot / file.relative_to(source)
        shutil.copy(file, blob)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def put(source: Path, destination: Path, force: bool = False) -> Path:
    """Publish a copy of a bundle."""
    place = check_destination(destination, force)
    bundle = read_bundle(source)
    with stage_bundle(place) as staging:
        for entry in bundle.manifest.files:
            bundle.copy(entry, staging / entry.path)
            # As safetensors leaves its files, whatever the umask.
            (staging / entry.path).chmod(0o600)
        publish(staging, bundle.manifest, place)
    return destination


def test_a_bundle_in_the_hubs_cache_runs_and_verifies(compiled, tmp_path):
    source = compiled("gpt2", "CAUSAL_LM").bundle
    snapshot = as_in_the_hub(source, tmp_path)
    for options in ({}, {"map_weights": True}):
        (ours,) = ptdeploy.load(snapshot, **options).logits([[5, 6, 7]])
        (theirs,) = ptdeploy.load(source, **options).logits([[5, 6, 7]])
        assert (ours == theirs).all()
    assert main(["verify", str(snapshot), "-q"]) == 0
    assert main(["inspect", str(snapshot)]) == 0


@pytest.mark.parametrize("mask", [0o077, 0o022, 0o002])
def test_a_bundle_and_a_report_have_the_umasks_modes(compiled, tmp_path, mask):
    with umask(mask):
        bundle = put(compiled("gpt2", "CAUSAL_LM").bundle, tmp_path / "bundle")
        report = write_whole(tmp_path / "reports" / "report.json", b"{}")
    inside = [*bundle.rglob("*")]
    folders = [one for one in inside if one.is_dir()]
    assert len(folders) == 2
    for path in (bundle, report.parent, *folders):
        assert path.stat().st_mode & 0o777 == 0o777 & ~mask, path
    for path in (*(one for one in inside if one.is_file()), report):
        assert path.stat().st_mode & 0o777 == 0o666 & ~mask, path


PLACES = ["adapter_model.safetensors", "adapter_config.json", "config.json", "model.safetensors"]


@pytest.mark.parametrize("name", [*PLACES, "tokenizer.json"])
def test_what_git_lfs_did_not_fetch_is_called_that(compiled, tmp_path, capsys, name):
    trained = compiled("gpt2", "CAUSAL_LM").trained
    base = shutil.copytree(trained.base, tmp_path / "base")
    adapter = shutil.copytree(trained.adapter, tmp_path / "adapter")
    file = (adapter if name.startswith("adapter") else base) / name
    file.write_bytes(POINTER)
    out = str(tmp_path / "out")
    assert main(["compile", str(adapter), "--target", "ort", "--base", str(base), "-o", out]) == 2
    error = capsys.readouterr().err
    assert f"{file}: is a Git LFS pointer" in error
    assert "git lfs pull" in error


def test_a_pointer_that_nothing_reads_is_left_alone(compiled, tmp_path):
    from ptdeploy.files import pointer_in

    base = shutil.copytree(compiled("gpt2", "CAUSAL_LM").trained.base, tmp_path / "base")
    for name in ("pytorch_model.bin", "flax_model.msgpack", "tf_model.h5"):
        (base / name).write_bytes(POINTER)
    assert pointer_in(base) is None


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("file/bundle", "Not a directory"),
        ("n" * 256, "each name 255"),
        ("a/" * 2100 + "b", "at most 4095 bytes long"),
        ("nowhere/bundle", "A link to nothing"),
        ("/proc/bundle", "No such file or directory"),
        ("/sys/bundle", "Operation not permitted"),
        ("turned", "is a link to target"),
        ("file", "is not a folder"),
    ],
)
def test_a_place_that_the_file_system_refuses_is_found_before_the_work(
    tmp_path, capsys, place, reason
):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "nowhere").symlink_to("/nowhere/at/all")
    (tmp_path / "target").mkdir()
    (tmp_path / "turned").symlink_to("target")
    # The checkpoint would be refused next.
    command = ["compile", "/no/checkpoint", "--target", "ort", "--force"]
    assert main([*command, "-o", str(tmp_path / place)]) == 2
    assert reason in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "kept"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "nowhere", "target", "turned"]


def test_the_longest_name_that_a_file_system_takes_can_be_a_bundles(compiled, tmp_path):
    for name in ("b" * 255, "ü" * 127):
        bundle = put(compiled("gpt2", "CAUSAL_LM").bundle, tmp_path / name)
        put(bundle, bundle, force=True)
        read_bundle(bundle)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_trailing_slash_and_a_folder_that_is_not_there_yet(compiled, tmp_path, monkeypatch):
    source = compiled("gpt2", "CAUSAL_LM").bundle
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    (tmp_path / "link").symlink_to("home")
    for given, place in (
        ("bundle/", "bundle"),
        ("link/other", "home/other"),
        ("new/deep/bundle", "new/deep/bundle"),
        ("new/../second", "second"),
    ):
        put(source, Path(given))
        read_bundle(tmp_path / place)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    put(source, Path("."), force=True)
    read_bundle(tmp_path / "empty")


@pytest.mark.parametrize("option", ["--data", "--thresholds"])
def test_a_file_that_is_not_there_is_found_before_the_work(tmp_path, capsys, option):
    assert main(["verify", "/no/bundle", option, str(tmp_path / "file")]) == 2
    assert f"{option} {tmp_path}/file: cannot be read" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_found_before_the_work(tmp_path, capsys):
    (tmp_path / "file").touch()
    for place in ("file", "file/deep"):
        assert main(["verify", "/no/bundle", "--report", str(tmp_path / place)]) == 2
        assert f"--report {tmp_path / place}: cannot be written" in capsys.readouterr().err
    check_folder(tmp_path / "not" / "yet", "--report")
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


COMPILE = """
import sys
from ptdeploy.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_compilation_that_is_asked_to_end_leaves_nothing(compiled, tmp_path):
    trained = compiled("gpt2", "CAUSAL_LM").trained
    place = tmp_path / "new" / "folder" / "out"
    command = [sys.executable, "-c", COMPILE, "compile", str(trained.adapter), "--target", "ort"]
    command += ["--base", str(trained.base), "-o", str(place)]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list(place.parent.glob(".out.*/new/*")):  # half a bundle is there
        assert running.poll() is None
        time.sleep(0.01)
    running.terminate()
    _, errors = running.communicate()
    assert running.returncode == 143
    assert "ended by SIGTERM" in errors
    assert list(tmp_path.iterdir()) == []


@contextlib.contextmanager
def hangup(handler: signal.Handlers) -> Iterator[None]:
    """SIGHUP as that, whatever it is for the process that runs the tests (nohup ignores it)."""
    before = signal.signal(signal.SIGHUP, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def test_signals_that_end_a_process_are_exceptions_and_then_as_before():
    with hangup(signal.SIG_DFL):
        for number in (signal.SIGTERM, signal.SIGHUP):
            with pytest.raises(EndedBySignal) as ended, end_by_signals():
                os.kill(os.getpid(), number)
            assert ended.value.signal is number
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def test_a_hangup_that_is_ignored_stays_ignored():
    with hangup(signal.SIG_IGN), end_by_signals():
        os.kill(os.getpid(), signal.SIGHUP)


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As a full disk: what would make a file larger is refused by the system."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_the_disks_fault_whoever_writes(tmp_path):
    import numpy as np
    import onnx
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = Tokenizer(WordLevel({f"word{i}": i for i in range(1000)}, "word0"))
    many = np.zeros(10_000, np.float32)
    writers = {
        "safetensors": lambda path: save_file({"a": many}, path),
        "tokenizers": lambda path: words.save(str(path)),
        "onnx": lambda path: onnx.save_tensor(onnx.numpy_helper.from_array(many), path),
        "python": lambda path: path.write_bytes(many.tobytes()),
        "numpy": many.tofile,
    }
    for name, write in writers.items():
        place = check_destination(tmp_path / "bundle", False)
        with (
            pytest.raises(OutputError, match=r"File too large|requested and"),
            files_of_at_most(1000),
            stage_bundle(place) as staging,
        ):
            write(staging / name)
        assert list(tmp_path.iterdir()) == [], name


@pytest.mark.parametrize("room", [1000, 3000, 6000])
def test_a_disk_that_is_full_at_the_manifest_leaves_nothing(compiled, tmp_path, room):
    """The last file that is written; half of it is no manifest."""
    from ptdeploy.bundle.schema import staged

    manifest = read_bundle(compiled("gpt2", "CAUSAL_LM").bundle).manifest
    manifest = msgspec.structs.replace(manifest, files=(staged("a", "prompt"),))
    size = len(msgspec.json.format(msgspec.json.encode(manifest), indent=2))
    place = check_destination(tmp_path / "bundle", False)
    with stage_bundle(place) as staging, files_of_at_most(min(room, size - 1)):
        (staging / "a").write_bytes(b"a")
        with pytest.raises(OutputError, match="File too large"):
            publish(staging, manifest, place)
    assert list(tmp_path.iterdir()) == []


def test_a_report_is_written_whole_or_not_at_all(tmp_path):
    write_whole(tmp_path / "report.json", b"old")
    with pytest.raises(OutputError, match="File too large"), files_of_at_most(1000):
        write_whole(tmp_path / "report.json", b"n" * 2000)
    assert (tmp_path / "report.json").read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["report.json"]


def test_the_files_of_a_report_are_replaced_together(tmp_path):
    write_together(tmp_path, {"a": b"old", "b": b"old"})
    with pytest.raises(OutputError, match="File too large"), files_of_at_most(1000):
        write_together(tmp_path, {"a": b"new", "b": b"n" * 2000})
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == {"a": b"old", "b": b"old"}


def test_a_report_replaces_nothing_but_a_report(compiled, tmp_path, capsys):
    bundle = str(compiled("bert", "SEQ_CLS").bundle)
    (tmp_path / "report.md").write_text("my thesis")
    assert main(["verify", bundle, "-q", "--report", str(tmp_path)]) == 2
    assert "holds report.md, which is not of a report" in capsys.readouterr().err
    assert (tmp_path / "report.md").read_text() == "my thesis"
    for _ in range(2):
        assert main(["verify", bundle, "-q", "--report", str(tmp_path / "reports")]) == 0


def test_a_checkpoint_is_saved_whole_or_not_at_all(compiled, tmp_path):
    from ptdeploy.source.checkpoint import save_full

    model = compiled("gpt2", "CAUSAL_LM").trained.model
    with pytest.raises(OutputError, match="File too large"), files_of_at_most(2000):
        save_full(model, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "saved").mkdir()
    save_full(model, tmp_path / "saved")
    with pytest.raises(OutputError, match="is not empty"):
        save_full(model, tmp_path / "saved")
    assert [one.name for one in tmp_path.iterdir()] == ["saved"]


def test_a_new_project_is_written_whole_or_not_at_all(compiled, tmp_path):
    from ptdeploy.cpp import new_project

    bundle = Path(compiled("bert", "SEQ_CLS").bundle)
    with pytest.raises(OutputError, match="File too large"), files_of_at_most(600):
        new_project(tmp_path / "app", bundle)
    assert list(tmp_path.iterdir()) == []
    new_project(tmp_path / "app", bundle)


def test_only_what_a_disk_refuses_is_blamed_on_the_disk():
    assert disk_refusal(ValueError("No such thing")) is None
    assert disk_refusal(FileNotFoundError(2, "No such file")) is None
    assert disk_refusal(RuntimeError("I/O error: No space left on device (os error 28)"))


def test_a_disk_without_room_is_found_before_the_long_work(tmp_path):
    from ptdeploy.bundle import check_room

    place = check_destination(tmp_path / "new" / "bundle", False)
    check_room(place, 1)
    with pytest.raises(OutputError, match="its disk has"):
        check_room(place, 1 << 60)


def test_a_fifo_or_a_device_hangs_nothing(tmp_path, capsys):
    folder = tmp_path / "bundle"
    folder.mkdir()
    os.mkfifo(folder / "manifest.json")
    for command in (
        ["compile", "/no/checkpoint", "--target", "ort", "--force", "-o", str(folder)],
        ["run", str(folder), "text"],
        ["inspect", str(folder)],
    ):
        assert main(command) == 2, command
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").symlink_to("/dev/zero")
    with pytest.raises(PtdeployError, match="so it is no bundle"):
        read_bundle(folder)
    capsys.readouterr()
