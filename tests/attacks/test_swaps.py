"""A load is all of one bundle, whatever takes the bundle's place while it is loaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attacks import swaps
from support import native
from support.damage import PARITY, PROMPT, edit, replace, the_prompt

import ptdeploy
from ptdeploy.bundle import read_bundle, whole
from ptdeploy.commands.inspect import inspect
from ptdeploy.errors import BundleError
from ptdeploy.parity.reference.store import load_reference
from ptdeploy.runtime import open_engine

LOADS = 40


@pytest.fixture(scope="module")
def source(compiled) -> Path:
    return Path(compiled("gpt2", "CAUSAL_LM").bundle)


@pytest.fixture(params=["Python", "C++"])
def load(request) -> Iterator[Callable[[Path], object]]:
    if request.param == "Python":
        yield swaps.in_python
        return
    probe = native.Probe(str(request.getfixturevalue("built") / "probe"))
    yield swaps.in_cpp(probe)
    probe.close()


@pytest.mark.parametrize("kind", swaps.SWAPS)
def test_a_load_is_of_one_bundle_and_never_called_damaged(source, load, kind):
    """`python -m attacks.swaps BUNDLE PROBE` does it 1,000 times each."""
    found, swapped = swaps.attack(source, kind, LOADS, load)
    assert set(found) <= {"v1", "v2"} | ({"refused"} if kind in swaps.MIXTURES else set()), found
    assert swapped >= LOADS


def test_a_bundle_that_was_read_stays_what_it_was(source, tmp_path):
    """Everything that is opened later, too: what a command reads is of the bundle it began with."""
    second = swaps.second_version(source, tmp_path / "v2")
    live = tmp_path / "live"
    shutil.copytree(source, live)
    bundle = read_bundle(live)
    os.rename(live, tmp_path / "v1")
    os.rename(second, live)
    (ours,) = open_engine(bundle).logits([[5, 6]])
    (first,) = ptdeploy.load(tmp_path / "v1").logits([[5, 6]])
    (other,) = ptdeploy.load(live).logits([[5, 6]])
    assert (ours == first).all()
    assert not (ours == other).all()
    shutil.rmtree(tmp_path / "v1")
    assert bundle.held is not None
    assert bundle.held.read(PROMPT) == (source / PROMPT).read_bytes()
    assert len(load_reference(bundle).rows) > 0
    entry = bundle.entry("weights")
    assert entry is not None
    bundle.copy(entry, tmp_path / "copied")
    assert (tmp_path / "copied").read_bytes() == (source / "model.onnx.data").read_bytes()


def test_the_cpp_library_reads_files_of_the_bundle_that_it_opened(source, built, tmp_path):
    """A tokenizer that is read later is not another version's."""
    first = tmp_path / "v1"
    shutil.copytree(source, first)
    second = swaps.second_version(source, tmp_path / "v2")
    replace(second, PARITY, b"of the second")
    live = tmp_path / "live"
    live.symlink_to(first)
    probe = native.Probe(str(built / "probe"))
    assert probe.ask("open", "e", live) == {}
    wanted = (source / PARITY).read_text()
    swaps.turn_a_link(live, (first, second), 1)
    assert (live / PARITY).read_bytes() == b"of the second"
    assert probe.ask("read", "e", "parity") == wanted
    os.replace(live / PARITY, first / PARITY)
    assert probe.ask("read", "e", "parity") == wanted
    # What is overwritten where it lies is no longer what was hashed.
    third = Path(shutil.copytree(source, tmp_path / "v3"))
    assert probe.ask("open", "e", third) == {}
    with (third / PARITY).open("r+b") as file:
        file.write(b"[")
    assert "its SHA-256 is not the manifest's" in probe.ask("read", "e", "parity")["problem"]
    probe.close()


def test_an_open_engine_answers_on_when_its_bundle_is_deleted(source, tmp_path):
    live = tmp_path / "live"
    shutil.copytree(source, live)
    for options in ({}, {"map_weights": True}):
        engine = ptdeploy.load(live, **options)
        (before,) = engine.logits([[5, 6]])
        shutil.rmtree(live)
        assert (engine.logits([[5, 6]])[0] == before).all()
        shutil.copytree(source, live)


@pytest.mark.parametrize("kind", ["a link is turned", "compile --force"])
def test_whatever_reads_a_bundle_reads_one(source, kind):
    """inspect, and a check of every hash."""

    def read(bundle: Path) -> object:
        facts = inspect(bundle)
        return sorted(one["sha256"] for one in facts["files"])

    found, _ = swaps.attack(source, kind, LOADS, read)
    assert set(found) == {"v1", "v2"}, found


def test_a_report_goes_into_the_bundle_that_it_is_about(source, tmp_path):
    from ptdeploy.commands.request import VerifyRequest
    from ptdeploy.commands.verify import verify_bundle
    from ptdeploy.parity.completed import keep_completed
    from ptdeploy.progress import Progress

    live = tmp_path / "live"
    shutil.copytree(source, live)
    (live / PARITY).unlink()

    def pending(manifest):
        the_prompt(manifest)["parity"] = None
        manifest["files"] = [one for one in manifest["files"] if one["role"] != "parity"]

    edit(live, pending)
    bundle = read_bundle(live)
    report = verify_bundle(VerifyRequest(bundle=source), Progress(quiet=True))
    os.rename(live, tmp_path / "v1")
    shutil.copytree(tmp_path / "v1", live)
    keep_completed(bundle, report)
    assert (tmp_path / "v1" / "parity.json").is_file()
    assert not (live / "parity.json").exists()


def test_a_bundle_that_never_stays_is_not_called_damaged(source, tmp_path):
    live = tmp_path / "live"
    tries = []

    def work() -> None:
        tries.append(1)
        (tmp_path / "next").write_bytes(bytes(len(tries)))
        os.replace(tmp_path / "next", live)
        raise BundleError("damaged")

    with pytest.raises(BundleError, match="replaced again and again"):
        whole(live, work)
    assert len(tries) > 5
    with pytest.raises(BundleError, match="damaged"):
        whole(tmp_path / "still", read_damaged)


def read_damaged() -> None:
    raise BundleError("damaged")
