"""A model that changes itself as it runs is refused: what it gives depends on what it ran on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import tiny
from transformers import BigBirdConfig, BigBirdForSequenceClassification

import ptdeploy
from ptdeploy.bundle.task import Task
from ptdeploy.errors import BaseModelError
from ptdeploy.parity.reference.peft import row_logits


def big_bird(folder, attention: str) -> tiny.Trained:
    torch.manual_seed(0)
    config = BigBirdConfig(
        vocab_size=tiny.VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=1024,
        attention_type=attention,
        num_labels=tiny.LABELS,
        initializer_range=0.2,
    )
    return tiny.tuned(BigBirdForSequenceClassification(config), folder, "SEQ_CLS")


def test_sparse_attention_that_a_short_text_ends_is_refused_by_name(tmp_path):
    one = big_bird(tmp_path, "block_sparse")
    with pytest.raises(BaseModelError) as refused:
        ptdeploy.compile(one.adapter, base=str(one.base), target="ort", output=tmp_path / "bundle")
    said = str(refused.value)
    assert "sets attention_type of bert from 'block_sparse' to 'original_full'" in said
    assert 'say attention_type: "original_full" in the config.json of the base' in said


def test_the_same_model_with_full_attention_gives_what_peft_gives_on_a_long_text(tmp_path):
    one = big_bird(tmp_path, "original_full")
    bundle = ptdeploy.compile(
        one.adapter, base=str(one.base), target="ort", output=tmp_path / "bundle"
    )
    row = np.random.default_rng(0).integers(5, tiny.VOCABULARY, 900)
    want = row_logits(one.model, Task.SEQ_CLS, row)
    assert np.abs(ptdeploy.load(bundle.path).logits([row])[0] - want).max() < 1e-4
