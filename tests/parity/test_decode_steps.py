"""Decode steps: compared as far as each row has room, and held to the engine's own prefill."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from support.batches import one_off_in_batches, values_of_steps_off

import ptdeploy
from ptdeploy.bundle import read_bundle
from ptdeploy.bundle.precision import Thresholds
from ptdeploy.parity.bounds import Bounds
from ptdeploy.parity.compare import compare_greedy
from ptdeploy.parity.reference.store import load_reference
from ptdeploy.runtime.causal import CausalLM
from ptdeploy.runtime.generation import Generated

BOUNDS = Bounds(Thresholds(max_abs=1e-3, relative=0, cosine=0, kl=1), scale=1)


def say_one_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every decode step say the same token."""
    honest = CausalLM.continued

    def garbage(self, rows, tokens, *more):
        return [
            replace(one, token_ids=[one.token_ids[0], *[7] * (tokens - 1)])
            for one in honest(self, rows, tokens, *more)
        ]

    monkeypatch.setattr(CausalLM, "continued", garbage)


def steps(report: ptdeploy.ParityReport) -> list[tuple[int, int, int]]:
    return [(one.length, one.agreed, one.total) for one in report.greedy if not one.mixed]


@pytest.mark.parametrize("max_batch", [None, 2])
@pytest.mark.parametrize(
    ("max_context", "totals"),
    [(27, {1: 16, 8: 14, 21: 1, 6: 16}), (28, {1: 16, 8: 15, 21: 2, 7: 16}), (14, {1: 8, 8: 1})],
)
def test_each_row_is_continued_as_far_as_it_has_room(compiled, max_batch, max_context, totals):
    options = {"max_context": max_context, "max_batch": max_batch}
    report = ptdeploy.verify(compiled("qwen2", "CAUSAL_LM", options).bundle)
    assert report.passed
    assert steps(report) == [(length, total, total) for length, total in totals.items()]
    base = [(one.length, one.agreed, one.total) for one in report.greedy if one.without_prompt]
    assert base == [(8, totals[8], totals[8])]


@pytest.mark.parametrize("max_context", [27, 14])
def test_a_fault_of_decode_steps_fails_in_a_short_context(compiled, monkeypatch, max_context):
    options = {"max_context": max_context, "max_batch": None}
    bundle = compiled("qwen2", "CAUSAL_LM", options).bundle
    say_one_token(monkeypatch)
    report = ptdeploy.verify(bundle)
    assert all(case.passed for case in report.cases)
    assert not report.passed


def test_a_fault_beside_a_row_that_ends_first_counts_for_those_that_go_on(compiled, tmp_path):
    """Three rows are continued together until one is full, and two go on without a fault."""
    options = {"max_context": 27, "max_batch": None}
    honest = compiled("qwen2", "CAUSAL_LM", options).bundle
    bundle = one_off_in_batches(Path(shutil.copytree(honest, tmp_path / "bundle")), rows=3)
    report = ptdeploy.verify(bundle)
    assert [(one.length, one.total, one.passed) for one in report.greedy if not one.mixed] == [
        (1, 14, False),
        (8, 14, False),
        (21, 1, True),
        (6, 14, False),
    ]


def test_values_that_decode_steps_write_a_little_off_fail_though_all_tokens_agree(
    bundles, tmp_path
):
    honest = bundles("plain")
    assert all(one.steps_apart < 1e-5 for one in ptdeploy.verify(honest).greedy)
    bundle = values_of_steps_off(Path(shutil.copytree(honest, tmp_path / "bundle")), -0.002)
    report = ptdeploy.verify(bundle)
    assert not report.passed
    assert all(case.passed for case in report.cases)
    wrong = [one for one in report.greedy if not one.passed]
    assert any(one.agreed == one.total for one in wrong)
    assert any("finds log probabilities" in one for one in report.failures())


def test_a_token_that_is_none_of_a_near_ties_fails(bundles, monkeypatch):
    """The reference's two best are as good as tied everywhere: that excuses neither another token
    nor what follows the first mismatch."""
    bundle = bundles("fused")
    engine, reference = ptdeploy.load(bundle), load_reference(read_bundle(bundle))
    tied = [replace(one, margins=np.zeros_like(one.margins)) for one in reference.greedy]
    least = min(one.tokens.size for one in tied)
    say_one_token(monkeypatch)
    found = compare_greedy(engine, tied, least, [BOUNDS] * len(tied))
    assert not any(one.passed for one in found)
    assert all(one.behind is not None and one.behind > 0.1 for one in found)


def test_the_other_token_of_a_near_tie_passes(bundles):
    bundle = bundles("fused")
    engine, reference = ptdeploy.load(bundle), load_reference(read_bundle(bundle))
    one = reference.greedy[0]
    other = replace(one, tokens=one.tokens.copy(), margins=np.zeros_like(one.margins))
    other.tokens[3] += 1
    (found,) = compare_greedy(engine, [other], one.tokens.size, [BOUNDS])
    assert (found.agreed, found.behind, found.passed) == (3, 0, True)


@pytest.mark.parametrize(("share", "passed"), [(0.9, True), (1.1, False)])
def test_a_near_tie_is_twice_what_a_logit_may_be_off_in_the_engines_own_prefill_too(
    bundles, monkeypatch, share, passed
):
    """The engine continues with its second best token, which lies `share` of that behind."""
    bundle = bundles("fused")
    engine, reference = ptdeploy.load(bundle), load_reference(read_bundle(bundle))
    one = reference.greedy[0]
    logits = engine.logits([one.ids])[0][-1].astype(np.float64)
    second, best = np.argsort(logits)[-2:]
    behind = float(logits[best] - logits[second])
    probability = float(logits[second] - np.log(np.exp(logits).sum()))
    row = Generated("", [int(second)], "length", [probability])
    monkeypatch.setattr(CausalLM, "continued", lambda *_: [row])
    tied = replace(one, margins=np.zeros_like(one.margins))
    most = msgspec.structs.replace(BOUNDS.thresholds, max_abs=behind / share / 2)
    (found,) = compare_greedy(engine, [tied], 1, [replace(BOUNDS, thresholds=most)])
    assert found.behind == pytest.approx(behind)
    assert found.passed is passed
