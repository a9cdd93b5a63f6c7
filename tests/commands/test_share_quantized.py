"""Weights that no pass can quantize are said to stay, and shown."""

from __future__ import annotations

import re

import pytest
import torch
from support import tiny
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

import ptdeploy
from ptdeploy.bundle import read_bundle
from ptdeploy.cli.main import main

LOOSE = ptdeploy.QuantizationOptions(min_agreement=0, max_perplexity_ratio=1e9)


@pytest.fixture
def separate_experts(monkeypatch) -> None:
    """Mixtral as an architecture that norms what each expert gives, so that none can be joined."""
    theirs = MixtralExperts.__init__

    def ours(experts: MixtralExperts, *given: object, **named: object) -> None:
        theirs(experts, *given, **named)
        experts.has_post_expert_norm = True
        experts.post_expert_norm = torch.nn.Identity()

    monkeypatch.setattr(MixtralExperts, "__init__", ours)


def test_weights_that_stay_are_noted_and_shown(separate_experts, tmp_path, capsys):
    one = tiny.make(tmp_path, "mixtral", "CAUSAL_LM", intermediate_size=8)
    bundle = ptdeploy.compile(
        one.adapter,
        target="ort",
        base=str(one.base),
        output=tmp_path / "bundle",
        precision="int8",
        quantization=LOOSE,
    )
    # Attention, router and the experts' first products, the head; the second products.
    codes = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 4 * 32 + 4 * 32 * 16) + 101 * 32
    share = round(codes / (codes + 2 * 4 * 8 * 32), 4)
    assert read_bundle(bundle.path).manifest.quantization.share == share
    noted = [note for note in bundle.notes if "of the weights in products" in note]
    where = r"most of them in model\.layers\.\d\.mlp\.experts"
    assert re.search(rf"int8 quantizes {share:.0%} of .*{where}", "".join(noted))
    assert main(["inspect", str(bundle.path)]) == 0
    shown = capsys.readouterr().out
    assert re.search(rf"weights +int8, a scale for blocks of 32, {share:.2%}", shown)


@pytest.mark.parametrize("target", ["ort", "trt"])
def test_usually_all_are(compiled, target):
    how = {"target": target, "precision": "int8", "quantization": LOOSE}
    manifest = read_bundle(compiled("qwen2", "CAUSAL_LM", how).bundle).manifest
    assert manifest.quantization.share == 1
