"""Every cell of docs/support.md, a kind, a task and an architecture, is in parity with PEFT."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from support import kinds, tiny
from support.alone import peft_alone, random_rows
from support.faults import Editor
from support.support_table import largest, measured, published

import ptdeploy
from ptdeploy.bundle import read_bundle
from ptdeploy.cli.main import main


@pytest.mark.parametrize(("kind", "task", "architecture"), kinds.CELLS)
def test_every_cell_of_the_support_table_is_in_parity_with_peft(shared, kind, task, architecture):
    report = measured(shared, (kind, task, architecture))
    assert report["passed"]
    assert report["reference"].startswith("PEFT ")
    assert 0 < largest(report) < 1e-5
    assert {len(case["rows"]) for case in report["cases"]} > {1}
    assert (report["greedy"] != []) == (task == "CAUSAL_LM")
    for one in report["greedy"]:
        assert one["agreed"] == one["total"] > 0


@pytest.mark.parametrize(("kind", "task", "column"), kinds.OPENVINO)
def test_every_cell_of_openvino_is_in_parity_with_peft(shared, kind, task, column):
    pytest.importorskip("openvino")
    report = measured(shared, (kind, task, column))
    assert report["passed"]
    assert report["reference"].startswith("PEFT ")
    assert 0 < largest(report) < 1e-5
    assert (report["greedy"] != []) == (task == "CAUSAL_LM")
    for one in report["greedy"]:
        assert one["agreed"] == one["total"] > 0


@pytest.mark.parametrize(("kind", "task", "architecture"), kinds.REFUSED)
def test_a_refused_cell_of_the_support_table_is_refused(tmp_path, kind, task, architecture):
    trained = tiny.make(tmp_path, architecture, task, kind=kind)
    told = {"base": str(trained.base), "output": tmp_path / "bundle"}
    with pytest.raises(ptdeploy.BaseModelError, match="takes no keys and values before its text"):
        ptdeploy.compile(trained.adapter, target="ort", **told)
    assert not (tmp_path / "bundle").exists()


def test_the_support_table_has_the_cells_that_are_tested_and_no_others():
    found = dict(published())
    assert sorted(found) == sorted((*kinds.CELLS, *kinds.OPENVINO)), (
        "run: python -m support.support_table, in tests/"
    )
    assert max(found.values()) < 1e-5


def test_an_engine_rounds_no_more_than_peft_does(compiled):
    one = compiled("mistral", "CAUSAL_LM", kind="P-Tuning, MLP")
    rows, model = random_rows(), one.trained.model
    exact = [peft_alone(copy.deepcopy(model).double(), row, "CAUSAL_LM") for row in rows]
    peft = [peft_alone(model, row, "CAUSAL_LM") for row in rows]
    ours = ptdeploy.load(one.bundle).logits(rows)
    rounded = [
        max(float(np.abs(row - true).max()) for row, true in zip(found, exact, strict=True))
        for found in (ours, peft)
    ]
    assert 0 < rounded[0] < 1.5 * rounded[1]


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_inspect_says_what_a_bundles_prompt_is(compiled, kind, capsys):
    bundle = compiled("qwen2", "CAUSAL_LM", kinds.options(kind), kind=kind).bundle
    assert main(["inspect", str(bundle)]) == 0
    text = capsys.readouterr().out
    prompt = read_bundle(bundle).manifest.prompt
    width = "" if kind in kinds.PREFIXES else ", 32 wide"
    assert f"'default' (the default): 5 virtual tokens{width}, frozen from {prompt.kind}" in text
    assert "prefix KV" in text
    assert (prompt.token_dim is None) == (kind in kinds.PREFIXES)


def test_verify_with_the_checkpoint_asks_peft_for_the_same_task(compiled, capsys):
    kind = "multitask prompt tuning"
    one = compiled("bert", "SEQ_CLS", kinds.options(kind), kind=kind)
    told = ["--checkpoint", str(one.trained.adapter), "--base", str(one.trained.base)]
    assert main(["verify", str(one.bundle), *told, "-q"]) == 0
    assert "parity holds" in capsys.readouterr().out


def test_two_tasks_of_one_multitask_prompt_are_two_prompts(compiled):
    kind = "multitask prompt tuning"
    one = compiled("bert", "SEQ_CLS", kinds.options(kind), kind=kind).bundle
    other = compiled("bert", "SEQ_CLS", {"task_id": 2}, kind=kind).bundle
    prompts = [read_bundle(bundle).manifest.prompt for bundle in (one, other)]
    assert [prompt.source.task_id for prompt in prompts] == [kinds.TASK_ID, 2]
    assert prompts[0].sha256 != prompts[1].sha256


LOCATED = [
    ("prefix tuning", "CAUSAL_LM", "qwen2", "model.layers.1.self_attn"),
    ("cartridge", "SEQ_CLS", "gpt2", "transformer.h.1.attn"),
    ("prefix tuning, projected", "TOKEN_CLS", "bert", "bert.encoder.layer.1.attention.self"),
]


@pytest.mark.parametrize(("kind", "task", "architecture", "module"), LOCATED)
def test_a_wrong_prefix_kv_is_named(compiled, tmp_path, kind, task, architecture, module):
    one = compiled(architecture, task, kind=kind)
    told: dict[str, Any] = {"checkpoint": one.trained.adapter, "base": str(one.trained.base)}
    honest = ptdeploy.verify(one.bundle, locate=True, **told)
    assert honest.passed
    assert honest.located is not None
    assert honest.located.module == ""
    assert honest.located.compared > 10
    bundle = Editor.copy(one.bundle, tmp_path / "bundle")
    bundle.prompt["prefix_kv"][1, 0] += np.float32(0.5)
    bundle.write()
    located = ptdeploy.verify(bundle.folder, locate=True, **told).located
    assert located is not None
    assert located.cause == "stale prefix KV: layer 1's keys are not the checkpoint's"
    assert located.module.startswith(module)
