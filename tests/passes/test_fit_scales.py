"""Fixed scales of activations: they hold all that was seen, and only where they cost nothing."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support.graphs import random

from ptdeploy.passes.fit_scales import Seen, fit

WIDTH, COLUMNS = 24, 16
WEIGHTS = random(WIDTH, COLUMNS, seed=1)
# Channels of unlike sizes, and weights with which all matter alike.
SIZES = np.geomspace(0.01, 10, WIDTH)
EVEN = (WEIGHTS / SIZES[:, None]).astype(np.float32)


def seen(*texts: np.ndarray) -> Seen:
    found = Seen()
    for one in texts:
        found.add(one.astype(np.float32), 2 / len(texts))
    return found


def texts(channels: np.ndarray | float = 1.0, tokens: bool = False, seed: int = 0) -> list:
    """20 texts of 8 tokens; with `tokens` some are a hundred times as large as others."""
    random = np.random.default_rng(seed)
    made = random.normal(size=(20, 8, WIDTH)) * channels
    if tokens:
        made *= 10.0 ** random.uniform(-2, 0, (20, 8, 1))
    return list(made)


def test_channels_of_unlike_sizes_have_a_fixed_scale():
    found = fit([seen(*texts(SIZES))], [EVEN])
    assert found is not None
    # Larger channels are divided by more.
    assert found.factors[-1] > 10 * found.factors[0]


def test_tokens_of_unlike_sizes_keep_their_own():
    assert fit([seen(*texts(tokens=True))], [WEIGHTS]) is None


def test_values_that_are_no_numbers_have_no_scale():
    broken = texts(SIZES)
    broken[1][0, 0] = np.nan
    with np.errstate(invalid="ignore"):
        assert fit([seen(*broken)], [EVEN]) is None


def test_ranges_come_from_both_kinds_of_texts_and_of_all_inputs():
    made = [texts(SIZES, seed=seed) for seed in range(2)]
    for inputs in ([made[0]], made):
        found = fit([seen(*one) for one in inputs], [EVEN, EVEN[:, :5]])
        assert found is not None
        every = np.concatenate([row for one in inputs for row in one])
        codes = np.rint(every / found.factors / found.step) + found.zero
        assert 0 <= codes.min() < codes.max() <= 255
        # A tenth of room, and no more: all but some of the codes are used.
        assert codes.max() - codes.min() >= 0.85 * 255


@settings(deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=WIDTH, max_size=WIDTH),
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=WIDTH, max_size=WIDTH),
)
def test_a_scale_is_of_numbers_whatever_was_seen(low, high):
    rows = np.array([low, high, [0.0] * WIDTH])
    found = fit([seen(rows, rows)], [WEIGHTS])
    if found is not None:
        assert np.isfinite(found.factors).all()
        assert (found.factors > 0).all()
        assert found.step > 0
        assert 0 <= found.zero <= 255
        back = (np.rint(rows / found.factors / found.step).clip(-found.zero, 255 - found.zero)) * (
            found.step * found.factors
        )
        assert (np.abs(back - rows) <= found.step * found.factors * 0.51 + 1e-6).all()
