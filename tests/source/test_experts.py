"""Mixtures of experts: all experts as two products give what transformers' own loop gives."""

from __future__ import annotations

import importlib.util

import onnx
import pytest
import torch
import transformers
from support import tiny

from ptdeploy.bundle.quantization import QuantizationOptions
from ptdeploy.source.experts import use_dense_experts

LOOSE = QuantizationOptions(min_agreement=0, max_perplexity_ratio=1e9)
PRODUCTS = ("MatMul", "FusedMatMul", "Gemm")
on_openvino = pytest.param(
    "openvino",
    marks=pytest.mark.skipif(
        importlib.util.find_spec("openvino") is None, reason="openvino is not installed"
    ),
)


# Gated, and with biases and stored as they are multiplied; one architecture norms what each gives.
@pytest.mark.parametrize("architecture", ["mixtral", "phimoe", "gpt_oss", "deepseek_v3"])
@pytest.mark.parametrize("normed", [False, True])
def test_all_experts_give_what_the_chosen_ones_do(architecture, normed):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(tiny.base_config(architecture)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter))
    for module in model.modules():
        if normed and hasattr(module, "has_post_expert_norm"):
            module.has_post_expert_norm = True
            module.post_expert_norm = torch.nn.LayerNorm(32)
    ids = torch.randint(0, tiny.VOCABULARY, (3, 11))
    with torch.no_grad():
        model.set_experts_implementation("batched_mm")
        theirs = model(ids).logits
        use_dense_experts(model)
        ours = model(ids).logits
    assert (ours - theirs).abs().max() < 1e-5 * (1 + theirs.abs().max())


@pytest.mark.parametrize("target", ["ort", on_openvino])
@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("architecture", ["mixtral", "phimoe", "gpt_oss"])
def test_experts_are_quantized(compiled, target, precision, architecture):
    if target == "openvino" and architecture != "mixtral":
        pytest.skip("openvino refuses its attention")
    how = {"target": target, "precision": precision, "quantization": LOOSE}
    model = onnx.load(
        compiled(architecture, "CAUSAL_LM", how).bundle / "model.onnx", load_external_data=False
    )
    floats = {
        one.name: list(one.dims)
        for one in model.graph.initializer
        if one.data_type == onnx.TensorProto.FLOAT and len(one.dims) > 1
    }
    left = [
        (node.name, floats[node.input[1]])
        for node in model.graph.node
        if node.op_type in PRODUCTS and node.input[1] in floats
    ]
    assert left == []
