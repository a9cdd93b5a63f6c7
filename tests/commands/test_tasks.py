"""All tasks of a multitask prompt become prompts of one bundle, each with a name."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import kinds

import ptdeploy
from ptdeploy.bundle import read_bundle
from ptdeploy.bundle.precision import FINITE
from ptdeploy.cli.main import main
from ptdeploy.commands.draft import Draft, told
from ptdeploy.errors import CheckpointError, InputError
from ptdeploy.parity.reference import Reference
from ptdeploy.progress import Progress

MULTITASK = "multitask prompt tuning"
NAMES = ["task-0", "task-1", "task-2"]
ROWS = [[5, 9, 30, 4], [7], [8, 3, 12]]
ALL: dict[str, Any] = {"task_id": "all"}


def pefts_logits(model: Any, task_id: int, row: list[int]) -> np.ndarray:
    ids = torch.tensor([row])
    with torch.no_grad():
        found = model(
            input_ids=ids, attention_mask=torch.ones_like(ids), task_ids=torch.tensor([task_id])
        )
    return found.logits[0].numpy()


@pytest.mark.parametrize(("architecture", "task"), [("bert", "SEQ_CLS"), ("qwen2", "CAUSAL_LM")])
def test_every_task_is_a_prompt_that_answers_as_peft_does(compiled, architecture, task):
    one = compiled(architecture, task, ALL, kind=MULTITASK)
    manifest = read_bundle(one.bundle).manifest
    assert list(manifest.prompts) == NAMES
    assert manifest.default_prompt == "task-0"
    for number, prompt in enumerate(manifest.prompts.values()):
        assert prompt.source.task_id == number
        assert prompt.parity is not None
        assert prompt.parity.passed
    assert len({prompt.sha256 for prompt in manifest.prompts.values()}) == kinds.TASKS
    # One batch, each row with the prompt of another task.
    found = ptdeploy.load(one.bundle).logits(ROWS, prompt=NAMES)
    for number, (row, logits) in enumerate(zip(ROWS, found, strict=True)):
        wanted = pefts_logits(one.trained.model, number, row)
        wanted = wanted if task == "SEQ_CLS" else wanted[-len(row) :]
        assert np.abs(logits - wanted).max() < 1e-5
    assert ptdeploy.verify(one.bundle).passed


def test_the_engine_is_that_of_one_task_alone(compiled):
    several = compiled("bert", "SEQ_CLS", ALL, kind=MULTITASK).bundle
    single = compiled("bert", "SEQ_CLS", kinds.options(MULTITASK), kind=MULTITASK).bundle
    for file in ("model.onnx", "model.onnx.data"):
        assert (several / file).read_bytes() == (single / file).read_bytes()
    own, other = several / "prompts/task-1", single / "prompts/default"
    for file in ("prompt.safetensors", "reference.safetensors"):
        assert (own / file).read_bytes() == (other / file).read_bytes()


@pytest.fixture
def bundle(compiled, tmp_path) -> Path:
    """A bundle of one task, to add the others to."""
    one = compiled("bert", "SEQ_CLS", kinds.options(MULTITASK), kind=MULTITASK).bundle
    return Path(shutil.copytree(one, tmp_path / "bundle"))


def checkpoint(compiled) -> tuple[Path, str]:
    trained = compiled("bert", "SEQ_CLS", ALL, kind=MULTITASK).trained
    return trained.adapter, str(trained.base)


def test_all_tasks_are_added_to_a_bundle(compiled, bundle, capsys):
    adapter, base = checkpoint(compiled)
    told = ["--task-id", "all", "--name", "sst2,mnli,task-2"]
    command = ["prompt", "add", str(bundle), str(adapter), "--base", base, *told, "-q"]
    assert main(command) == 0
    assert "prompt    mnli: 5 virtual tokens" in capsys.readouterr().out
    assert list(ptdeploy.prompt_list(bundle)) == ["default", "mnli", "sst2", "task-2"]
    whole = compiled("bert", "SEQ_CLS", ALL, kind=MULTITASK).bundle
    for name, own in (("sst2", "task-0"), ("mnli", "task-1"), ("task-2", "task-2")):
        file = "prompt.safetensors"
        assert (bundle / "prompts" / name / file).read_bytes() == (
            whole / "prompts" / own / file
        ).read_bytes()
    assert main(["inspect", str(bundle)]) == 0
    assert "PEFT adapter, its task 1" in capsys.readouterr().out
    # Again under a pattern: a name that is there is refused unless it may be replaced.
    with pytest.raises(InputError, match="has a prompt 'task-2' already"):
        ptdeploy.prompt_add(bundle, adapter, base=base, **ALL)
    assert list(ptdeploy.prompt_list(bundle)) == ["default", "mnli", "sst2", "task-2"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("one", "names 1 prompts, but the checkpoint has 3 tasks"),
        ("a,b", "names 2 prompts"),
        ("a,b,a", "two of the names are the same"),
        ("a,b,task-{task}", "'task-{task}' is no name of a prompt"),
        ("a,,b", "must be a name for each task"),
        ("../{task}", "must be a name for each task"),
        ("x" * 63 + "{task}{task}", "must be a name for each task"),
    ],
)
def test_names_that_are_not_the_tasks_are_refused(compiled, tmp_path, name, words):
    adapter, base = checkpoint(compiled)
    with pytest.raises(InputError, match=words):
        ptdeploy.compile(
            adapter, target="ort", base=base, output=tmp_path / "out", name=name, **ALL
        )
    assert not (tmp_path / "out").exists()


def test_all_tasks_are_offered_only_where_they_can_be_taken(compiled, tmp_path):
    adapter, base = checkpoint(compiled)
    with pytest.raises(CheckpointError, match="was trained for 3 tasks") as refused:
        ptdeploy.compile(adapter, target="ort", base=base, output=tmp_path / "out")
    assert (
        refused.value.fix
        == "Say which one with task_id N, or put all into a bundle with task_id all."
    )
    with pytest.raises(CheckpointError, match="was trained for 3 tasks") as refused:
        ptdeploy.convert(adapter, to="peft", output=tmp_path / "out")
    assert refused.value.fix == "Say which one with task_id N."


def test_a_prompt_of_one_task_has_not_several(compiled, tmp_path):
    one = compiled("bert", "SEQ_CLS").trained
    with pytest.raises(CheckpointError, match="P_TUNING, which is of one task"):
        ptdeploy.compile(
            one.adapter, target="ort", base=str(one.base), output=tmp_path / "out", **ALL
        )


def test_a_pack_is_one_task(compiled, bundle, tmp_path, capsys):
    adapter, base = checkpoint(compiled)
    bundle = shutil.copytree(bundle, tmp_path / "two words")
    output = tmp_path / "out.prompt"
    told = ["--over", str(bundle), "--base", base, "-o", str(output)]
    assert main(["compile", str(adapter), *told, "--task-id", "all"]) == 2
    said = capsys.readouterr().err
    assert "a pack is one prompt" in said
    assert f"ptdeploy prompt add '{bundle}' {adapter} --task-id all" in said
    assert not output.exists()


@pytest.mark.parametrize("given", ["one", "-", 1.5, True])
def test_a_task_is_a_number_or_all(compiled, tmp_path, given):
    adapter, base = checkpoint(compiled)
    with pytest.raises(InputError, match="task_id is "):
        ptdeploy.compile(adapter, target="ort", base=base, output=tmp_path / "out", task_id=given)


def test_compile_says_which_prompts_it_made(compiled, tmp_path, capsys):
    adapter, base = checkpoint(compiled)
    told = ["--base", base, "-o", str(tmp_path / "b"), "--task-id", "all", "--name", "glue.{task}"]
    assert main(["compile", str(adapter), "--target", "ort", *told]) == 0
    said = capsys.readouterr()
    assert "3 prompts of 5 virtual tokens" in said.out
    assert "glue.0, glue.1, glue.2; glue.0 is the default" in said.out
    assert "the other 2 prompts: max abs" in said.out
    assert "each row alone of prompt 'glue.1'" in said.err


def test_a_note_about_some_of_several_prompts_ends_with_their_names(trained, tmp_path, capsys):
    one = trained(MULTITASK)
    asked = ["--base", str(one.base), "-o", str(tmp_path / "b"), "--task-id", "all", "--json"]
    # Random weights have no clear answers, which a note says.
    quantized = ["--precision", "int8", "--min-agreement", "0.3"]
    capsys.readouterr()
    assert main(["compile", str(one.adapter), "--target", "ort", *asked, *quantized]) == 0
    said = capsys.readouterr()
    (note,) = [found for found in json.loads(said.out)["notes"] if found.startswith("agreement at")]
    assert note.endswith(" could pass it (of prompts 'task-0', 'task-1', 'task-2').")
    assert f"note: {note}\n" in said.err


def test_the_same_note_of_several_prompts_is_said_once(compiled, tmp_path):
    manifest = read_bundle(compiled("bert", "SEQ_CLS").bundle).manifest
    found = (("a", "x."), (None, "y"), ("b", "z."), ("b", "x."), (None, "x."), ("a", "x."))
    draft = Draft(tmp_path, manifest, notes=("of all.",), of_prompts=found)

    def notes(*proven: str | None) -> tuple[str, ...]:
        proved = replace(draft, references=dict.fromkeys(proven, Reference((), (), (), FINITE)))
        return told(proved, (), Progress(quiet=True))

    assert notes("a", "b", None) == (
        "of all.",
        "x (of prompts 'a', 'b' and without a prompt).",
        "y (without a prompt).",
        "z (of prompt 'b').",
    )
    assert notes("a") == ("of all.", "x.", "y", "z.")


def test_inspect_says_for_how_many_tasks_a_checkpoint_is(compiled, capsys):
    adapter, _ = checkpoint(compiled)
    assert main(["inspect", str(adapter)]) == 0
    assert "0 to 2: compile one with --task-id N, or all" in capsys.readouterr().out
