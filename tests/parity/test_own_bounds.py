"""Bounds of the caller's own: each is held to something, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import native

from ptdeploy.cli.main import main
from ptdeploy.parity.thresholds import Overrides

INT8 = {"precision": "int8", "quantization": native.LOOSE}
WRITER, CLASSIFIER = ("qwen2", "CAUSAL_LM"), ("bert", "SEQ_CLS")


def verify(bundle: Path, folder: Path, *options: str, **bounds: float) -> int:
    file = folder / "thresholds.json"
    file.write_text(json.dumps(bounds))
    return main(["verify", str(bundle), "-q", *options, "--thresholds", str(file)])


@pytest.mark.parametrize("head", ["sigmoid", "regression"])
def test_a_logits_error_is_of_a_head_that_chooses_one_class(compiled, tmp_path, capsys, head):
    bundle = compiled(*CLASSIFIER, {**INT8, "head": head}).bundle
    assert verify(bundle, tmp_path, max_logits_error=1e-9) == 2
    assert f"the head here is a {head}" in capsys.readouterr().err
    assert verify(bundle, tmp_path, min_agreement=0.0) == 0


def test_a_logits_error_is_of_no_model_that_writes(compiled, tmp_path, capsys):
    bundle = compiled(*WRITER, INT8).bundle
    assert verify(bundle, tmp_path, max_logits_error=1e-9) == 2
    assert "max_logits_error is of a classifier, and this model writes" in capsys.readouterr().err
    assert verify(bundle, tmp_path, max_perplexity_ratio=1e-9) == 1
    assert "perplexity" in capsys.readouterr().out


def test_a_perplexity_is_of_no_classifier(compiled, tmp_path, capsys):
    bundle = compiled(*CLASSIFIER, INT8).bundle
    assert verify(bundle, tmp_path, max_perplexity_ratio=1e-9) == 2
    assert "a classifier has no perplexity" in capsys.readouterr().err
    assert verify(bundle, tmp_path, max_logits_error=1e-9) == 1
    assert "logits error" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("quantized", "head", "left_out"),
    [
        (True, "softmax", set()),
        (True, "regression", {"max_logits_error"}),
        (False, "softmax", {"max_perplexity_ratio"}),
    ],
)
def test_the_command_that_reproduces_has_no_bound_that_would_be_refused(quantized, head, left_out):
    bounds = {"max_abs": 0.1, "max_logits_error": 0.2, "max_perplexity_ratio": 2.0}
    given = Overrides(**bounds, min_accuracy=0.5)
    kept = given.without_scores(quantized, head)
    assert kept == {name: value for name, value in bounds.items() if name not in left_out}
