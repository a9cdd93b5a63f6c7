"""Exports of models whose code asks how long a text is hold for all lengths, or are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support import tiny
from torch import nn
from transformers import DogeConfig, DogeForCausalLM

import ptdeploy
from ptdeploy.bundle import RequestLimits
from ptdeploy.bundle.signature import BATCH, SEQUENCE, Signature
from ptdeploy.bundle.task import Task, TensorSpec
from ptdeploy.errors import BaseModelError
from ptdeploy.parity.reference.peft import row_logits
from ptdeploy.program.export import to_onnx
from ptdeploy.program.program import Program


class _Asks(nn.Module):
    """Doubles its rows where `short` says so, told their numbers of rows and columns."""

    def __init__(self, short) -> None:
        super().__init__()
        self.short = short
        self.model = nn.Module()
        self.model.config = DogeConfig()

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows * 2 if self.short(*rows.shape) else rows


def exported(short, context: int, batch: int | None = None) -> None:
    axes = (BATCH, SEQUENCE)
    signature = Signature(
        (TensorSpec("x", "ids", "float32", axes, ""),),
        (TensorSpec("y", "logits", "float32", axes, ""),),
    )
    program = Program(_Asks(short).eval(), signature)
    to_onnx(program, RequestLimits(context, 101, batch, max_sequence=context))


@pytest.mark.parametrize(
    "short",
    [
        lambda rows, tokens: tokens <= 100,
        lambda rows, tokens: tokens + 7 < 108,
        lambda rows, tokens: 2 * tokens <= 201,
    ],
)
def test_a_branch_on_the_length_holds_up_to_it(short):
    exported(short, 100)
    with pytest.raises(BaseModelError, match="holds up to a context of 100 tokens, and the engine"):
        exported(short, 101)


def test_a_branch_on_what_divides_the_length_is_refused():
    """The longest text may be a short one's kind, and those between are not."""
    with pytest.raises(BaseModelError, match="computes long texts another way"):
        exported(lambda rows, tokens: tokens % 64 != 0, 101)


def test_a_branch_on_the_number_of_rows_holds_up_to_it():
    def short(rows: int, tokens: int) -> bool:
        return rows <= 8

    exported(short, 64, batch=8)
    with pytest.raises(BaseModelError, match="computes many rows another way than few"):
        exported(short, 64, batch=9)
    with pytest.raises(BaseModelError, match="computes many rows another way than few"):
        exported(short, 64)


def test_a_prefix_and_its_text_are_as_long_as_the_context_together(tmp_path):
    """GPT-Neo's mask is as long as its context, and a graph cuts it to the two."""
    one = tiny.make(tmp_path, "gpt_neo", "SEQ_CLS")
    told = {"base": str(one.base), "target": "ort", "output": tmp_path / "bundle"}
    bundle = ptdeploy.compile(one.adapter, **told)
    row = np.arange(59) + 5
    want = row_logits(one.model, Task.SEQ_CLS, row)
    assert np.abs(ptdeploy.load(bundle.path).logits([row])[0] - want).max() < 1e-5


def test_no_branch_holds_for_all_lengths():
    exported(lambda rows, tokens: True, 1 << 20)


@pytest.fixture(scope="module")
def doge(tmp_path_factory) -> tiny.Trained:
    """A model that attends to 48 tokens at most, those of its choice where there are more."""
    folder: Path = tmp_path_factory.mktemp("doge")
    torch.manual_seed(0)
    config = DogeConfig(
        vocab_size=tiny.VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        keep_window_size=48,
        initializer_range=0.2,
    )
    return tiny.tuned(DogeForCausalLM(config), folder, "CAUSAL_LM")


def test_a_decoder_whose_attention_changes_with_the_length_is_refused_with_the_way_out(
    doge, tmp_path
):
    told = {"base": str(doge.base), "target": "ort", "output": tmp_path / "bundle"}
    with pytest.raises(BaseModelError) as refused:
        ptdeploy.compile(doge.adapter, **told)
    assert "doge: its code computes long texts another way than short ones" in str(refused.value)
    # A row's last token may lie two contexts behind its first, free slots of its buffer included.
    assert "Compile it with max_context 24." in str(refused.value)
    bundle = ptdeploy.compile(doge.adapter, max_context=24, **told)
    row = np.arange(19) * 5 + 3
    want = row_logits(doge.model, Task.CAUSAL_LM, row)
    assert np.abs(ptdeploy.load(bundle.path).logits([row])[0] - want).max() < 1e-5
