"""An encoder's attention as one operator, where that computes what the model does."""

from __future__ import annotations

import pytest
from support import tiny
from transformers import AutoModelForSequenceClassification, ModernBertConfig

from ptdeploy.program import padded_attention
from ptdeploy.program.encoder import Encoder
from ptdeploy.program.head import Head
from ptdeploy.program.kinds.kind import IDS, MASK, table
from ptdeploy.program.program import examples


def why_not(config) -> str:
    model = AutoModelForSequenceClassification.from_config(config).eval()
    program = Encoder(model, config.vocab_size, False, False, Head(model, {})).eval()
    inputs = examples((IDS, MASK, table(config.hidden_size)))
    return padded_attention.why_not_fused(model, program, inputs)


@pytest.mark.parametrize("architecture", ["bert", "electra", "roberta"])
def test_attention_that_all_tokens_take_part_in_is_one_operator(architecture: str) -> None:
    assert why_not(tiny.base_config(architecture)) == ""


def test_attention_in_windows_stays_the_models_own() -> None:
    config = ModernBertConfig(
        vocab_size=101,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        local_attention=4,
        pad_token_id=0,
        num_labels=3,
    )
    assert "window" in why_not(config) or "mask of its own" in why_not(config)


def test_a_decoder_that_sees_what_came_before_alone_is_not_fused() -> None:
    assert "mask of its own" in why_not(tiny.base_config("qwen2", num_key_value_heads=4))
