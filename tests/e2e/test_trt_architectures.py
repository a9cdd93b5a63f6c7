"""The whole support table as TensorRT-RTX plans, and the graphs they are built from in parity."""

from __future__ import annotations

import pytest
from support import tiny
from support.alone import SUPPORTED

import ptdeploy
from ptdeploy.backends.trt.engine_file import read_info
from ptdeploy.bundle import read_bundle

# The rest of the support table; the first are in SUPPORTED.
MORE_DECODERS = (
    *("cohere2", "falcon", "gemma2", "gemma3", "glm", "gpt_bigcode", "gpt_neox", "gpt_oss"),
    *("gptj", "mixtral", "nemotron", "olmo2", "phi", "phi3", "phimoe", "qwen3", "smollm3"),
    "stablelm",
)
MORE = [
    *((architecture, "SEQ_CLS") for architecture in ("mistral", "opt", "bloom")),
    *((architecture, "CAUSAL_LM") for architecture in MORE_DECODERS),
]
PLAIN = {"bloom", "falcon", "gptj", "phimoe"}


@pytest.mark.parametrize(("architecture", "task"), [*SUPPORTED, *MORE])
def test_every_architecture_becomes_a_plan_whose_graph_is_in_parity(
    tmp_path, monkeypatch, architecture, task
):
    monkeypatch.setenv("PTDEPLOY_CACHE", str(tmp_path / "cache"))
    one = tiny.make(tmp_path, architecture, task)
    # Its window ends at 6 slots: TensorRT takes rows of such a buffer only one at once.
    most = 1 if architecture == "phimoe" else None
    output = tmp_path / "bundle"
    bundle = ptdeploy.compile(
        one.adapter, target="trt", base=str(one.base), output=output, max_batch=most
    )
    manifest = read_bundle(bundle.path).manifest
    assert manifest.prompt.graph_parity.passed
    assert manifest.prompt.graph_parity.max_abs < 2e-5
    assert manifest.prompt.parity is None or manifest.prompt.parity.passed
    in_place = task == "CAUSAL_LM" and architecture not in PLAIN
    assert manifest.graph.route == ("fused" if in_place else "plain")
    assert bundle.file("engine").stat().st_size > 100_000
    assert bundle.file("model") is None
    info = read_info(bundle.file("engine_info"))
    names = ["decode", "prefill"] if task == "CAUSAL_LM" else ["requests"]
    assert [one.name for one in info.profiles] == names
    assert set(info.precisions) == {"float32"}
