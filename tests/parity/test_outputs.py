"""Outputs of a head that chooses no one class are numbers of their own: each is judged alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support import native, tiny

import ptdeploy
from ptdeploy.runtime.classifier import Classifier

SCALES = (3e4, 0.3)


@pytest.fixture(scope="module", params=["fp32", "int8"])
def two_numbers(request, tmp_path_factory) -> Path:
    """A bundle of a regression whose two outputs are of unlike size."""
    folder = tmp_path_factory.mktemp("outputs")
    torch.manual_seed(0)
    config = tiny.base_config("bert", num_labels=2, problem_type="regression")
    base = tiny._AUTO["SEQ_CLS"].from_config(config).eval()
    with torch.no_grad():
        base.classifier.weight *= torch.tensor(SCALES)[:, None]
    one = tiny.tuned(base, folder, "SEQ_CLS", "P-Tuning, MLP")
    loose = native.LOOSE_CLASSIFIER if request.param == "int8" else None
    return ptdeploy.compile(
        one.adapter,
        target="ort",
        base=str(one.base),
        output=folder / "bundle",
        precision=request.param,
        quantization=loose,
    ).path


def answering(monkeypatch: pytest.MonkeyPatch, change) -> None:
    honest = Classifier.logits

    def changed(self, rows, *given, **more):
        return [change(one, len(rows)) for one in honest(self, rows, *given, **more)]

    monkeypatch.setattr(Classifier, "logits", changed)


def test_an_honest_engine_passes(two_numbers):
    report = ptdeploy.verify(two_numbers)
    assert report.passed
    assert (
        {one.output for one in report.cases} == {one.own_output for one in report.cases} == {None}
    )


def test_a_small_output_that_says_nothing_fails(two_numbers, monkeypatch, tmp_path):
    answering(monkeypatch, lambda one, _: one * np.array([1, 0], np.float32))
    bounds = tmp_path / "bounds.json"
    bounds.write_text('{"min_agreement": 0.5}')
    quantized = ptdeploy.load(two_numbers).manifest.quantization is not None
    report = ptdeploy.verify(two_numbers, thresholds=bounds if quantized else None)
    assert not report.passed
    if quantized:
        (failure,) = report.failures()
        assert failure.startswith("explained variance of the values of output 1 0.")
    else:
        assert not any(one.passed for one in report.cases)
        assert {one.output.output for one in report.cases if one.output} == {1}
        assert "; output 1 is " in report.failures()[0]


def test_a_small_output_that_is_off_beside_other_rows_fails(two_numbers, monkeypatch):
    by = np.array([0, 1], np.float32)
    answering(monkeypatch, lambda one, rows: one + by if rows > 1 else one)
    report = ptdeploy.verify(two_numbers)
    wrong = [one for one in report.cases if not one.passed]
    assert wrong == [one for one in report.cases if one.held_to_own]
    if report.own_allowed is not None:
        assert all(one.own_max_abs < report.own_allowed for one in wrong)
        assert {one.own_output.output for one in wrong if one.own_output} == {1}
