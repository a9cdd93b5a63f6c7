"""Rows that share a past run as one sequence, and are what they are alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.damage import replace
from support.native import LOOSE
from support.places import by_places

import ptdeploy
from ptdeploy.runtime.dense_kv import DenseKV
from ptdeploy.runtime.joined import HIDDEN, MOST, PAST, Coming, joined, offsets_of

ROWS = [[5, 6, 7], [40], [9, 10, 11, 12, 13, 14, 15, 16], [99, 100], [8] * 40]
WIDE = {"hidden_size": 64}
COMING = st.lists(st.tuples(st.integers(0, 200), st.sampled_from("nabcd")), max_size=12)
FILLED = {"n": 0, "a": 5, "b": 100, "c": 250, "d": 1900}


def coming(sizes: list[int], pasts: str, start: int = 10) -> list[Coming]:
    """Rows of so many tokens behind pasts of `start` slots, n behind none."""
    return [
        Coming(size, past, 0 if past == "n" else start)
        for size, past in zip(sizes, pasts, strict=True)
    ]


@given(COMING, st.integers(1, 3000), st.booleans())
def test_each_row_is_in_one_group_that_fits(drawn, context, mixes):
    rows = [Coming(size, past, FILLED[past]) for size, past in drawn]
    groups = joined(rows, context, mixes=mixes)
    assert sorted(row for group in groups for row in group) == list(range(len(rows)))
    for group in groups:
        if len(group) == 1:
            continue
        own = [rows[number] for number in group]
        pasts = {row.past: row.start for row in own}
        tokens, slots = sum(row.size for row in own), sum(pasts.values())
        assert all(row.size for row in own)
        assert tokens <= MOST
        assert max(slots, 1) + tokens <= context
        if not mixes:
            assert len(pasts) == 1
            assert slots
        if len(pasts) > 1:
            assert slots <= PAST
        hidden = tokens * slots - sum(row.size * row.start for row in own)
        assert hidden <= HIDDEN * (len(group) - 1)


@pytest.mark.parametrize(
    ("sizes", "pasts", "context", "groups", "engine"),
    [
        ([16] * 8, "aaaaaaaa", 1000, [[0, 1, 2, 3, 4, 5, 6, 7]], 512),
        ([16] * 10, "a" * 10, 1000, [[*range(8)], [8, 9]], 512),
        ([3, 4, 5, 6], "abab", 1000, [[0, 2, 1, 3]], 512),
        ([16] * 8, "abcdefgh", 1000, [[*range(8)]], 512),
        ([16] * 10, "ab" * 5, 1000, [[0, 2, 4, 6, 8, 1, 3, 5], [7, 9]], 512),
        ([3, 0, 5], "aaa", 1000, [[0, 2], [1]], 512),
        ([3, 129, 5], "aaa", 1000, [[0, 2], [1]], 512),
        ([3, 4, 5], "aaa", 18, [[0, 1], [2]], 512),
        ([3, 4, 5], "aaa", 12, [[0], [1], [2]], 512),
        ([3, 4, 5], "abc", 27, [[0, 1], [2]], 512),
        ([3, 4], "nn", 1000, [[0, 1]], 512),
        ([3, 4], "nn", 7, [[0], [1]], 512),
        ([3, 4, 5], "nan", 1000, [[0, 2, 1]], 512),
        ([3, 4], "aa", 1000, [[0], [1]], 6),
    ],
)
def test_groups(sizes, pasts, context, groups, engine):
    assert joined(coming(sizes, pasts), context, engine) == groups


def test_an_engine_that_hides_no_past_joins_rows_of_one():
    rows = coming([3, 4, 5, 6, 7, 8], "abnabn")
    assert joined(rows, 1000, mixes=False) == [[0, 3], [1, 4], [2], [5]]


def test_prompts_that_are_long_come_alone():
    # Behind 100 slots each of 8 rows of 16 tokens may join, behind 1,000 none.
    assert joined(coming([16] * 4, "abcd", 400), 9999) == [[0, 1], [2, 3]]
    assert joined(coming([16] * 4, "abcd", 1000), 9999) == [[0], [1], [2], [3]]
    assert joined(coming([16] * 4, "aabb", 1000), 9999) == [[0, 1], [2, 3]]
    # Few tokens hide few pairs: what is copied bounds them.
    assert joined(coming([1] * 4, "abcd", 900), 9999) == [[0, 1], [2, 3]]


def test_a_token_is_counted_in_its_own_row():
    assert offsets_of([3, 1, 2])[0].tolist() == [0, 1, 2, 0, 0, 1]
    assert not offsets_of([3, 1, 2])[1:].any()


def test_a_token_is_told_what_of_the_past_is_not_its_rows():
    offsets = offsets_of([2, 1], [0, 5], [7, 0])
    assert offsets.tolist() == [[0, 1, 0], [0, 0, 5], [7, 7, 0]]


class Counted:
    """A session that counts its runs and the tokens of each."""

    def __init__(self, session: Any, ids: str) -> None:
        self._session, self._ids, self.tokens = session, ids, list[tuple[int, int]]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def bind(self, inputs: Any, outputs: Any) -> Any:
        run, shape = self._session.bind(inputs, outputs), inputs[self._ids].shape

        def counted() -> None:
            self.tokens.append(shape)
            run()

        return counted


@pytest.fixture(params=[("qwen2", {}), ("qwen2", WIDE), ("gpt2", {})], ids=str)
def engine(request, compiled) -> Any:
    architecture, config = request.param
    return ptdeploy.load(compiled(architecture, "CAUSAL_LM", **config).bundle)


def begun(engine: Any, prefixes: list[Any], counted: bool = True) -> tuple[DenseKV, Counted]:
    session = Counted(engine._session, engine.layout.ids)
    return DenseKV(session, engine.layout, prefixes, 64, {}), session


def rooms(engine: Any, ids: list[Any]) -> list[Any]:
    return [np.empty((one.size, engine.layout.vocabulary), np.float32) for one in ids]


@pytest.mark.parametrize("every", [False, True])
def test_one_run_gives_what_a_run_for_each_row_gives(engine, every):
    prefix = engine.prompt.prefix_kv
    together, runs = begun(engine, [prefix] * len(ROWS))
    alone, _ = begun(engine, [prefix] * len(ROWS))
    ids = [np.array(row) for row in ROWS]
    for _ in range(2):
        found = together.prefill_all(ids, rooms(engine, ids) if every else None)
        own = rooms(engine, ids) if every else [None] * len(ids)
        for row, logits in enumerate(found):
            np.testing.assert_allclose(logits, alone.prefill(row, ids[row], own[row]), atol=1e-5)
        assert together.lengths.tolist() == alone.lengths.tolist()
        for step in range(3):
            steps = together.decode([step] * len(ROWS)), alone.decode([step] * len(ROWS))
            np.testing.assert_allclose(*steps, atol=1e-5)
        assert together.is_sound
        together.reset()
        alone.reset()
    assert runs.tokens[0] == (1, sum(map(len, ROWS)))
    assert [shape for shape in runs.tokens if shape[1] > 1] == runs.tokens[:1] * 2


def test_rows_of_any_prefix_and_of_none_are_one_run(engine):
    one, other = engine.prompt.prefix_kv, engine.prompt.prefix_kv * 2
    shorter = engine.prompt.prefix_kv[:, :, :, :2]
    prefixes = [one, other, None, one, shorter, None]
    ids = [np.arange(3, 3 + size) for size in (2, 3, 4, 5, 6, 7)]
    together, runs = begun(engine, prefixes)
    alone, _ = begun(engine, prefixes)
    for row, logits in enumerate(together.prefill_all(ids)):
        np.testing.assert_allclose(logits, alone.prefill(row, ids[row]), atol=1e-5)
    assert runs.tokens == [(1, sum(map(len, ids)))]
    decoded = together.decode([1] * 6), alone.decode([1] * 6)
    np.testing.assert_allclose(*decoded, atol=1e-5)


def test_rows_without_a_prefix_are_one_run(engine):
    ids = [np.arange(3, 3 + size) for size in (2, 1, 7)]
    together, runs = begun(engine, [None] * 3)
    alone, _ = begun(engine, [None] * 3)
    for row, logits in enumerate(together.prefill_all(ids)):
        np.testing.assert_allclose(logits, alone.prefill(row, ids[row]), atol=1e-5)
    assert runs.tokens == [(1, 10)]
    decoded = together.decode([1] * 3), alone.decode([1] * 3)
    np.testing.assert_allclose(*decoded, atol=1e-5)


@pytest.mark.parametrize("architecture", ["qwen2", "gpt2"])
def test_an_older_graph_joins_rows_of_one_prefix(compiled, tmp_path, architecture):
    bundle = compiled(architecture, "CAUSAL_LM").bundle
    new, older = ptdeploy.load(bundle), ptdeploy.load(by_places(bundle, tmp_path / "older"))
    one, other = older.prompt.prefix_kv, older.prompt.prefix_kv * 2
    prefixes = [one, other, None, one, other, None]
    ids = [np.arange(3, 3 + size) for size in (2, 3, 4, 5, 6, 7)]
    (kv, runs), (together, _) = begun(older, prefixes), begun(new, prefixes)
    for found, wanted in zip(kv.prefill_all(ids), together.prefill_all(ids), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert sorted(runs.tokens) == [(1, 4), (1, 7), (1, 7), (1, 9)]
    np.testing.assert_allclose(kv.decode([1] * 6), together.decode([1] * 6), atol=1e-5)
    assert older.greedy(ROWS, 9) == new.greedy(ROWS, 9)


def test_a_number_that_overflowed_in_any_row_is_known(engine):
    prefix = engine.prompt.prefix_kv
    kv, _ = begun(engine, [np.full_like(prefix, np.nan)] * 2)
    kv.prefill_all([np.array([5]), np.array([6, 7])])
    assert not kv.is_sound


def test_a_prefix_that_overflows_leaves_the_rows_beside_it(engine):
    prefix = engine.prompt.prefix_kv
    prefixes = [prefix, np.full_like(prefix, np.inf), prefix]
    ids = [np.array([5, 6]), np.array([7]), np.array([8, 9, 10])]
    together, _ = begun(engine, prefixes)
    alone, _ = begun(engine, prefixes)
    found = together.prefill_all(ids)
    assert not np.isfinite(found[1]).all()
    for row in (0, 2):
        np.testing.assert_allclose(found[row], alone.prefill(row, ids[row]), atol=1e-5)


def test_a_row_that_overflows_leaves_those_beside_it(compiled, tmp_path):
    bundle = Path(shutil.copytree(compiled("gpt2", "CAUSAL_LM").bundle, tmp_path / "bundle"))
    model = onnx.load(bundle / "model.onnx")
    (gather,) = [one for one in model.graph.node if one.name == "transformer.wte/Gather"]
    (table,) = [one for one in model.graph.initializer if one.name == gather.input[0]]
    words = onnx.numpy_helper.to_array(table).copy()
    words[7] = np.inf
    own = onnx.numpy_helper.from_array(words, "words")
    model.graph.initializer.append(own)
    gather.input[0] = own.name
    (bundle / "model.onnx.data").unlink()
    how = {"save_as_external_data": True, "location": "model.onnx.data", "size_threshold": 256}
    onnx.save(model, bundle / "model.onnx", **how)
    for name in ("model.onnx", "model.onnx.data"):
        replace(bundle, name, (bundle / name).read_bytes())
    engine = ptdeploy.load(bundle)
    rows = [[5, 6], [8, 7, 9], [10, 11, 12]]
    found = engine.logits(rows)
    assert not np.isfinite(found[1]).all()
    for row in (0, 2):
        np.testing.assert_allclose(found[row], engine.logits([rows[row]])[0], atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("mistral", {}),
        ("bloom", {}),
        ("qwen2", {"freeze_kv": False}),
        ("qwen2", {"precision": "int8", "quantization": LOOSE}),
    ],
    ids=["window", "plain", "not frozen", "int8"],
)
def test_elsewhere_rows_come_alone(compiled, architecture, options):
    bundle = compiled(architecture, "CAUSAL_LM", options).bundle
    assert ptdeploy.load(bundle).layout.offsets is None
