"""Which positions of a graph's value and of PyTorch's tensor are the same ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ptdeploy.parity.locate.feed import Fed
from ptdeploy.parity.locate.match import aligned

# Two rows of 3 and 2 tokens after 4 virtual ones; the second row is looked at.
INSIDE = Fed({}, row=1, rows=2, width=3, taken=2, prefix=4, runs_prefix=True)
FROZEN = Fed({}, row=1, rows=2, width=3, taken=2, prefix=4, runs_prefix=False)


def numbered(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def test_a_rows_padding_is_left_out_where_the_graph_computes_the_prompt():
    ours, theirs = numbered(2, 7, 5), numbered(1, 6, 5)
    found = aligned(ours, theirs, INSIDE)
    assert found is not None
    assert np.array_equal(found[0], ours[1:, :6])
    assert np.array_equal(found[1], theirs)


def test_a_frozen_prompts_positions_are_left_out_of_pytorchs():
    ours, theirs = numbered(2, 3, 5), numbered(1, 6, 5)
    found = aligned(ours, theirs, FROZEN)
    assert found is not None
    assert np.array_equal(found[0], ours[1:, :2])
    assert np.array_equal(found[1], theirs[:, 4:])


def test_the_texts_embeddings_are_compared_where_pytorch_embeds_text_alone():
    ours, theirs = numbered(2, 7, 5), numbered(1, 2, 5)
    found = aligned(ours, theirs, INSIDE)
    assert found is not None
    assert np.array_equal(found[0], ours[1:, 4:6])
    assert np.array_equal(found[1], theirs)


def test_what_is_computed_for_the_text_alone_is_compared_from_there_on():
    skipping = replace(INSIDE, skipped=3)
    ours, theirs = numbered(2, 4, 5), numbered(1, 6, 5)
    found = aligned(ours, theirs, skipping)
    assert found is not None
    assert np.array_equal(found[0], ours[1:, :3])
    assert np.array_equal(found[1], theirs[:, 3:])
    # One token of text is not taken for the first of the row.
    alone = Fed({}, row=0, rows=1, width=1, taken=1, prefix=4, runs_prefix=True, skipped=4)
    ours, theirs = numbered(1, 1, 5), numbered(1, 5, 5)
    found = aligned(ours, theirs, alone)
    assert found is not None
    assert np.array_equal(found[1], theirs[:, 4:])


def test_heads_side_by_side_and_rows_in_one_list_are_the_same_numbers():
    ours, theirs = numbered(2, 7, 4, 5), numbered(1, 6, 20)
    found = aligned(ours, theirs, INSIDE)
    assert found is not None
    assert np.array_equal(found[0], ours[1:, :6].reshape(1, 6, 20))
    tokens = numbered(14, 5)
    found = aligned(tokens, numbered(1, 6, 5), INSIDE)
    assert found is not None
    assert np.array_equal(found[0][0], tokens[7:13])


def test_a_head_that_runs_at_the_last_token_is_compared_there():
    ours, theirs = numbered(2, 5), numbered(1, 6, 5)
    found = aligned(ours, theirs, FROZEN)
    assert found is not None
    assert np.array_equal(found[0], ours[1])
    assert np.array_equal(found[1], theirs[0, -1])


def test_what_does_not_fit_is_not_compared():
    assert aligned(numbered(2, 3, 5).astype(np.int64), numbered(1, 2, 5), INSIDE) is None
    assert aligned(numbered(2, 7, 6), numbered(1, 6, 5), INSIDE) is None
    assert aligned(numbered(2, 3, 5), numbered(1, 2, 5), INSIDE) is None
    assert aligned(numbered(2, 3, 5, 5, 5), numbered(1, 2, 5), INSIDE) is None
