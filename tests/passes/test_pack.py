"""Three products of one input as one: the same queries, keys and values, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.turned import POSITIONS, REQUESTS, SIGNATURE, attention, operators, run

from ptdeploy.bundle import Quantization
from ptdeploy.passes import PassContext, pack, quantize, rotary

ALL, NONE = (True,) * 3, (False,) * 3


def quantized(bits: int, *, turns: bool = True, **how):
    """An attention with quantized weights, as it is before it is packed, and the context."""
    context = PassContext(
        SIGNATURE,
        Quantization(bits, 16, 1, 0, 2),
        rotary_positions=POSITIONS if turns else 0,
    )
    return quantize.run(rotary.run(attention(**how), context), context), context


@given(REQUESTS, st.sampled_from([4, 8]), st.sampled_from([ALL, NONE]))
@settings(max_examples=25, deadline=None)
def test_it_computes_the_same(request, bits, biases):
    before, _ = quantized(bits, layers=2, biases=biases)
    after = pack.run(*quantized(bits, layers=2, biases=biases))
    assert operators(before).count("MatMulNBits") == 6
    assert operators(after).count("MatMulNBits") == 2
    assert len(operators(before)) - len(operators(after)) == 4 + 3 * 2 * any(biases)
    for one, other in zip(run(after, *request), run(before, *request), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_no_weight_is_kept_twice():
    before, _ = quantized(4, biases=ALL)
    after = pack.run(*quantized(4, biases=ALL))
    sizes = [
        sum(one.const_value.nbytes for one in model.graph.initializers.values())
        for model in (before, after)
    ]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(
    "how",
    [{"turns": False}, {"biases": (True, True, False)}, {"head": 8}, {"read_twice": True}],
    ids=str,
)
def test_what_does_not_come_alike_stays(how):
    model, context = quantized(8, **how)
    before = operators(model)
    assert operators(pack.run(model, context)) == before


def test_products_in_fp32_stay():
    context = PassContext(SIGNATURE, rotary_positions=POSITIONS)
    model = rotary.run(attention(), context)
    assert operators(pack.run(model, context)).count("MatMul") == 3
