"""A quantized engine without its prompt, or with another, is told from an honest one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import native
from support.damage import REFERENCE, replace, rewrite_reference
from support.exchange import exchange_prompts

import ptdeploy
from ptdeploy.parity.effect import MOST_MISSING, Projection, PromptEffect, effect_notes
from ptdeploy.runtime.causal import CausalLM

PRECISIONS = ["int8", "int4"]
WITHOUT = "what sets logits without a prompt apart from those of 'default'"


def without_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every run, of rows and of decode steps, leave the prompt out."""
    logits, continued = CausalLM.logits, CausalLM.continued

    def rows(self, *given, prompt=None, **more):
        return logits(self, *given, prompt=None, **more)

    def steps(self, rows, tokens, prompt=None):
        return continued(self, rows, tokens, None)

    monkeypatch.setattr(CausalLM, "logits", rows)
    monkeypatch.setattr(CausalLM, "continued", steps)


@pytest.mark.parametrize("kind", [*PRECISIONS, "int8 classifier"])
def test_an_honest_engine_has_its_prompt(bundles, kind):
    report = ptdeploy.verify(bundles(kind))
    assert report.passed
    beside = [] if kind == "int8 classifier" else [("default", True)]
    assert [(one.other, one.without_prompt) for one in report.effects] == [(None, False), *beside]
    for effect in report.effects:
        assert effect.told
        assert abs(effect.missing) < MOST_MISSING / 4


def test_an_engine_whose_weights_are_floats_is_held_to_its_logits_alone(bundles, tmp_path):
    bundle = Path(shutil.copytree(bundles("fused"), tmp_path / "bundle"))
    rewrite_reference(bundle, one_row)
    report = ptdeploy.verify(bundle)
    assert (report.passed, report.effects) == (True, ())
    assert not any("the prompt changes too little" in note for note in report.notes)


def one_row(tensors: dict[str, np.ndarray], metadata: dict[str, Any]) -> None:
    """As a reference of --golden 1, of one token: too few for any effect to be told."""
    for name in [name for name in tensors if name.startswith("rows.") and "rows.000" not in name]:
        del tensors[name]
    metadata |= {"rows": 1, "sources": metadata["sources"][:1]}
    metadata["cases"] = [one for one in metadata["cases"] if set(one["rows"]) == {0}]


@pytest.mark.parametrize("kind", PRECISIONS)
def test_an_engine_that_leaves_its_prompt_out_fails(bundles, monkeypatch, kind):
    """Nothing else asks for it: what this model writes is not held to any agreement."""
    bundle = bundles(kind)
    without_the_prompt(monkeypatch)
    report = ptdeploy.verify(bundle)
    assert all(one.passed for one in (*report.cases, *report.greedy))
    assert [failure.partition("% of ")[2] for failure in report.failures()] == [
        f"{of} is missing, but at most 50% may be"
        for of in ("what the prompt changes in the logits", WITHOUT)
    ]
    assert report.effects[0].missing == pytest.approx(1, abs=0.05)
    assert not report.passed


@pytest.mark.parametrize("kind", PRECISIONS)
def test_an_engine_that_has_its_prompt_where_none_is_asked_for_fails(bundles, monkeypatch, kind):
    """Rows of the base model alone only have to be finite, and as they are beside others."""
    bundle = bundles(kind)
    logits, continued = CausalLM.logits, CausalLM.continued

    def rows(self, *given, prompt=None, **more):
        return logits(self, *given, prompt="default", **more)

    def steps(self, rows, tokens, prompt=None):
        return continued(self, rows, tokens, "default")

    monkeypatch.setattr(CausalLM, "logits", rows)
    monkeypatch.setattr(CausalLM, "continued", steps)
    report = ptdeploy.verify(bundle)
    assert all(one.passed for one in (*report.cases, *report.greedy))
    (failure,) = report.failures()
    assert failure == f"100.0% of {WITHOUT} is missing, but at most 50% may be"
    assert not report.passed


