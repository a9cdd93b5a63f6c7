"""Attention that turns its inputs by a table gives what it gave when they came turned."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.turned import POSITIONS, REQUESTS, SIGNATURE, attention, operators, run

from ptdeploy.passes import PassContext, rotary

CONTEXT = PassContext(SIGNATURE, rotary_positions=POSITIONS)


@given(REQUESTS, st.sampled_from([(16, None), (16, 8), (32, None), (32, 8), (48, None)]))
@settings(max_examples=40, deadline=None)
def test_it_computes_the_same_wherever_tokens_stand(request, widths):
    before = attention(*widths, layers=2)
    after = rotary.run(attention(*widths, layers=2), CONTEXT)
    assert {"RotaryEmbedding", "Cos", "Sin"} & {*operators(before)}
    assert not {"RotaryEmbedding", "Cos", "Sin"} & {*operators(after)}
    assert {"rotary.cos", "rotary.sin"} <= {*after.graph.initializers}
    for one, other in zip(run(after, *request), run(before, *request), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize(
    "how",
    [
        {"head": 8},
        {"head": 24},
        {"head": 16, "angles": 4},
        {"by_length": True},
        {"keys_too": False},
        {"read_twice": True},
    ],
    ids=str,
)
def test_what_the_operator_or_a_table_cannot_do_stays(how):
    model = attention(**how)
    before = operators(model)
    assert operators(rotary.run(model, CONTEXT)) == before
    assert not [name for name in model.graph.initializers if "rotary" in name]


def test_it_is_for_engines_whose_attention_has_a_table():
    model = rotary.run(attention(), PassContext(CONTEXT.signature))
    assert "RotaryEmbedding" in operators(model)


def test_a_table_that_is_large_beside_the_weights_is_not_made(monkeypatch):
    monkeypatch.setattr(rotary, "_ALWAYS", 1000)
    assert "RotaryEmbedding" in operators(rotary.run(attention(), CONTEXT))
    monkeypatch.setattr(rotary, "_SHARE", 0.1)
    assert "RotaryEmbedding" not in operators(rotary.run(attention(), CONTEXT))
