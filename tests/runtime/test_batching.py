"""Rows of any batch come back as they were given, and their probabilities sum to one."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.values import MODEST

from ptdeploy.arguments import ITEMS
from ptdeploy.bundle import Limits
from ptdeploy.errors import InputError
from ptdeploy.parity.cases import pad
from ptdeploy.runtime.batching import grouped, pack, rows_of
from ptdeploy.runtime.probabilities import softmax

LIMITS = Limits(max_context=50, vocab_size=100)


ROWS = st.lists(
    st.lists(st.integers(0, 99), min_size=1, max_size=40).map(lambda r: np.array(r, np.int64)),
    min_size=1,
    max_size=6,
)


@given(rows=ROWS, padding=st.sampled_from(["left", "right"]))
@MODEST
def test_rows_come_back_from_either_padding(rows, padding):
    back = rows_of(*pad(rows, padding), LIMITS, lambda rows: [40] * rows)
    assert all(np.array_equal(a, b) for a, b in zip(rows, back, strict=True))
    batch = pack(back)
    assert batch.lengths.tolist() == [row.size for row in rows]
    for row, ids, mask in zip(rows, batch.input_ids, batch.attention_mask, strict=True):
        assert np.array_equal(ids[: row.size], row)
        assert mask.tolist() == [1] * row.size + [0] * (mask.size - row.size)


@given(st.lists(st.floats(-500, 500), min_size=1, max_size=9))
@MODEST
def test_probabilities_sum_to_one(logits):
    probabilities = softmax(np.array([logits], np.float32))
    assert probabilities.sum() == pytest.approx(1)
    assert (probabilities >= 0).all()


@given(
    lengths=st.lists(st.integers(1, 500), max_size=40),
    size=st.sampled_from([1, 2, 16, 2**31 - 1]),
)
@MODEST
def test_groups_hold_every_row_once_and_little_padding(lengths, size):
    groups = grouped(lengths, size)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        assert 1 <= len(group) <= size
        inside = [lengths[index] for index in group]
        # Each longer row pads the group's shorter ones by at most 64 tokens together.
        assert all(
            (longer - shorter) * count <= 64
            for count, (shorter, longer) in enumerate(pairwise(inside), start=1)
        )


def test_rows_of_one_length_stay_together_in_their_order():
    assert grouped([7, 3, 7, 3, 7], 2) == [[1, 3], [0, 2], [4]]
    assert grouped([9] * 5, 16) == [[0, 1, 2, 3, 4]]


def test_a_long_row_does_not_pad_short_ones():
    assert grouped([120, 8, 9, 118, 8], 16) == [[1, 4, 2], [3, 0]]


def taken(batch, mask=None):
    return rows_of(batch, mask, LIMITS, lambda rows: [40] * rows)


@pytest.mark.parametrize("unit", ["m8", "m8[s]", "M8[s]"])
def test_spans_of_time_are_no_token_ids_and_no_mask(unit):
    times = np.array([[1, 1]], unit)
    for ids in (times, list(times), times[0]):
        with pytest.raises(InputError, match=r"^Token ids must be whole numbers"):
            taken(ids)
    with pytest.raises(InputError, match=r"^Row 0 of attention_mask holds .*, but 1 is for text"):
        taken([[5, 6]], times)


def test_a_masked_array_is_refused_and_its_hidden_numbers_are_not_read():
    hidden = np.ma.masked_array([[1, 1, 1]], [[0, 0, 1]])
    for rows, mask in ((hidden, None), (list(hidden), None), ([[5, 6, 7]], hidden)):
        with pytest.raises(InputError, match="a masked array holds numbers") as refused:
            taken(rows, mask)
        assert "row.compressed() for row in rows" in refused.value.fix
    (row,) = taken([row.compressed() for row in hidden])
    assert row.tolist() == [1, 1]


@pytest.mark.parametrize("count", [ITEMS + 1, 10**13])
def test_a_row_of_too_many_numbers_is_refused_before_they_are_made(count):
    for rows in ([range(count)], [[5], range(count)]):
        with pytest.raises(InputError, match=f"a row has {count} numbers; at most {ITEMS} are"):
            taken(rows)
