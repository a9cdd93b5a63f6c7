"""A model that takes long rows is compared on one that its prefill runs in pieces."""

from __future__ import annotations

import json

import numpy as np
import pytest
from support import tiny

import ptdeploy
from ptdeploy.bundle import RequestLimits, read_bundle
from ptdeploy.parity.cases import AskedRow, Comparison, make_rows
from ptdeploy.parity.reference import peft
from ptdeploy.parity.thresholds import thresholds_for
from ptdeploy.runtime.causal import CausalLM
from ptdeploy.runtime.layout import PREFILL
from ptdeploy.source.base import resolve_base
from ptdeploy.source.checkpoint import read_checkpoint

NOTE = "no row of over 528 tokens was run, but the bundle takes up to "


@pytest.mark.parametrize("vocabulary", [1, 2, 101, 151_936])
def test_the_vocabularys_ends_are_among_the_rows(vocabulary):
    """A table from before tokens were added gives its last row, or none, for them."""
    rows = make_rows(vocabulary, 1000)
    found = set(np.concatenate(rows).tolist())
    assert {0, vocabulary - 1, max(vocabulary - 2, 0), max(vocabulary - 4, 0)} <= found
    assert found <= set(range(vocabulary))
    assert [row.size for row in make_rows(vocabulary, 3)] == [1, 2, 3, 3, 3, 3, 3, 3, 3]


@pytest.mark.parametrize(("takes", "longest"), [(59, 59), (512, 512), (530, 528), (32_768, 528)])
def test_the_longest_row_is_as_long_as_the_model_takes_or_longer_than_a_piece(takes, longest):
    lengths = [row.size for row in make_rows(32_000, takes)]
    assert lengths == [1, 2, 3, 5, 8, 13, 21, 34, longest]


def test_a_fault_behind_the_first_piece_of_a_prefill_fails(bundles, monkeypatch):
    bundle, honest = bundles("fused"), CausalLM._row_logits

    def late(self, *given):
        found = honest(self, *given)
        for logits in found:
            logits[PREFILL:] += np.float32(0.01)
        return found

    monkeypatch.setattr(CausalLM, "_row_logits", late)
    report = ptdeploy.verify(bundle)
    assert {max(one.lengths) for one in report.cases if not one.passed} == {528}
    assert not report.passed


def test_a_long_row_is_continued_and_what_is_longer_is_noted(bundles):
    bundle = read_bundle(bundles("fused"))
    report = ptdeploy.verify(bundle.path)
    assert report.passed
    assert 528 in {one.length for one in report.greedy}
    note = f"{NOTE}{bundle.manifest.request_limits.max_sequence}; give such rows with --data."
    assert note in report.notes
    compiled = bundle.file("parity")
    assert compiled is not None
    assert note in json.loads(compiled.read_text())["notes"]


def test_a_model_that_takes_no_longer_rows_has_no_such_note(compiled):
    report = ptdeploy.verify(compiled("qwen2", "CAUSAL_LM").bundle)
    assert not [note for note in report.notes if note.startswith("no row of over ")]


def test_rows_of_ones_own_that_are_as_long_take_the_note_away(bundles, tmp_path):
    bundle = read_bundle(bundles("fused"))
    longest = bundle.manifest.request_limits.max_sequence
    engine = ptdeploy.load(bundle.path)
    ids = (np.arange(longest) % tiny.VOCABULARY).tolist()
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"ids": ids, "logits": engine.logits([ids])[0].tolist()}))
    report = ptdeploy.verify(bundle.path, data=data)
    assert not [note for note in report.notes if note.startswith(NOTE)]


def test_of_a_large_vocabulary_a_long_row_is_held_at_its_last_positions(tmp_path, monkeypatch):
    trained = tiny.make(tmp_path, "qwen2", "CAUSAL_LM")
    checkpoint = read_checkpoint(trained.adapter)
    base = resolve_base(checkpoint, str(trained.base))
    limits = RequestLimits(max_sequence=59, max_context=64, vocab_size=tiny.VOCABULARY)
    ids = make_rows(tiny.VOCABULARY, 59)[8]
    rows = (AskedRow(ids), AskedRow(ids[:9]), AskedRow(ids, "data"))
    asked = Comparison(rows, (), thresholds_for("fp32", None, "softmax"))
    whole = peft.compute_reference(checkpoint, base, limits, asked).rows[0].logits
    monkeypatch.setattr(peft, "_ROW_BYTES", 4 * tiny.VOCABULARY * 10)
    monkeypatch.setattr(peft, "_LAST_POSITIONS", 9)
    found = [row.logits for row in peft.compute_reference(checkpoint, base, limits, asked).rows]
    assert [len(logits) for logits in found] == [10, 9, 59]
    assert np.array_equal(found[0], whole[-10:])
