"""Bounds of the caller's own: each is held to something, or refused."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from support import native

import ptdeploy
from ptdeploy.cli.main import main
from ptdeploy.parity.reports.words import UNJUDGED, threshold_words
from ptdeploy.parity.thresholds import Overrides

INT8 = {"precision": "int8", "quantization": native.LOOSE}
INT8_CLASSIFIER = {"precision": "int8", "quantization": native.LOOSE_CLASSIFIER}
WRITER, CLASSIFIER = ("qwen2", "CAUSAL_LM"), ("bert", "SEQ_CLS")


def verify(bundle: Path, folder: Path, *options: str, **bounds: float) -> int:
    file = folder / "thresholds.json"
    file.write_text(json.dumps(bounds))
    return main(["verify", str(bundle), "-q", *options, "--thresholds", str(file)])


@pytest.mark.parametrize("head", ["sigmoid", "regression"])
def test_a_logits_error_is_of_a_head_that_chooses_one_class(compiled, tmp_path, capsys, head):
    bundle = compiled(*CLASSIFIER, {**INT8_CLASSIFIER, "head": head}).bundle
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
    bundle = compiled(*CLASSIFIER, INT8_CLASSIFIER).bundle
    assert verify(bundle, tmp_path, max_perplexity_ratio=1e-9) == 2
    assert "a classifier has no perplexity" in capsys.readouterr().err
    assert verify(bundle, tmp_path, max_logits_error=1e-9) == 1
    assert "logits error" in capsys.readouterr().out


def test_bounds_on_the_cases_of_quantized_weights_are_in_the_report(compiled, tmp_path, capsys):
    bundle, folder = compiled(*CLASSIFIER, INT8_CLASSIFIER).bundle, tmp_path / "report"
    assert verify(bundle, tmp_path, "--report", str(folder), max_abs=0.0, cosine=0.5) == 1
    out = capsys.readouterr().out
    assert "allowed max abs 0" in out
    assert UNJUDGED not in out
    report = json.loads((folder / "report.json").read_text())
    assert report["largest_allowed"] == 0
    assert report["thresholds"] == {
        "max_abs": 0.0,
        "relative": 0.0,
        "cosine": 0.5,
        "kl": 1e30,
        "min_top1_agreement": 0.0,
    }
    assert "max abs 0 + 0 of the largest logit, cosine 0.5<" in (folder / "report.html").read_text()
    assert report["failing"] is not None
    command = shlex.split(report["failing"]["command"])
    assert main(command[1:]) == 1
    assert "data alone" in capsys.readouterr().out
    assert main(["verify", str(bundle)]) == 0
    assert UNJUDGED in capsys.readouterr().out


def test_a_relative_bound_alone_bounds_nothing_of_quantized_weights(compiled, tmp_path, capsys):
    bundle = compiled(*CLASSIFIER, INT8_CLASSIFIER).bundle
    assert verify(bundle, tmp_path, relative=0.0) == 2
    assert "relative is added to max_abs" in capsys.readouterr().err
    assert verify(bundle, tmp_path, relative=0.0, max_abs=0.0) == 1


def test_a_bound_of_0_is_one_for_locate_too(compiled, tmp_path):
    (tmp_path / "bounds.json").write_text('{"max_abs": 0, "relative": 0}')
    one = compiled(*CLASSIFIER)
    report = ptdeploy.verify(
        one.bundle,
        checkpoint=one.trained.adapter,
        base=str(one.trained.base),
        thresholds=tmp_path / "bounds.json",
        locate=True,
    )
    assert report.located is not None
    assert report.located.cause == (
        "no tensor is a mismatch by itself; the difference grows most here"
    )


def test_a_share_of_the_cases_is_in_the_report_where_logits_are_not_bound(compiled, tmp_path):
    (tmp_path / "bounds.json").write_text('{"min_top1_agreement": 1.0}')
    bundle = compiled(*WRITER, INT8).bundle
    report = ptdeploy.verify(bundle, thresholds=tmp_path / "bounds.json")
    assert report.largest_allowed is None
    assert report.thresholds is not None
    assert threshold_words(report.thresholds) == "top-1 agreement 100.00%"


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
