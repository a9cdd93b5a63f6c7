"""Rows that come as one sequence get what each gets alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.graphs import random
from support.turned import (
    JOINING,
    KV_HEADS,
    POSITIONS,
    REQUESTS,
    SIGNATURE,
    attention,
    operators,
    run,
)

from ptdeploy.passes import PassContext, join, rotary
from ptdeploy.runtime.joined import offsets_of

CONTEXT = PassContext(JOINING, rotary_positions=POSITIONS)
# How a model's attention may be: turned by a table or before it, not turned, of capped scores.
KINDS = [{"head": 16}, {"head": 8}, {"turns": False}, {"softcap": 2.0}]


def passed(**how):
    return join.run(rotary.run(attention(joins=True, layers=2, **how), CONTEXT), CONTEXT)


ROWS = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 5)), min_size=1, max_size=4)


def pasts(slots: int, firsts: list[int], starts: list[int], head: int) -> list[dict[str, Any]]:
    """A buffer of so many slots, and those of rows that begin with a part of it each."""
    kept: list[dict[str, Any]] = [{} for _ in range(1 + len(firsts))]
    for place in range(4):
        whole = random(1, KV_HEADS, POSITIONS, head, seed=place)
        kept[0][f"past.{place}"] = whole
        for own, first, start in zip(kept[1:], firsts, starts, strict=True):
            own[f"past.{place}"] = np.zeros_like(whole)
            own[f"past.{place}"][:, :, :start] = whole[:, :, first : first + start]
    assert slots <= POSITIONS
    return kept


def each_is_alone(
    how: dict[str, Any], past: int, firsts: list[int], starts: list[int], sizes: list[int]
) -> None:
    """Rows behind parts of a past of so many slots, that come as one, get what each gets alone."""
    after, alone = passed(**how), attention(layers=2, **how)
    ends, x = np.cumsum(sizes), random(1, sum(sizes), 8, seed=7)
    whole, *own = pasts(past + sum(sizes), firsts, starts, int(after.graph.inputs[-1].shape[3]))
    behind = [past - first - start for first, start in zip(firsts, starts, strict=True)]
    offsets = offsets_of(sizes, firsts, behind)
    joined = run(after, [past], sum(sizes), x=x, offsets=offsets, **whole)
    for start, size, end, kept in zip(starts, sizes, ends, own, strict=True):
        found = run(alone, [start], size, x=x[:, end - size : end], **kept)
        for place, (one, part) in enumerate(zip(joined, found, strict=True)):
            if place % 3 == 0:
                np.testing.assert_allclose(one[:, end - size : end], part, atol=2e-5)
                continue
            # Keys and values: the past, then the row's own.
            slots = slice(past + end - size, past + end)
            theirs = part[:, :, start : start + size]
            np.testing.assert_allclose(one[:, :, slots], theirs, atol=2e-5)
    for name, place in (("past.0", 1), ("past.1", 2)):
        np.testing.assert_array_equal(joined[place][:, :, :past], whole[name][:, :, :past])


@pytest.mark.parametrize("how", KINDS, ids=str)
@given(past=st.integers(1, 9), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4))
@settings(max_examples=15, deadline=None)
def test_each_row_behind_one_past_gets_what_it_gets_alone(how, past, sizes):
    each_is_alone(how, past, [0] * len(sizes), [past] * len(sizes), sizes)


@pytest.mark.parametrize("how", KINDS, ids=str)
@given(rows=ROWS)
@settings(max_examples=25, deadline=None)
def test_each_row_behind_its_own_past_gets_what_it_gets_alone(how, rows):
    starts, sizes = [start for start, _ in rows], [size for _, size in rows]
    firsts = [sum(starts[:row]) for row in range(len(starts))]
    each_is_alone(how, max(sum(starts), 1), firsts, starts, sizes)


@pytest.mark.parametrize("how", KINDS, ids=str)
@given(REQUESTS)
@settings(max_examples=15, deadline=None)
def test_rows_of_a_batch_get_what_they_got(how, request):
    for one, other in zip(
        run(passed(**how), *request), run(attention(layers=2, **how), *request), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_what_hides_other_rows_is_worked_out_once():
    made = operators(passed())
    assert made.count("GroupQueryAttention") == 2
    assert made.count("CumSum") == made.count("Range") == made.count("Concat") == 1


def test_attention_of_another_length_is_hidden_by_its_own():
    model = attention(joins=True, layers=2)
    second = [node for node in model.graph if node.op_type == "GroupQueryAttention"][1]
    again = ir.Node("", "Identity", [second.inputs[6]], num_outputs=1)
    model.graph.insert_before(second, again)
    second.replace_input_with(6, again.outputs[0])
    after = join.run(rotary.run(model, CONTEXT), CONTEXT)
    assert operators(after).count("CumSum") == 2
    whole = run(after, [3], 4)
    for one, other in zip(whole, run(attention(layers=2), [3], 4), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_sinks_stay_where_the_operator_reads_them():
    model = attention(joins=True, turns=False)
    (node,) = [one for one in model.graph if one.op_type == "GroupQueryAttention"]
    sinks = model.graph.initializers["constant.0"]
    node.resize_inputs(12)
    node.replace_input_with(11, sinks)
    join.run(model, CONTEXT)
    (node,) = [one for one in model.graph if one.op_type == "GroupQueryAttention"]
    assert node.inputs[11] is sinks
    assert node.inputs[10] is not None


def test_a_program_without_offsets_stays():
    model = attention(layers=2)
    before = operators(model)
    assert operators(join.run(model, PassContext(SIGNATURE))) == before
