"""The prompt encoder, evaluated once, gives what PEFT's gives."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PromptEncoder, PromptEncoderConfig
from support.values import MODEST

from ptdeploy.program.prompt import evaluate_prompt_encoder
from ptdeploy.source.checkpoint.types import PromptEncoderState


@given(
    kind=st.sampled_from(["MLP", "LSTM"]),
    tokens=st.integers(1, 30),
    width=st.integers(1, 40),
    hidden=st.integers(1, 40),
    layers=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
@MODEST
def test_the_prompt_encoder_gives_what_peft_gives(kind, tokens, width, hidden, layers, seed):
    torch.manual_seed(seed)
    config = PromptEncoderConfig(
        num_virtual_tokens=tokens,
        token_dim=width,
        encoder_hidden_size=hidden,
        encoder_reparameterization_type=kind,
        encoder_num_layers=2 if kind == "MLP" else layers,
        num_transformer_submodules=1,
    )
    encoder = PromptEncoder(config).eval()
    with torch.no_grad():
        want = encoder(torch.arange(tokens)).numpy()
    state = PromptEncoderState(kind, {n: t.numpy() for n, t in encoder.state_dict().items()})
    assert np.abs(evaluate_prompt_encoder(state) - want).max() < 1e-6
    assert state.hidden_size == hidden
    assert state.num_layers == (2 if kind == "MLP" else layers)
