"""int8 of a classifier: every layer's weights are codes, whatever its graph looks like."""

from __future__ import annotations

import importlib.util

import numpy as np
import onnx
import pytest

import ptdeploy
from ptdeploy.bundle.quantization import QuantizationOptions

ROWS = [[5, 6, 7, 8, 9], [40, 41], [60], list(range(3, 30))]
# Words and positions, which stay as they are where the target looks them up in float32.
TABLES = ("embeddings.", "embed_tokens.", "wte.", "wpe.")


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "gpt2", "qwen2"])
@pytest.mark.parametrize("target", ["ort", "openvino"])
def test_every_layer_of_a_token_classifier_is_quantized(compiled, architecture, target):
    if importlib.util.find_spec("openvino") is None and target == "openvino":
        pytest.skip("openvino is not installed")
    loose = QuantizationOptions(min_agreement=0.0, max_logits_error=1e9)
    how = {"target": target, "precision": "int8", "quantization": loose}
    bundle = compiled(architecture, "TOKEN_CLS", how).bundle
    graph = onnx.load(bundle / "model.onnx", load_external_data=False).graph
    exact = [
        one.name
        for one in graph.initializer
        if one.data_type == onnx.TensorProto.FLOAT and len(one.dims) == 2 and min(one.dims) > 8
    ]
    assert [one for one in exact if not any(table in one for table in TABLES)] == []
    ours, full = ptdeploy.load(bundle), ptdeploy.load(compiled(architecture, "TOKEN_CLS").bundle)
    for one, other in zip(ours.logits(ROWS), full.logits(ROWS), strict=True):
        assert 0 < np.abs(one - other).max() < 0.1 * (1 + np.abs(other).max())
