"""verify --checkpoint: another model is refused, another prompt of the same one is compared."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
from support import tiny
from support.damage import edit

import ptdeploy
from ptdeploy.cli.main import main

MEND = "Pass the checkpoint that the bundle was compiled from, and its base model with --base.\n"
_OF_THREE = "a multitask prompt of 3 tasks"


def verify(bundle: Path, adapter: Path, base: Path) -> int:
    return main(["verify", str(bundle), "-q", "--checkpoint", str(adapter), "--base", str(base)])


@pytest.mark.parametrize(
    ("own", "architecture", "changes", "found", "wanted"),
    [
        ("qwen2", "qwen2", {"vocab_size": 301}, "vocabulary 301", "vocabulary 101"),
        ("qwen2", "qwen2", {"vocab_size": 51}, "vocabulary 51", "vocabulary 101"),
        ("qwen2", "gpt2", {}, "of kind gpt2", "of kind qwen2"),
        ("gpt2", "gpt2", {"max_position_embeddings": 24}, "24 positions", "at least 64 positions"),
        ("bert", "bert", {"max_position_embeddings": 32}, "32 positions", "at least 64 positions"),
        ("bert", "bert", {"type_vocab_size": 1}, "0 segments", "2 segments"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(
    compiled, tmp_path, capsys, own, architecture, changes, found, wanted
):
    task = "SEQ_CLS" if own == "bert" else "CAUSAL_LM"
    other = tiny.make(tmp_path, architecture, task, **changes)
    bundle = compiled(own, task).bundle
    capsys.readouterr()
    assert verify(bundle, other.adapter, other.base) == 2
    assert capsys.readouterr().err == (
        f"ptdeploy: --checkpoint {other.adapter}: its base model ({found}) is not the bundle's, "
        f"base ({wanted}).\n{MEND}"
    )


def test_a_head_of_other_classes_is_refused(compiled, packed, capsys):
    one, other = compiled("bert", "SEQ_CLS"), packed("bert", "SEQ_CLS")
    capsys.readouterr()
    assert verify(one.bundle, other.adapter, one.trained.base) == 2
    assert capsys.readouterr().err == (
        f"ptdeploy: --checkpoint {other.adapter}: its head has 5 classes, and that of the bundle's "
        f"prompt 'default' has 3.\n{MEND}"
    )


@pytest.mark.parametrize(
    ("architecture", "of", "task"),
    [
        ("bert", "TOKEN_CLS", "SEQ_CLS"),
        ("bert", "SEQ_CLS", "TOKEN_CLS"),
        ("qwen2", "CAUSAL_LM", "SEQ_CLS"),
        ("qwen2", "SEQ_CLS", "CAUSAL_LM"),
    ],
)
def test_a_checkpoint_of_another_task_is_refused(
    compiled, tmp_path, capsys, architecture, of, task
):
    other = tiny.make(tmp_path, architecture, of)
    bundle = compiled(architecture if task == "CAUSAL_LM" else "bert", task).bundle
    capsys.readouterr()
    assert verify(bundle, other.adapter, other.base) == 2
    assert capsys.readouterr().err == (
        f"ptdeploy: --checkpoint {other.adapter}: was trained for {of}, and the bundle is for "
        f"{task}.\n{MEND}"
    )


def test_a_checkpoint_that_was_compiled_for_another_task_than_it_names_is_taken_as_it_was(
    compiled, tmp_path, capsys
):
    one = compiled("bert", "SEQ_CLS")
    adapter = Path(shutil.copytree(one.trained.adapter, tmp_path / "adapter"))
    config = adapter / "adapter_config.json"
    config.write_text(config.read_text().replace("SEQ_CLS", "TOKEN_CLS"))
    assert verify(one.bundle, adapter, one.trained.base) == 2
    assert "was trained for TOKEN_CLS, and the bundle is for SEQ_CLS" in capsys.readouterr().err
    bundle = Path(shutil.copytree(one.bundle, tmp_path / "bundle"))
    digest = hashlib.sha256(config.read_bytes()).hexdigest()
    edit(
        bundle,
        lambda manifest: manifest["prompts"]["default"]["source"]["files"].update(
            {config.name: digest}
        ),
    )
    assert verify(bundle, adapter, one.trained.base) == 0


@pytest.mark.parametrize(
    ("kind", "task_id", "found", "wanted"),
    [
        ("multitask prompt tuning", None, _OF_THREE, "no multitask prompt"),
        ("multitask prompt tuning", 3, _OF_THREE, "of a multitask prompt's task 3"),
        ("prompt tuning", 1, "no multitask prompt", "of a multitask prompt's task 1"),
    ],
)
def test_a_checkpoint_without_the_prompts_task_is_refused_in_words_that_verify_has_options_for(
    compiled, trained, tmp_path, capsys, kind, task_id, found, wanted
):
    bundle = Path(shutil.copytree(compiled("qwen2", "CAUSAL_LM").bundle, tmp_path / "bundle"))
    edit(
        bundle,
        lambda manifest: manifest["prompts"]["default"]["source"].update(task_id=task_id),
    )
    other = trained(kind)
    capsys.readouterr()
    assert verify(bundle, other.adapter, other.base) == 2
    assert capsys.readouterr().err == (
        f"ptdeploy: --checkpoint {other.adapter}: is {found}, and the bundle's prompt 'default' "
        f"is {wanted}.\n{MEND}"
    )


@pytest.mark.parametrize(("architecture", "task"), [("qwen2", "CAUSAL_LM"), ("bert", "SEQ_CLS")])
def test_the_same_model_in_another_folder_holds(compiled, tmp_path, architecture, task):
    one = compiled(architecture, task)
    moved: Any = [
        shutil.copytree(folder, tmp_path / name)
        for folder, name in ((one.trained.adapter, "mine"), (one.trained.base, "elsewhere"))
    ]
    report = ptdeploy.verify(one.bundle, checkpoint=moved[0], base=str(moved[1]))
    assert report.passed
    assert not [note for note in report.notes if "compiled" in note]


def test_another_prompt_over_the_same_model_is_compared_and_does_not_hold(compiled, packed, capsys):
    one, other = compiled("qwen2", "CAUSAL_LM"), packed("qwen2", "CAUSAL_LM")
    assert verify(one.bundle, other.adapter, one.trained.base) == 1
    assert "PARITY MISMATCH" in capsys.readouterr().out


def test_a_configuration_that_changed_is_noted(compiled, tmp_path):
    one = compiled("qwen2", "CAUSAL_LM")
    base = shutil.copytree(one.trained.base, tmp_path / "base")
    config = base / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 0.5'))
    report = ptdeploy.verify(one.bundle, checkpoint=one.trained.adapter, base=str(base))
    assert not report.passed
    noted = "the base model's configuration is not the one the bundle was compiled with."
    assert noted in report.notes


@pytest.mark.parametrize("option", ["--base", "--adapter", "--tokenizer", "--locate"])
def test_what_is_about_a_checkpoint_is_refused_without_one(compiled, capsys, option):
    given = [option] if option == "--locate" else [option, "x"]
    assert main(["verify", str(compiled("bert", "SEQ_CLS").bundle), "-q", *given]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"ptdeploy: {option} ")
    assert error.endswith("Pass the checkpoint with --checkpoint.\n")
