"""What only a GPU can show: the layers of TensorRT's engines and what each one takes."""

from __future__ import annotations

import json

import pytest
from support import tiny

import ptdeploy
from ptdeploy.backends import get_backend
from ptdeploy.cli.main import main

pytestmark = pytest.mark.gpu
ABSENT = get_backend("trt").unavailable("cuda")


@pytest.fixture(scope="module", params=["SEQ_CLS", "CAUSAL_LM"])
def bundle(request, tmp_path_factory):
    if ABSENT is not None:
        pytest.skip(f"no TensorRT engine runs here: {ABSENT[0]}")
    folder = tmp_path_factory.mktemp("trt")
    trained = tiny.make(folder, "qwen2", request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PTDEPLOY_CACHE", str(folder / "cache"))
        yield ptdeploy.compile(
            trained.adapter, target="trt", base=str(trained.base), output=folder / "bundle"
        )


def test_every_kind_of_request_is_timed_by_layer(bundle, capsys):
    assert main(["profile", str(bundle.path), "--batch", "2", "--tokens", "9", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["sections"]) == (2 if bundle.manifest.generation else 1)
    for section in found["sections"]:
        assert 0 < section["layers_milliseconds"] < section["milliseconds"]
        assert sum(one["share"] for one in section["layers"]) == pytest.approx(1)


def test_the_inspector_lists_layers_and_memory(bundle, capsys):
    assert main(["inspect", str(bundle.path), "--layers", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["engine_layers"]
    assert found["layers"]
    assert all(layer["name"] for layer in found["layers"])
    assert found["memory"]["weights"] > 0
    scratch = [name for name in found["memory"] if name.startswith("scratch")]
    assert len(scratch) == (2 if bundle.manifest.generation else 1)


def test_layers_say_which_module_they_are_of(bundle, capsys):
    assert main(["inspect", str(bundle.path), "--layers", "--json"]) == 0
    layers = json.loads(capsys.readouterr().out)["engine_layers"]["layers"]
    assert any("layers.0" in layer["module"] for layer in layers)


def test_verify_completes_nothing_that_was_not_pending(bundle):
    before = (bundle.path / "prompts" / "default" / "parity.json").read_bytes()
    assert ptdeploy.verify(bundle.path).passed
    assert (bundle.path / "prompts" / "default" / "parity.json").read_bytes() == before
