"""A quantized engine is held to itself: what batches and decode steps do wrong fails its gate."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from support import native
from support.batches import one_off_in_batches

import ptdeploy
from ptdeploy.bundle import read_bundle
from ptdeploy.cli.main import main
from ptdeploy.parity.own import own_bound
from ptdeploy.parity.reference.store import load_reference
from ptdeploy.runtime.causal import CausalLM
from ptdeploy.runtime.dense_kv import DenseKV
from ptdeploy.runtime.prompt_choice import DEFAULT

INT8 = {"precision": "int8", "quantization": native.LOOSE}


@pytest.fixture
def two(compiled, packed, tmp_path) -> Path:
    """An int8 bundle of a model that writes, with two prompts."""
    made = compiled("qwen2", "CAUSAL_LM", INT8)
    bundle = Path(shutil.copytree(made.bundle, tmp_path / "bundle"))
    ptdeploy.prompt_add(bundle, packed("qwen2", "CAUSAL_LM", options=INT8).path)
    return bundle


def test_an_honest_engine_is_well_within_its_bound(two):
    for report in ptdeploy.verify(two).each():
        assert report.passed
        assert report.own_allowed is not None
        beside = [one for one in report.cases if one.held_to_own]
        assert sum(one.mixed for one in beside) == 4
        assert sum(one.without_prompt for one in beside) == 2
        assert all(one.own_max_abs <= report.own_allowed / 10 for one in beside)
        assert all(one.own_max_abs is None for one in report.cases if not one.held_to_own)
        apart = [one.behind for one in report.greedy if one.agreed < one.total]
        assert all(behind <= report.own_allowed / 10 for behind in apart)


@pytest.mark.parametrize("kind", ["int8", "int8 classifier"])
def test_the_bound_is_eight_root_mean_squares_of_what_the_evaluation_text_loses(bundles, kind):
    bundle = read_bundle(bundles(kind))
    engine, off = ptdeploy.load(bundle.path), []
    for text in load_reference(bundle).evaluation:
        types = None if text.type_ids is None else [text.type_ids]
        (logits,) = engine.logits([text.ids], token_type_ids=types)
        if engine.writes:
            chances = np.exp(logits[:-1].astype(np.float64))
            chances /= chances.sum(-1, keepdims=True)
            chosen = chances[np.arange(text.ids.size - 1), text.ids[1:]]
            off.append(-np.log(chosen) - text.nll)
        else:
            assert text.logits is not None
            off.append(logits - text.logits[0])
    error = np.sqrt(np.mean(np.concatenate(off).astype(np.float64) ** 2))
    report = ptdeploy.verify(bundle.path)
    assert report.quality is not None
    assert report.quality.rms_error == pytest.approx(error, rel=1e-4)
    assert report.own_allowed == pytest.approx(8 * error, rel=1e-4)


def test_the_bound_is_never_less_than_fp32_may_cost():
    assert own_bound(None, 100) == 2 * (1e-5 + 1e-3)


def test_a_row_that_is_wrong_alone_does_not_loosen_the_bound(bundles, monkeypatch):
    honest = CausalLM._row_logits

    def wrong(self, rows, *given):
        found = honest(self, rows, *given)
        by = 1 if len(rows) > 1 else 1000 * (rows[0].size == 34)
        return [logits + np.float32(by) * (np.arange(logits.shape[1]) == 7) for logits in found]

    bundle = bundles("int8")
    allowed = ptdeploy.verify(bundle).own_allowed
    monkeypatch.setattr(CausalLM, "_row_logits", wrong)
    report = ptdeploy.verify(bundle)
    assert report.own_allowed == allowed < 1
    assert not any(one.passed for one in report.cases if one.held_to_own)


def test_a_fault_of_the_late_positions_alone_fails(compiled, tmp_path, monkeypatch):
    """Texts are cut to 128 tokens: what lies behind is seen in the long one alone."""
    bundle = compiled("qwen2", "CAUSAL_LM", INT8, max_position_embeddings=300).bundle
    bounds = tmp_path / "bounds.json"
    bounds.write_text('{"min_agreement": 0.95}')
    assert ptdeploy.verify(bundle, thresholds=bounds).passed
    honest = CausalLM._row_logits

    def late(self, *given):
        found = honest(self, *given)
        for logits in found:
            logits[130:] = np.roll(logits[130:], 1, axis=1)
        return found

    monkeypatch.setattr(CausalLM, "_row_logits", late)
    report = ptdeploy.verify(bundle, thresholds=bounds)
    # What its decode steps find there is right, and no longer what its prefill finds.
    assert [one.split(" 0.")[0].split(" of a ")[0] for one in report.failures()] == [
        "greedy tokens",
        "top-1 agreement",
    ]


def test_engines_whose_weights_are_not_quantized_are_not_held_to_themselves(bundles):
    report = ptdeploy.verify(bundles("fused"))
    assert report.own_allowed is None
    assert {one.own_max_abs for one in report.cases} == {None}
    assert {one.behind for one in report.greedy} == {None}


def test_a_row_that_gets_a_neighbours_prompt_fails(two, monkeypatch):
    honest = CausalLM.logits

    def first_of_all(self, *given, prompt=DEFAULT, **more):
        one = prompt[0] if isinstance(prompt, list) else prompt
        return honest(self, *given, prompt=one, **more)

    monkeypatch.setattr(CausalLM, "logits", first_of_all)
    report = ptdeploy.verify(two)
    wrong = [case for one in report.each() for case in one.cases if not case.passed]
    assert not report.passed
    assert wrong
    assert all(case.mixed for case in wrong)
    assert any("from the engine's own rows alone, allowed" in one for one in report.failures())


def test_a_row_that_is_continued_with_a_neighbours_prompt_fails(two, monkeypatch):
    honest = CausalLM.continued

    def first_of_all(self, rows, tokens, prompt=DEFAULT):
        return honest(self, rows, tokens, prompt[0] if isinstance(prompt, list) else prompt)

    monkeypatch.setattr(CausalLM, "continued", first_of_all)
    report = ptdeploy.verify(two)
    failures = report.failures()
    # Each prompt's row beside one without a prompt, and the other's beside the default's.
    assert [one.startswith("prompt 'other': ") for one in failures] == [False, True, True]
    for failure in failures:
        assert "greedy tokens of a row of " in failure
        assert ", mixed prompts: " in failure
        assert "; given the text and its tokens at once, the engine finds log prob" in failure
        assert " below the likeliest, allowed " in failure


def test_a_decode_step_that_overwrites_the_last_slot_fails(two, monkeypatch):
    honest = DenseKV.decode

    def one_slot_off(self, tokens):
        self.lengths -= 1
        logits = honest(self, tokens)
        self.lengths += 1
        return logits

    monkeypatch.setattr(DenseKV, "decode", one_slot_off)
    report = ptdeploy.verify(two, prompt="default")
    assert all(one.passed for one in report.cases if not (one.without_prompt or one.mixed))
    assert not all(one.passed for one in report.greedy)
    assert not report.passed


def test_the_smallest_failing_input_shows_a_batch_that_is_not_its_rows(bundles, tmp_path, capsys):
    bundle = one_off_in_batches(Path(shutil.copytree(bundles("int8 classifier"), tmp_path / "b")))
    folder = tmp_path / "report"
    report = ptdeploy.verify(bundle, report=folder)
    assert all(one.passed for one in report.cases if not one.held_to_own)
    assert not report.passed
    assert report.failing is not None
    assert len(report.failing.lengths) == 2
    assert main(report.failing.command.split()[1:]) == 1
    assert "from the engine's own rows alone" in capsys.readouterr().out
    for name in ("junit.xml", "report.md", "report.html"):
        assert "what the engine gives for it alone" in (folder / name).read_text() or name[0] == "j"
        assert "own rows alone" in (folder / name).read_text().replace("&#39;", "'")


@pytest.mark.parametrize("prompts", [2, 4])
def test_a_row_that_a_full_batch_leaves_alone_is_mixed_too(compiled, packed, tmp_path, prompts):
    """Of two prompts 4 rows are run three at a time, of four 4 rows are continued so."""
    options = {"max_batch": 3}
    bundle = Path(shutil.copytree(compiled("qwen2", "CAUSAL_LM", options).bundle, tmp_path / "b"))
    pack = packed("qwen2", "CAUSAL_LM", options=options).path
    for name in "abc"[: prompts - 1]:
        ptdeploy.prompt_add(bundle, pack, name=name)
    report = ptdeploy.verify(bundle)
    assert report.passed
    for one in report.each():
        assert {row for case in one.cases if case.mixed for row in case.rows} == {0, 1, 4, 5}
        assert any(found.mixed for found in one.greedy)
