"""What only a GPU can show: ONNX Runtime's CUDA execution provider."""

from __future__ import annotations

import pytest
from support import tiny

import ptdeploy
from ptdeploy.backends import get_backend

pytestmark = pytest.mark.gpu
ABSENT = get_backend("ort").unavailable("cuda")


@pytest.mark.skipif(ABSENT is not None, reason=f"no CUDA here: {ABSENT and ABSENT[0]}")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(
    ("architecture", "task"),
    [("bert", "SEQ_CLS"), ("gpt2", "CAUSAL_LM"), ("qwen2", "CAUSAL_LM"), ("bloom", "CAUSAL_LM")],
)
def test_a_bundle_compiled_for_cuda_is_in_parity_and_generates(
    tmp_path, architecture, task, precision
):
    trained = tiny.make(tmp_path, architecture, task)
    bundle = ptdeploy.compile(
        trained.adapter,
        target="ort",
        base=str(trained.base),
        output=tmp_path / "bundle",
        device="cuda",
        precision=precision,
    )
    assert ptdeploy.verify(bundle.path).passed
    if task == "CAUSAL_LM":
        engine = ptdeploy.load(bundle.path)
        rows = [[5, 6, 7], [8]]
        together = engine.generate(rows, 12, eos_token_ids=())
        assert [len(one.token_ids) for one in together] == [12, 12]
