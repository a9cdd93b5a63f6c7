"""A quantized engine is held to itself: what batches and decode steps do wrong fails its gate."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support import native
from support.batches import one_off_in_batches

import ptdeploy
from ptdeploy.cli.main import main
from ptdeploy.parity.own import own_bound
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
        assert sum(one.mixed for one in beside) == 2
        assert all(one.own_max_abs <= report.own_allowed / 10 for one in beside)
        assert all(one.own_max_abs is None for one in report.cases if not one.held_to_own)
        assert all(one.behind <= report.own_allowed / 10 for one in report.greedy)


def test_the_bound_is_twice_the_largest_difference_of_a_row_alone(two):
    report = ptdeploy.verify(two, prompt="default")
    alone = max(one.max_abs for one in report.cases if len(one.rows) == 1)
    assert report.own_allowed == 2 * alone
    assert own_bound((), None, 100) == 2 * (1e-5 + 1e-3)


def test_a_classifiers_bound_is_of_its_evaluation_texts_too(bundles):
    report = ptdeploy.verify(bundles("int8 classifier"))
    alone = max(one.max_abs for one in report.cases if len(one.rows) == 1)
    assert report.quality is not None
    assert report.own_allowed == 2 * max(alone, report.quality.max_abs)


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
    honest = CausalLM.greedy

    def first_of_all(self, rows, tokens, prompt=DEFAULT):
        return honest(self, rows, tokens, prompt[0] if isinstance(prompt, list) else prompt)

    monkeypatch.setattr(CausalLM, "greedy", first_of_all)
    report = ptdeploy.verify(two)
    (failure,) = report.failures()
    assert failure.startswith("prompt 'other': greedy tokens of a row of ")
    assert "mixed prompts: " in failure
    assert "; given the text and its tokens at once, the engine finds a token " in failure


def test_a_decode_step_that_overwrites_the_last_slot_fails(two, monkeypatch):
    honest = DenseKV.decode

    def one_slot_off(self, tokens):
        self.lengths -= 1
        logits = honest(self, tokens)
        self.lengths += 1
        return logits

    monkeypatch.setattr(DenseKV, "decode", one_slot_off)
    report = ptdeploy.verify(two, prompt="default")
    assert all(one.passed for one in report.cases)
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
        assert {row for case in one.cases if case.mixed for row in case.rows} == {1, 5}
        assert any(found.mixed for found in one.greedy)