def test_a_bundle_without_the_values_is_verified_without_them(bundles, tmp_path):
    bundle = Path(shutil.copytree(bundles("int4"), tmp_path / "bundle"))
    without_values(bundle)
    report = ptdeploy.verify(bundle)
    assert report.passed
    assert report.effects == ()


def without_values(bundle: Path) -> None:
    """The reference as it was stored before it had them."""
    from safetensors import safe_open

    file = bundle / REFERENCE
    with safe_open(file, "numpy") as opened:
        metadata = opened.metadata()
    kept = {n: a for n, a in load_file(file).items() if not n.endswith("without_prompt")}
    save_file(kept, file, metadata)
    replace(bundle, REFERENCE, file.read_bytes())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_prompts_in_each_others_place_fail(compiled, packed, tmp_path, precision):
    options = {"precision": precision, "quantization": native.LOOSE}
    bundle = Path(shutil.copytree(compiled("qwen2", "CAUSAL_LM", options).bundle, tmp_path / "b"))
    ptdeploy.prompt_add(bundle, packed("qwen2", "CAUSAL_LM", tokens=5, options=options).path)
    honest = ptdeploy.verify(bundle)
    assert honest.passed
    assert [one.other for one in honest.effects] == [None, "default", "other"]
    exchange_prompts(bundle, "default", "other")
    for report in ptdeploy.verify(bundle).each():
        assert not report.passed
        toward = report.effects[-1]
        # Each is as far from the other as it should be, the other way.
        assert toward.missing == pytest.approx(2, abs=0.1)
        assert f"apart from those of {toward.other!r} is missing" in " ".join(report.failures())


@pytest.mark.parametrize(("golden", "positions"), [(1, 1), (2, 2), (5, 2 + 8), (6, 2 + 13)])
def test_of_a_short_reference_each_row_counts_once(compiled, packed, tmp_path, golden, positions):
    options = {"precision": "int8", "quantization": native.LOOSE, "golden": golden}
    bundle = Path(shutil.copytree(compiled("qwen2", "CAUSAL_LM", options).bundle, tmp_path / "b"))
    ptdeploy.prompt_add(bundle, packed("qwen2", "CAUSAL_LM", tokens=5, options=options).path)
    for report in ptdeploy.verify(bundle).each():
        assert report.effects[-1].positions == positions


def test_what_lies_along_the_effect_is_measured_whatever_lies_across():
    random = np.random.default_rng(0)
    want, other = random.normal(0, 1, (2, 200, 50)).astype(np.float32)
    noise = random.normal(0, 3, want.shape).astype(np.float32)
    for share in (0.0, 0.3, 1.0):
        along = Projection()
        along.add(want, want + noise + np.float32(share) * (other - want), other)
        found = along.result("other")
        assert found is not None
        assert found.missing == pytest.approx(share, abs=4 * found.error)
        assert found.told
        assert found.passed == (share < MOST_MISSING)


def test_what_quantization_does_to_two_prompts_alike_does_not_count():
    """Between prompts that differ little it is larger than what sets them apart."""
    random = np.random.default_rng(0)
    want = random.normal(0, 1, (200, 50)).astype(np.float32)
    effect = np.float32(0.1) * random.normal(0, 1, 50).astype(np.float32)
    other, moved = want - effect, -np.float32(0.6) * effect
    for got_other, missing in ((other + moved, 0.0), (want + moved, 1.0)):
        along = Projection()
        along.add(want, want + moved, other, got_other)
        found = along.result("other")
        assert found is not None
        assert found.missing == pytest.approx(missing, abs=1e-3)


def test_a_prompt_without_an_effect_is_said_to_have_none():
    want = np.ones((20, 5), np.float32)
    along = Projection()
    along.add(want, want, want)
    none = along.result(None)
    small = PromptEffect(None, 0.7, 0.2, 100)
    few = PromptEffect("b", 0.9, 0.01, 3)
    assert none == PromptEffect(None, None, None, 20)
    for one in (none, small, few):
        assert one.passed
    assert effect_notes([none, few]) == [
        "the prompt changes too little to tell whether the engine has it.",
        "the prompt changes too little to tell whether the engine has it or 'b' in its place.",
    ]
