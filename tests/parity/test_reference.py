"""A stored reference is read back as it was written."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.damage import DECODER, REFERENCE_DAMAGE, Damage, edit, rewrite_reference
from support.values import MODEST

import ptdeploy
from ptdeploy.bundle import read_bundle
from ptdeploy.parity.cases import BatchCase, batches
from ptdeploy.parity.reference import Greedy, Reference, ReferenceRow
from ptdeploy.parity.reference.store import _read, load_reference, save_reference
from ptdeploy.parity.thresholds import thresholds_for

FP32 = thresholds_for("fp32", None, "softmax")

ROWS = st.lists(
    st.lists(st.integers(0, 99), min_size=1, max_size=40).map(lambda r: np.array(r, np.int64)),
    min_size=1,
    max_size=6,
)


@given(rows=ROWS, classes=st.integers(1, 9), mismatch=st.none() | st.floats(0, 9))
@MODEST
def test_a_reference_round_trips(tmp_path, rows, classes, mismatch):
    random = np.random.default_rng(0)
    reference = Reference(
        tuple(
            ReferenceRow(ids, random.normal(size=(ids.size, classes)).astype("f4")) for ids in rows
        ),
        tuple(Greedy(ids, ids, ids.astype("f4")) for ids in rows[:2]),
        (BatchCase((0,), "right"), BatchCase((0, 0), "both")),
        FP32,
        ("a", "ü"),
        ((1, 2), ()),
        "somebody",
        mismatch,
    )
    save_reference(reference, tmp_path)
    back = _read(tmp_path / "reference.safetensors")
    assert (back.texts, back.text_ids) == (reference.texts, reference.text_ids)
    assert back.padded_mismatch == mismatch
    assert (back.cases, back.thresholds) == (reference.cases, reference.thresholds)
    for one, two in zip(reference.rows, back.rows, strict=True):
        assert np.array_equal(one.logits, two.logits)
        assert np.array_equal(one.ids, two.ids)


def test_a_large_vocabulary_keeps_its_last_positions_only(tmp_path):
    logits = np.arange(4 * 200_000, dtype=np.float32).reshape(4, 200_000)
    case = BatchCase((0,), "right")
    save_reference(Reference((ReferenceRow(np.arange(4), logits),), (), (case,), FP32), tmp_path)
    (row,) = _read(tmp_path / "reference.safetensors").rows
    assert np.array_equal(row.logits, logits[-1:])


def _row(tokens: int, source: str) -> ReferenceRow:
    return ReferenceRow(np.arange(tokens), np.zeros(3, np.float32), source)


def test_fewer_stored_rows_have_cases_of_their_own():
    sources = ["random"] * 9 + ["text"] * 3
    rows = tuple(_row(4, source) for source in sources)
    whole = Reference(rows, (), batches(sources), FP32)
    few = whole.first(10, None)
    assert len(few.rows) == 10
    assert few.cases == batches(sources[:10])
    assert max(max(case.rows) for case in few.cases) == 9
    assert whole.first(None, None) is whole


@pytest.mark.parametrize("widest", [2, 3, 8])
def test_few_stored_rows_have_a_batch_as_wide_as_the_profile(widest):
    found = [case for case in batches(["random"] * 5, widest) if len(case.rows) == widest]
    assert any(case.padding == "left" for case in found)


def test_own_data_has_its_cases_behind_the_stored_ones():
    rows = (_row(4, "random"), _row(5, "random"))
    stored = Reference(rows, (), (BatchCase((1, 0), "both"),), FP32)
    with_data = stored.with_data([_row(2, "data"), _row(3, "data")], 1)
    assert with_data.cases == (
        BatchCase((1, 0), "both"),
        BatchCase((2,), "right", "data"),
        BatchCase((3,), "right", "data"),
    )
    assert stored.with_data([_row(2, "data"), _row(3, "data")], None).cases[3:] == (
        BatchCase((2, 3), "right", "data"),
        BatchCase((2, 3), "left", "data"),
    )


@pytest.fixture
def decoder(compiled, tmp_path) -> Path:
    return Path(shutil.copytree(compiled(*DECODER).bundle, tmp_path / "bundle"))


def test_verify_runs_the_stored_cases_within_the_stored_thresholds(decoder):
    stored = {
        "cases": [{"rows": [3, 1, 3], "padding": "both"}, {"rows": [2], "padding": "left"}],
        "thresholds": {
            "max_abs": 0.5,
            "relative": 0.0,
            "cosine": 0.25,
            "kl": 0.125,
            "min_top1_agreement": 0.75,
        },
    }
    rewrite_reference(decoder, lambda _, metadata: metadata.update(stored))
    report = ptdeploy.verify(decoder)
    own = [case for case in report.cases if not (case.without_prompt or case.mixed)]
    assert [(case.name, case.rows) for case in own] == [
        ("batch 3 both-padded", (3, 1, 3)),
        ("alone", (2,)),
    ]
    assert report.largest_allowed == 0.5
    assert msgspec.to_builtins(report.thresholds) == stored["thresholds"]


def test_given_thresholds_are_laid_over_the_stored_ones(decoder, tmp_path):
    rewrite_reference(decoder, lambda _, m: m["thresholds"].update(max_abs=0.5, kl=0.125))
    own = tmp_path / "own.json"
    own.write_text('{"kl": 0.0625}')
    thresholds = ptdeploy.verify(decoder, thresholds=own).thresholds
    assert (thresholds.max_abs, thresholds.kl) == (0.5, 0.0625)
    assert thresholds.cosine == FP32.cosine


def test_a_stored_bound_that_is_missed_fails(decoder):
    rewrite_reference(decoder, lambda _, m: m["thresholds"].update(max_abs=0, relative=0))
    assert not ptdeploy.verify(decoder).passed


@pytest.mark.parametrize("damage", REFERENCE_DAMAGE, ids=str)
def test_a_damaged_reference_is_refused(compiled, tmp_path, damage: Damage):
    bundle = Path(shutil.copytree(compiled(*damage.bundle).bundle, tmp_path / "bundle"))
    damage.do(bundle)
    with pytest.raises(ptdeploy.BundleError, match=re.escape(damage.reason)) as refused:
        load_reference(read_bundle(bundle))
    assert refused.value.fix == "Compile the checkpoint again."


def test_a_case_of_more_rows_than_the_bundle_takes_is_refused(decoder):
    edit(decoder, lambda manifest: manifest["limits"].update(max_batch=2))
    with pytest.raises(
        ptdeploy.BundleError, match=r"cases\[\d+\] has 3 rows, but the bundle takes"
    ):
        load_reference(read_bundle(decoder))
