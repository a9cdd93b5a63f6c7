"""Outputs of a head that chooses no one class are numbers of their own: each is judged alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support import native, tiny
from support.faults import Editor, prompts
from support.openvino import needs_bf16

import ptdeploy
from ptdeploy.bundle import read_bundle
from ptdeploy.parity.reference.store import load_reference
from ptdeploy.runtime.classifier import Classifier

SCALES = (3e4, 0.3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tiny.Trained:
    """A regression whose two outputs are of unlike size."""
    torch.manual_seed(0)
    config = tiny.base_config("bert", num_labels=2, problem_type="regression")
    base = tiny._AUTO["SEQ_CLS"].from_config(config).eval()
    with torch.no_grad():
        base.classifier.weight *= torch.tensor(SCALES)[:, None]
    return tiny.tuned(base, tmp_path_factory.mktemp("trained"), "SEQ_CLS", "P-Tuning, MLP")


@pytest.fixture(scope="module", params=["fp32", "int8"])
def two_numbers(request, trained, tmp_path_factory) -> Path:
    loose = native.LOOSE_CLASSIFIER if request.param == "int8" else None
    return ptdeploy.compile(
        trained.adapter,
        target="ort",
        base=str(trained.base),
        output=tmp_path_factory.mktemp("outputs") / "bundle",
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


def test_a_small_output_that_is_off_beside_other_rows_fails(
    trained, two_numbers, monkeypatch, tmp_path
):
    by = np.array([0, 0.2], np.float32)
    answering(monkeypatch, lambda one, rows: one + by if rows > 1 else one)
    report = ptdeploy.verify(
        two_numbers, checkpoint=trained.adapter, base=str(trained.base), report=tmp_path
    )
    wrong = [one for one in report.cases if not one.passed]
    assert wrong == [one for one in report.cases if one.held_to_own]
    if report.own_allowed is not None:
        assert all(one.own_max_abs < report.own_allowed for one in wrong)
        assert {one.own_output.output for one in wrong if one.own_output} == {1}
    assert report.failing is not None
    assert report.failing.lengths == (1, 1)


@pytest.mark.parametrize("two_numbers", ["fp32"], indirect=True)
def test_a_fault_of_a_small_output_is_located(trained, two_numbers, tmp_path):
    """The other output is a hundred thousand times as large: beside it the fault is nothing."""
    editor = Editor.copy(two_numbers, tmp_path / "bundle")
    by = np.array([[1], [1.003]], np.float32)
    prompts("head.classifier.weight", lambda weight: weight * by)(editor, trained)
    editor.write()
    report = ptdeploy.verify(
        editor.folder, checkpoint=trained.adapter, base=str(trained.base), locate=True
    )
    assert not report.passed
    assert report.located is not None
    assert report.located.module == "classifier"
    for case in report.cases:
        assert case.max_abs is not None
        assert case.max_abs < report.largest_allowed


def test_an_honest_engines_outputs_match_by_their_own_size(trained, two_numbers):
    located = ptdeploy.verify(
        two_numbers, checkpoint=trained.adapter, base=str(trained.base), locate=True
    ).located
    assert located is not None
    assert located.cause == "every module agrees"


@pytest.fixture(scope="module")
def small_numbers(tmp_path_factory) -> Path:
    """A regression in bf16 whose values are about 0.5 and 0.05 apart."""
    folder = tmp_path_factory.mktemp("small")
    torch.manual_seed(0)
    config = tiny.base_config("bert", num_labels=1, problem_type="regression")
    base = tiny._AUTO["SEQ_CLS"].from_config(config).eval()
    with torch.no_grad():
        base.classifier.weight *= 0.2 / base.classifier.weight.norm()
        base.classifier.bias += 0.5
    one = tiny.tuned(base, folder, "SEQ_CLS", "P-Tuning, MLP")
    return ptdeploy.compile(
        one.adapter,
        target="openvino",
        base=str(one.base),
        output=folder / "bundle",
        precision="bf16",
    ).path


@needs_bf16
def test_small_values_in_bf16_that_are_the_same_for_every_text_fail(small_numbers, monkeypatch):
    report = ptdeploy.verify(small_numbers)
    assert report.passed
    assert report.largest_allowed == pytest.approx(0.05, abs=0.03)
    values = np.concatenate([one[:, 0] for one in rows_of(small_numbers)])
    assert 0.02 < values.std() < 0.1
    answering(monkeypatch, lambda one, _: np.full_like(one, values.mean()))
    assert not ptdeploy.verify(small_numbers).passed


def rows_of(bundle: Path) -> list[np.ndarray]:
    return [np.atleast_2d(row.logits) for row in load_reference(read_bundle(bundle)).rows]
