"""The numbers a case is held by."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ptdeploy.parity.measure import HISTOGRAM_EDGES, bin_positions, measure


def logits(*rows: list[float]) -> np.ndarray:
    return np.asarray(rows, np.float32)


def test_equal_logits_agree_even_where_a_head_gives_nothing():
    for one in (logits([1, 2, 3]), logits([0, 0, 0])):
        found, largest = measure(one, one, 1e-5, 0)
        assert (found.max_abs, found.cosine, found.kl) == (0, 1, 0)
        assert found.clear_agreement
        assert largest.tolist() == [0]


def test_nothing_is_not_like_something():
    found, _ = measure(logits([0, 0]), logits([1, 0]), 1e-5, 0)
    assert found.cosine == 0


def test_classes_that_are_as_likely_may_turn_around_and_others_may_not():
    """Their logits are (a, -a): the cosine is -1, however small a is."""
    near, _ = measure(logits([0.004, -0.004]), logits([-0.007, 0.007]), 0.1, 0.2)
    assert near.cosine is not None
    assert near.cosine > 0.99
    clear, _ = measure(logits([1, -1]), logits([-1, 1]), 0.1, 0.2)
    assert clear.cosine is not None
    assert clear.cosine < -0.95


def test_what_is_not_finite_is_none_and_counted_last():
    for bad in (np.nan, np.inf, -np.inf):
        found, largest = measure(logits([1, 2], [3, 4]), logits([1, 2], [bad, 4]), 1e-5, 0)
        assert found.max_abs is None
        assert found.mean_abs is None
        assert found.histogram[-1] == 1
        assert sum(found.histogram) == 4
        assert largest.tolist() == [0, np.inf]


def test_a_near_tie_may_swap_and_a_clear_lead_may_not():
    near, _ = measure(logits([1, 1 + 1e-6]), logits([1 + 1e-6, 1]), 1e-5, 0)
    assert near.clear_agreement
    assert near.top1_agreement == 0
    clear, _ = measure(logits([1, 2]), logits([2, 1]), 1e-5, 0)
    assert not clear.clear_agreement


def test_what_is_measured_a_few_positions_at_a_time_is_the_same(monkeypatch):
    random = np.random.default_rng(0)
    want = random.normal(size=(50, 7)).astype(np.float32)
    got = want + random.normal(scale=0.1, size=want.shape).astype(np.float32)
    whole, largest = measure(want, got, 0.1, 0)
    monkeypatch.setattr("ptdeploy.parity.measure._SCORES", 21)
    pieces, parts = measure(want, got, 0.1, 0)
    assert pieces.mean_abs == pytest.approx(whole.mean_abs)
    assert replace(pieces, mean_abs=0) == replace(whole, mean_abs=0)
    assert parts.tolist() == largest.tolist()


def test_histogram_bins_are_decades():
    found, _ = measure(logits([0, 0, 0]), logits([0, 5e-4, 20]), 1e-5, 0)
    assert found.histogram[0] == 1
    assert found.histogram[HISTOGRAM_EDGES.index(1e-3)] == 1
    assert found.histogram[-1] == 1


def test_positions_are_put_into_at_most_64_ranges():
    found = bin_positions([(position, float(position)) for position in range(500)])
    assert len(found) <= 64
    assert found[0] == (0, 7, 7.0)
    assert found[-1][2] == 499
    assert bin_positions([]) == []
