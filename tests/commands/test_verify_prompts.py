"""verify proves every prompt of a bundle by its own reference, and says which one fails."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from support import damage
from support.faults import Editor

import ptdeploy
from ptdeploy.cli.main import main
from ptdeploy.commands import verify
from ptdeploy.errors import InputError, ParityError
from ptdeploy.runtime.causal import CausalLM
from ptdeploy.runtime.prompt_choice import DEFAULT


@pytest.fixture
def two(compiled, packed, tmp_path) -> Path:
    """A classifier's bundle with two prompts, of 3 and of 5 labels."""
    shutil.copytree(compiled("bert", "SEQ_CLS").bundle, tmp_path / "bundle")
    ptdeploy.prompt_add(tmp_path / "bundle", packed("bert", "SEQ_CLS").path)
    return tmp_path / "bundle"


@pytest.fixture
def wrong(two) -> Path:
    """The same, whose second prompt does not match its reference."""
    damage.shift_reference(two, "other")
    return two


def test_every_prompt_is_held_against_its_own_reference(two):
    report = ptdeploy.verify(two)
    assert report.passed
    assert [one.prompt for one in report.each()] == ["default", "other"]
    assert all(one.cases and one.passed for one in report.each())
    alone = ptdeploy.verify(two, prompt="other")
    assert (alone.prompt, alone.prompts) == ("other", ())
    assert "other prompts were not compared: 'default'" in " ".join(alone.notes)


def test_one_prompt_that_fails_fails_the_bundle_by_its_name(wrong, tmp_path, capsys):
    assert main(["verify", str(wrong), "--report", str(tmp_path / "report")]) == 1
    said = capsys.readouterr().out
    assert "mismatch" in said.split("prompt 'other'")[1]
    assert "mismatch" not in said.split("prompt 'other'")[0]
    assert said.rstrip().splitlines()[-2].strip()
    report = ptdeploy.verify(wrong)
    assert not report.passed
    assert all(one.startswith("prompt 'other': ") for one in report.failures())
    first, second = report.each()
    assert first.passed
    assert not second.passed
    assert main(["verify", str(wrong), "--prompt", "default"]) == 0


def test_every_form_of_the_report_has_every_prompt(wrong, tmp_path, capsys):
    folder = tmp_path / "report"
    main(["verify", str(wrong), "--report", str(folder)])
    capsys.readouterr()
    found = json.loads((folder / "report.json").read_text())
    assert (found["passed"], found["prompts"][0]["passed"]) == (False, False)
    suites = ElementTree.parse(folder / "junit.xml").getroot().findall("testsuite")
    assert [one.get("name") for one in suites] == [
        "ptdeploy parity, prompt 'default'",
        "ptdeploy parity, prompt 'other'",
    ]
    assert [int(one.get("failures") or 0) > 0 for one in suites] == [False, True]
    markdown = (folder / "report.md").read_text()
    assert markdown.index("Prompt 'default'") < markdown.index("Prompt 'other'")
    assert "<h2>Prompts</h2>" in (folder / "report.html").read_text()


def test_the_smallest_failing_input_is_of_the_prompt_that_fails(wrong, tmp_path, capsys):
    folder = tmp_path / "report"
    report = ptdeploy.verify(wrong, report=folder)
    assert report.failing is not None
    assert report.failing.command.endswith("--prompt other")
    told = report.failing.command.split()[1:]
    assert main(told) == 1
    capsys.readouterr()


def test_a_prompt_that_is_not_there_is_named_with_those_that_are(two):
    with pytest.raises(InputError, match="has no prompt 'nobody'; there is 'default', 'other'"):
        ptdeploy.verify(two, prompt="nobody")


@pytest.mark.parametrize(("architecture", "task"), [("bert", "SEQ_CLS"), ("qwen2", "CAUSAL_LM")])
def test_batches_mix_the_prompts(compiled, packed, tmp_path, architecture, task):
    shutil.copytree(compiled(architecture, task).bundle, tmp_path / "bundle")
    ptdeploy.prompt_add(tmp_path / "bundle", packed(architecture, task).path)
    for report in ptdeploy.verify(tmp_path / "bundle").each():
        mixed = [case for case in report.cases if case.mixed and case.rows == (1, 5)]
        assert [case.padding for case in mixed] == ["right", "left"]
        assert all(case.passed and len(case.rows) == 2 for case in mixed)
        continued = [one for one in report.greedy if one.mixed]
        # One beside the other prompt, and two beside one another: with the prompt and without.
        assert len(continued) == (3 if task == "CAUSAL_LM" else 0)
        assert sum(one.without_prompt for one in continued) == (task == "CAUSAL_LM")
        assert all(one.passed and one.total > 1 for one in continued)


