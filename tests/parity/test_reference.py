"""A stored reference is read back as it was written."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support.values import MODEST

from ptdeploy.parity.reference import Greedy, Reference, ReferenceRow
from ptdeploy.parity.reference.store import _read, save_reference

ROWS = st.lists(
    st.lists(st.integers(0, 99), min_size=1, max_size=40).map(lambda r: np.array(r, np.int64)),
    min_size=1,
    max_size=6,
)


@given(rows=ROWS, classes=st.integers(1, 9), departure=st.none() | st.floats(0, 9))
@MODEST
def test_a_reference_round_trips(tmp_path, rows, classes, departure):
    random = np.random.default_rng(0)
    reference = Reference(
        tuple(
            ReferenceRow(ids, random.normal(size=(ids.size, classes)).astype("f4")) for ids in rows
        ),
        tuple(Greedy(ids, ids, ids.astype("f4")) for ids in rows[:2]),
        ("a", "ü"),
        ((1, 2), ()),
        "somebody",
        departure,
    )
    save_reference(reference, tmp_path)
    back = _read(tmp_path / "reference.safetensors")
    assert (back.texts, back.text_ids) == (reference.texts, reference.text_ids)
    assert back.padded_departure == departure
    for one, two in zip(reference.rows, back.rows, strict=True):
        assert np.array_equal(one.logits, two.logits)
        assert np.array_equal(one.ids, two.ids)


def test_a_large_vocabulary_keeps_its_last_positions_only(tmp_path):
    logits = np.arange(4 * 200_000, dtype=np.float32).reshape(4, 200_000)
    save_reference(Reference((ReferenceRow(np.arange(4), logits),), ()), tmp_path)
    (row,) = _read(tmp_path / "reference.safetensors").rows
    assert np.array_equal(row.logits, logits[-1:])
