"""A target is what builds and what runs its engines; whatever else there is knows none by name."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from argparse import ArgumentParser
from pathlib import Path

import pytest

import ptdeploy
from ptdeploy.backends import BACKENDS, EngineWords, engine_words, get_backend
from ptdeploy.backends.ort import OrtBackend
from ptdeploy.backends.trt.vendor import open_vendor
from ptdeploy.bundle import read_bundle
from ptdeploy.cli.main import main
from ptdeploy.errors import TargetUnavailable
from ptdeploy.targets import TARGETS, get_target
from ptdeploy.targets.options import NoOptions
from ptdeploy.targets.trt.options import TrtOptions

PACKAGE = Path(ptdeploy.__file__).parent
GENERIC = ("bundle", "runtime", "parity", "commands", "cli", "program", "passes", "source")


class AbacusBackend(OrtBackend):
    """Runs as ONNX Runtime does, and has facts of its own."""

    def facts(self, bundle):
        return {"beads": 10}

    def describe(self, facts):
        built = (("engine", f"an abacus of {facts['beads']} beads"),)
        return EngineWords(built, (), {"beads": facts["beads"]})


@pytest.fixture
def abacus(compiled, tmp_path) -> Path:
    """A bundle for a target that this version does not have."""
    bundle = tmp_path / "abacus"
    shutil.copytree(compiled("bert", "SEQ_CLS").bundle, bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "target": "abacus"}))
    return bundle


def test_what_builds_has_what_runs():
    assert TARGETS.keys() == BACKENDS.keys()
    for name in TARGETS:
        target, backend = get_target(name), get_backend(name)
        assert backend.devices
        assert target.graph_check in ("", *BACKENDS)
        for device in backend.devices:
            assert target.precisions(device)


@pytest.mark.parametrize("folder", GENERIC)
def test_nothing_generic_knows_a_word_of_tensorrt(folder):
    words = re.compile(r"tensorrt|\btrt\b|flavor|\brtx\b", re.IGNORECASE)
    for file in sorted((PACKAGE / folder).rglob("*.py")):
        assert not words.findall(file.read_text()), file


def test_a_bundle_of_an_unknown_target_is_described(abacus, capsys):
    assert main(["inspect", str(abacus)]) == 0
    assert "abacus, cpu, fp32" in capsys.readouterr().out
    assert ptdeploy.inspect(abacus)["engine"] == {}


def test_facts_of_an_unknown_target_are_shown_as_they_are():
    words = engine_words("abacus", {"beads": 10, "rods": [1, 2]})
    assert words.built == (("beads", "10"), ("rods", "[1, 2]"))
    assert dict(words.compared) == {"beads": 10, "rods": [1, 2]}


def test_a_backend_has_its_own_words_for_its_engine(abacus, capsys, monkeypatch):
    monkeypatch.setitem(BACKENDS, "abacus", AbacusBackend)
    assert main(["inspect", str(abacus)]) == 0
    assert "engine          an abacus of 10 beads" in capsys.readouterr().out
    assert ptdeploy.inspect(abacus)["engine"] == {"beads": 10}


def test_an_unknown_target_is_not_run(abacus):
    with pytest.raises(ptdeploy.InputError, match="No target 'abacus'"):
        ptdeploy.load(abacus)


def test_each_target_reads_back_the_options_that_it_added():
    parser = ArgumentParser()
    for name in TARGETS:
        get_target(name).add_options(parser)
    nothing, asked = parser.parse_args([]), parser.parse_args(["--keep-onnx", "--workspace", "64"])
    assert get_target("trt").read_options(nothing) == TrtOptions()
    assert get_target("trt").read_options(asked) == TrtOptions(keep_onnx=True, workspace=64)
    assert get_target("ort").read_options(asked) == NoOptions()


def test_options_of_another_target_are_refused_by_name():
    assert get_target("ort").options(TrtOptions()) == NoOptions()
    with pytest.raises(ptdeploy.InputError, match="--workspace is about TensorRT's engines"):
        get_target("ort").options(TrtOptions(workspace=64))
    assert get_target("trt").options(NoOptions()) == TrtOptions()


def test_an_option_of_another_kind_is_refused_by_its_field():
    with pytest.raises(ptdeploy.InputError, match=r"engine\.workspace"):
        get_target("trt").options(TrtOptions(workspace="64"))


def test_rebuilding_asks_for_no_more_than_a_flavor(compiled):
    bundle = read_bundle(compiled("bert", "SEQ_CLS").bundle)
    with pytest.raises(ptdeploy.InputError, match="--workspace: an engine is rebuilt with"):
        get_target("trt").rebuild(bundle, TrtOptions(workspace=64))


def test_a_rebuild_of_a_graph_has_nothing_to_ask_for(compiled, capsys):
    bundle = str(compiled("bert", "SEQ_CLS").bundle)
    assert main(["rebuild", bundle, "--trt-flavor", "rtx"]) == 2
    assert "is its graph: nothing to rebuild" in capsys.readouterr().err


def test_a_folder_of_an_engines_name_is_no_engine(tmp_path, monkeypatch):
    """Python takes any folder on its path for a package, the one it was started in included."""
    (tmp_path / "tensorrt").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    found = importlib.util.find_spec("tensorrt")
    if found is not None and found.origin is not None:
        pytest.skip("the real one is installed, and is found first")
    with pytest.raises(TargetUnavailable, match="only a folder of its name"):
        open_vendor("tensorrt")