def test_a_row_that_gets_a_neighbours_prompt_fails(compiled, packed, tmp_path, monkeypatch):
    """Each prompt by itself holds; only the batch that mixes them shows it."""
    shutil.copytree(compiled("qwen2", "CAUSAL_LM").bundle, tmp_path / "bundle")
    ptdeploy.prompt_add(tmp_path / "bundle", packed("qwen2", "CAUSAL_LM").path)
    honest = CausalLM.logits

    def first_of_all(self, *given, prompt=DEFAULT, **more):
        one = prompt[0] if isinstance(prompt, list) else prompt
        return honest(self, *given, prompt=one, **more)

    monkeypatch.setattr(CausalLM, "logits", first_of_all)
    report = ptdeploy.verify(tmp_path / "bundle")
    wrong = [case for one in report.each() for case in one.cases if not case.passed]
    assert not report.passed
    assert wrong
    assert all(case.mixed for case in wrong)
    assert any("mixed prompts" in one for one in report.failures())


def test_a_graph_that_shows_a_row_its_neighbours_prompt_fails(compiled, packed, tmp_path):
    """Rows with one prompt have the past in common: only batches that mix them, and those of rows
    without one, show it."""
    bundle = Path(shutil.copytree(compiled("qwen2", "CAUSAL_LM").bundle, tmp_path / "bundle"))
    ptdeploy.prompt_add(bundle, packed("qwen2", "CAUSAL_LM").path)
    editor = Editor.copy(compiled("qwen2", "CAUSAL_LM").bundle, tmp_path / "wrong")
    editor.set_constant("program/Where_1", 2, np.zeros((), np.float32))
    editor.write()
    for name in ("model.onnx", "model.onnx.data"):
        damage.replace(bundle, name, (editor.folder / name).read_bytes())
    report = ptdeploy.verify(bundle)
    wrong = [case for one in report.each() for case in one.cases if not case.passed]
    assert any(case.rows == (1, 5) for case in wrong)
    assert all(case.mixed or case.without_prompt for case in wrong)
    with pytest.raises(ParityError, match="base batch 3 left-padded"):
        ptdeploy.prompt_add(editor.folder, packed("qwen2", "CAUSAL_LM").path)


def test_a_row_that_is_continued_with_a_neighbours_prompt_fails(
    compiled, packed, tmp_path, monkeypatch
):
    """Its logits hold, and so does each prompt by itself."""
    shutil.copytree(compiled("qwen2", "CAUSAL_LM").bundle, tmp_path / "bundle")
    ptdeploy.prompt_add(tmp_path / "bundle", packed("qwen2", "CAUSAL_LM").path)
    honest = CausalLM.continued

    def first_of_all(self, rows, tokens, prompt=DEFAULT):
        return honest(self, rows, tokens, prompt[0] if isinstance(prompt, list) else prompt)

    monkeypatch.setattr(CausalLM, "continued", first_of_all)
    report = ptdeploy.verify(tmp_path / "bundle")
    wrong = [
        (one.prompt, found) for one in report.each() for found in one.greedy if not found.passed
    ]
    assert not report.passed
    # Each prompt's row beside one without a prompt, and the other's beside the default's.
    assert [name for name, _ in wrong] == ["default", "other", "other"]
    assert all(found.mixed for _, found in wrong)
    assert report.failures()[-1].startswith("prompt 'other': greedy tokens of a row of ")
    assert all(", mixed prompts: " in failure for failure in report.failures())


def test_the_engine_is_opened_once_for_all_prompts(compiled, packed, tmp_path, monkeypatch):
    opened = []
    honest = verify.open_engine

    def count(*given, **more):
        opened.append(given)
        return honest(*given, **more)

    monkeypatch.setattr(verify, "open_engine", count)
    shutil.copytree(compiled("bert", "SEQ_CLS").bundle, tmp_path / "bundle")
    for name in "abc":
        ptdeploy.prompt_add(tmp_path / "bundle", packed("bert", "SEQ_CLS").path, name=name)
    report = ptdeploy.verify(tmp_path / "bundle")
    assert report.passed
    assert [one.prompt for one in report.each()] == ["default", "a", "b", "c"]
    assert len(opened) == 1


def test_more_prompts_than_stay_in_memory_are_verified(two, packed, monkeypatch):
    monkeypatch.setattr(verify, "_MOST_PROMPTS", 1)
    ptdeploy.prompt_add(two, packed("bert", "SEQ_CLS").path, name="third")
    found = ptdeploy.verify(two)
    assert found.passed
    assert len(found.prompts) == 2
