"""A bundle without a prompt is the base model alone, compared with transformers."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from support.damage import edit, leave_out_base, rewrite_reference, shift_reference
from support.faults import Editor, with_prompts_length

import ptdeploy
from ptdeploy.cli.main import main
from ptdeploy.errors import BundleError, InputError
from ptdeploy.runtime.causal import CausalLM
from ptdeploy.runtime.prompt_choice import DEFAULT

ROW = [5, 9, 30, 4]


@pytest.fixture(scope="module")
def alone(compiled, tmp_path_factory) -> Path:
    """Over the base model of the shared bundle of a decoder."""
    base = compiled("qwen2", "CAUSAL_LM").trained.base
    place = tmp_path_factory.mktemp("alone") / "bundle"
    told = ["compile", "--base", str(base), "--task", "CAUSAL_LM", "--target", "ort"]
    assert main([*told, "-o", str(place)]) == 0
    return place


@pytest.fixture
def bundle(alone, tmp_path) -> Path:
    shutil.copytree(alone, tmp_path / "bundle")
    return tmp_path / "bundle"


def test_it_answers_as_transformers_does(alone, compiled):
    base = compiled("qwen2", "CAUSAL_LM").trained.base
    model = transformers.AutoModelForCausalLM.from_pretrained(base).eval()
    with torch.no_grad():
        want = model(input_ids=torch.tensor([ROW])).logits[0].numpy()
    engine = ptdeploy.load(alone)
    assert (engine.default_prompt, dict(engine.prompts)) == (None, {})
    np.testing.assert_allclose(engine.logits([ROW])[0], want, atol=1e-4)
    made = model.generate(torch.tensor([ROW]), max_new_tokens=8, min_new_tokens=8, do_sample=False)
    assert engine.greedy([ROW], 8)[0] == made[0, len(ROW) :].tolist()


def test_its_engine_is_the_one_that_prompts_are_compiled_with(alone, compiled):
    """So packs go from one to the other."""
    with_prompt = ptdeploy.bundle.read_bundle(compiled("qwen2", "CAUSAL_LM").bundle).manifest
    without = ptdeploy.bundle.read_bundle(alone).manifest
    assert ptdeploy.bundle.engine_sha256(with_prompt) == ptdeploy.bundle.engine_sha256(without)
    assert with_prompt.base.weights_sha256 == without.base.weights_sha256


def test_it_says_that_it_has_no_prompt_and_what_it_was_compared_with(alone, capsys):
    assert main(["inspect", str(alone), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["default_prompt"], facts["prompts"]) == (None, {})
    assert facts["base"]["parity"]["passed"]
    assert facts["base"]["parity"]["reference"].startswith("transformers ")
    assert main(["inspect", str(alone)]) == 0
    assert "none, unless a request names one" in capsys.readouterr().out
    report = ptdeploy.verify(alone)
    assert (report.passed, report.prompt, report.prompts) == (True, None, ())


def test_a_prompt_that_is_added_changes_no_request_that_names_none(bundle, packed):
    before = ptdeploy.load(bundle).logits([ROW])[0]
    pack = packed("qwen2", "CAUSAL_LM").path
    ptdeploy.prompt_add(bundle, pack, name="legal")
    engine = ptdeploy.load(bundle)
    np.testing.assert_array_equal(engine.logits([ROW])[0], before)
    assert np.abs(engine.logits([ROW], prompt="legal")[0] - before).max() > 1e-3
    report = ptdeploy.verify(bundle)
    assert [(one.prompt, one.passed) for one in report.each()] == [(None, True), ("legal", True)]


def test_with_another_default_it_is_still_verified_without_a_prompt(bundle, packed):
    ptdeploy.prompt_add(bundle, packed("qwen2", "CAUSAL_LM").path, name="legal")
    ptdeploy.prompt_default(bundle, "legal")
    report = ptdeploy.verify(bundle)
    assert [(one.prompt, one.passed) for one in report.each()] == [("legal", True), (None, True)]


def test_the_failing_input_is_run_with_the_prompt_that_it_is_of(bundle, packed, tmp_path, capsys):
    """Data is about the default prompt, or here the base alone, unless a name is told."""
    ptdeploy.prompt_add(bundle, packed("qwen2", "CAUSAL_LM").path, name="legal")
    for name, told in (("legal", ["--prompt", "legal"]), (None, [])):
        wrong = Path(shutil.copytree(bundle, tmp_path / f"without {name}"))
        shift_reference(wrong, name)
        failing = ptdeploy.verify(wrong, report=tmp_path / "report").failing
        assert failing is not None
        command = shlex.split(failing.command)
        assert command == ["ptdeploy", "verify", str(wrong), "--data", failing.file, *told]
        assert main([*command[1:], "-q"]) == 1
    capsys.readouterr()


def test_its_weights_may_be_quantized(compiled, tmp_path):
    base = str(compiled("qwen2", "CAUSAL_LM").trained.base)
    told = {"base": base, "task": "CAUSAL_LM", "target": "ort", "precision": "int8"}
    # Random weights have no clear answers.
    kept = ptdeploy.QuantizationOptions(min_agreement=0.8)
    quantized = ptdeploy.compile(**told, quantization=kept, output=tmp_path / "bundle")
    report = ptdeploy.verify(quantized.path)
    assert report.passed
    assert report.quality is not None


def test_its_answers_to_data_are_measured_without_a_prompt(alone, tmp_path):
    engine = ptdeploy.load(alone)
    row = {"ids": ROW, "logits": engine.logits([ROW])[0].tolist()}
    (tmp_path / "data.jsonl").write_text(json.dumps(row))
    report = ptdeploy.verify(alone, data=tmp_path / "data.jsonl")
    assert report.passed
    assert report.data is not None
    assert (report.data.name, report.data.rows) == ("perplexity", 1)
    (tmp_path / "data.jsonl").write_text(json.dumps({**row, "label": 1}))
    with pytest.raises(InputError, match="a causal model has no classes"):
        ptdeploy.verify(alone, data=tmp_path / "data.jsonl")


def test_beside_a_default_prompt_no_data_is_about_the_base_alone(bundle, packed, tmp_path):
    ptdeploy.prompt_add(bundle, packed("qwen2", "CAUSAL_LM").path, name="legal")
    ptdeploy.prompt_default(bundle, "legal")
    shift_reference(bundle, None)
    report = ptdeploy.verify(bundle, report=tmp_path / "report")
    assert [(one.prompt, one.passed) for one in report.each()] == [("legal", True), (None, False)]
    assert report.failing is None
    assert not (tmp_path / "report" / "failing.jsonl").exists()


def test_the_last_prompt_may_go(bundle, packed, alone):
    ptdeploy.prompt_add(bundle, packed("qwen2", "CAUSAL_LM").path, name="legal")
    ptdeploy.prompt_remove(bundle, "legal")
    assert (bundle / "manifest.json").read_bytes() == (alone / "manifest.json").read_bytes()


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({}, "There is no checkpoint to compile"),
        ({"base": "b"}, "makes a bundle for CAUSAL_LM; no task is given"),
        ({"base": "b", "task": "SEQ_CLS"}, "makes a bundle for CAUSAL_LM, not for SEQ_CLS"),
        ({"base": "b", "task": "CAUSAL_LM", "name": "x"}, "^name is about a prompt"),
        ({"base": "b", "task": "CAUSAL_LM", "freeze_kv": False}, "freeze_kv=False is about a"),
    ],
)
def test_what_needs_a_checkpoint_is_refused(told, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=reason):
        ptdeploy.compile(target="ort", **told)
    assert list(tmp_path.iterdir()) == []


def test_a_classifier_without_a_default_prompt_is_refused(compiled, tmp_path):
    shutil.copytree(compiled("bert", "SEQ_CLS").bundle, tmp_path / "bundle")
    edit(tmp_path / "bundle", lambda manifest: manifest.update(default_prompt=None))
    with pytest.raises(BundleError, match="default_prompt is null, and a head belongs to a prompt"):
        ptdeploy.load(tmp_path / "bundle")


def test_a_checkpoint_is_of_no_prompt_of_it(alone, compiled):
    adapter = compiled("qwen2", "CAUSAL_LM").trained.adapter
    with pytest.raises(InputError, match="has no default prompt that a checkpoint could be of"):
        ptdeploy.verify(alone, checkpoint=adapter)


def test_the_base_alone_is_the_default_again(bundle, packed, capsys):
    before = ptdeploy.load(bundle).logits([ROW])[0]
    ptdeploy.prompt_add(bundle, packed("qwen2", "CAUSAL_LM").path, name="legal")
    ptdeploy.prompt_default(bundle, "legal")
    assert np.abs(ptdeploy.load(bundle).logits([ROW])[0] - before).max() > 1e-3
    assert main(["prompt", "default", str(bundle), "--none"]) == 0
    assert "none, unless a request names one" in capsys.readouterr().out
    np.testing.assert_array_equal(ptdeploy.load(bundle).logits([ROW])[0], before)
    assert ptdeploy.verify(bundle).passed
    ptdeploy.prompt_default(bundle, "legal")
    assert ptdeploy.prompt_default(bundle, None).manifest.default_prompt is None


def test_the_base_alone_is_no_default_where_nothing_shows_of_it(compiled, tmp_path, capsys):
    shutil.copytree(compiled("qwen2", "CAUSAL_LM").bundle, tmp_path / "b")
    with pytest.raises(InputError, match="base model alone was not proven"):
        ptdeploy.prompt_default(tmp_path / "b", None)
    with pytest.raises(InputError, match=r"^name is None; it must be text"):
        ptdeploy.prompt_remove(tmp_path / "b", None)
    for given in ([], ["default", "--none"]):
        assert main(["prompt", "default", str(tmp_path / "b"), *given]) == 2
        assert "takes a NAME, or --none" in capsys.readouterr().err


def test_a_request_and_a_profile_are_of_the_base_alone_where_told(compiled, capsys):
    one = compiled("qwen2", "CAUSAL_LM")
    engine = ptdeploy.load(one.bundle)
    ids, asked = ",".join(map(str, ROW)), ["--max-new-tokens", "8", "--json"]
    found = {}
    for flags in ((), ("--no-prompt",)):
        assert main(["run", str(one.bundle), "--ids", ids, *asked, *flags]) == 0
        found[flags] = json.loads(capsys.readouterr().out)["result"]["token_ids"]
    for flags, prompt in (((), "default"), (("--no-prompt",), None)):
        assert found[flags] == engine.generate([ROW], 8, prompt=prompt)[0].token_ids
    with pytest.raises(SystemExit):
        main(["run", str(one.bundle), "--ids", ids, "--prompt", "default", "--no-prompt"])
    capsys.readouterr()
    short = ["--rounds", "1", "--tokens", "4", "--json"]
    assert main(["profile", str(one.bundle), *short, "--no-prompt"]) == 0
    assert json.loads(capsys.readouterr().out)["sections"]
    assert ptdeploy.profile(one.bundle, rounds=1, tokens=4, prompt=None).sections


@pytest.mark.parametrize("options", [{}, {"max_batch": 1}])
def test_an_engine_that_is_right_with_its_prompt_alone_fails(compiled, tmp_path, options):
    """Its graph has the prompt's length baked in: without one, positions begin too late."""
    editor = Editor.copy(compiled("qwen2", "CAUSAL_LM", options).bundle, tmp_path / "bundle")
    honest = ptdeploy.verify(tmp_path / "bundle")
    assert honest.passed
    alone = [one.lengths for one in honest.cases if one.name == "base alone"]
    assert alone == [(1,), (8,), (21,)]
    with_prompts_length(editor)
    editor.write()
    report = ptdeploy.verify(tmp_path / "bundle", report=tmp_path / "report")
    wrong = [one for one in report.runs if not one.passed]
    assert wrong
    assert all(one.without_prompt for one in wrong)
    assert report.failures()[0].startswith("base alone, lengths [8]: max abs ")
    # Data is about the prompt.
    assert report.failing is None


def test_a_row_beside_one_without_a_prompt_keeps_its_own(compiled, tmp_path, monkeypatch):
    bundle = compiled("qwen2", "CAUSAL_LM").bundle
    honest = CausalLM.logits

    def first_of_all(self, *given, prompt=DEFAULT, **more):
        one = prompt[0] if isinstance(prompt, list) else prompt
        return honest(self, *given, prompt=one, **more)

    monkeypatch.setattr(CausalLM, "logits", first_of_all)
    (wrong,) = [one for one in ptdeploy.verify(bundle).cases if not one.passed]
    assert (wrong.name, wrong.without_prompt) == ("mixed prompts, left-padded", False)


def test_an_older_reference_is_verified_without_the_base_model(compiled, tmp_path):
    bundle = Path(shutil.copytree(compiled("qwen2", "CAUSAL_LM").bundle, tmp_path / "bundle"))
    assert not any("without a prompt" in note for note in ptdeploy.verify(bundle).notes)
    rewrite_reference(bundle, leave_out_base)
    report = ptdeploy.verify(bundle)
    assert report.passed
    assert not any(one.without_prompt for one in report.runs)
    assert report.notes[-1] == (
        "requests without a prompt were not compared: the reference has no row of the base model "
        "alone."
    )
