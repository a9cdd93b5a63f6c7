"""The hash of an engine's weights: one for all prompts of a base, another for another base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny

from ptdeploy.program.head import PREFIX, trained_head
from ptdeploy.source.base import resolve_base
from ptdeploy.source.base_weights import load_model
from ptdeploy.source.checkpoint import read_checkpoint
from ptdeploy.source.weights_hash import weights_sha256


def hashed(trained: tiny.Trained) -> str:
    checkpoint = read_checkpoint(trained.adapter)
    base = resolve_base(checkpoint, str(trained.base))
    model = load_model(checkpoint, base)
    head = trained_head(model, checkpoint.weights) if base.kind.has_trained_head else {}
    return weights_sha256(model, {name.removeprefix(PREFIX) for name in head})


@pytest.mark.parametrize(
    ("architecture", "task"),
    [("bert", "SEQ_CLS"), ("qwen2", "SEQ_CLS"), ("roberta", "TOKEN_CLS")],
)
def test_prompts_of_one_base_with_other_heads_and_labels_have_one_hash(
    architecture, task, tmp_path
):
    one = tiny.make(tmp_path / "one", architecture, task)
    other = tiny.another(tmp_path / "other", one, task, virtual_tokens=3, labels=5, seed=7)
    assert hashed(one) == hashed(other)


def test_one_changed_weight_is_another_hash(tmp_path: Path):
    one = tiny.make(tmp_path, "qwen2", "CAUSAL_LM")
    before = hashed(one)
    file = one.base / "model.safetensors"

    tensors = load_file(file)
    name = sorted(tensors)[0]
    tensors[name].view(-1)[0] += 1e-3
    save_file(tensors, file, metadata={"format": "pt"})
    assert hashed(one) != before


def test_it_sees_names_shapes_and_what_is_left_out():
    class Two(torch.nn.Module):
        def __init__(self, shape: tuple[int, ...]) -> None:
            super().__init__()
            self.one = torch.nn.Parameter(torch.arange(6.0).reshape(shape))
            self.two = torch.nn.Parameter(torch.ones(2))

    wide, flat = Two((2, 3)), Two((6,))
    assert weights_sha256(wide, ()) != weights_sha256(flat, ())
    assert weights_sha256(wide, {"one"}) == weights_sha256(flat, {"one"})
    with torch.no_grad():
        wide.two += 1
    assert weights_sha256(wide, {"one"}) != weights_sha256(flat, {"one"})
    assert weights_sha256(wide, {"one", "two"}) == weights_sha256(flat, {"one", "two"})
