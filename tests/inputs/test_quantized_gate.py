"""A quantized engine's gate can fail, however few classes its evaluation text is put into."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from safetensors.torch import load_file, save_file
from support import tiny
from support.faults import Editor
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import ptdeploy
from ptdeploy.bundle import RequestLimits, read_bundle
from ptdeploy.bundle.precision import quantized
from ptdeploy.bundle.quantization import QuantizationOptions, quantization_for
from ptdeploy.bundle.task import Task
from ptdeploy.errors import InputError
from ptdeploy.parity.cases import Comparison, reference_rows
from ptdeploy.parity.checks import quality_notes, quantization_failures
from ptdeploy.parity.quality import Quality, clear, detectable, logits_error
from ptdeploy.parity.reference.peft import compute_reference
from ptdeploy.parity.reference.prose import evaluation_texts
from ptdeploy.parity.reference.texts import evaluation_text
from ptdeploy.parity.thresholds import thresholds_for
from ptdeploy.source.base import resolve_base
from ptdeploy.source.base_weights import load_model
from ptdeploy.source.checkpoint import read_checkpoint

LIMITS = RequestLimits(max_sequence=59, max_context=64, vocab_size=tiny.VOCABULARY)


@pytest.fixture(scope="module")
def one_class(tmp_path_factory) -> tuple[tiny.Trained, Path]:
    """A classifier that puts every text into its first class, compiled to int8."""
    folder = tmp_path_factory.mktemp("one class")
    trained = tiny.make(folder, "bert", "SEQ_CLS")
    file = trained.adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    (bias,) = (name for name in tensors if name.endswith("classifier.bias"))
    tensors[bias] = torch.tensor([4.0, 0.0, 0.0])
    save_file(tensors, file, metadata={"format": "pt"})
    bundle = ptdeploy.compile(
        trained.adapter,
        target="ort",
        base=str(trained.base),
        output=folder / "bundle",
        precision="int8",
    )
    return trained, bundle.path


def _shuffle(bundle: Path, module: str) -> None:
    """Give a layer weights that have nothing to do with its own, of the same values."""
    editor = Editor(bundle)
    names = [f"{module}/{kind}" for kind in ("MatMulIntegerToFloat", "Gemm")]
    (node,) = (n for n in editor.model.graph.node if n.name in names)
    for tensor in editor.model.graph.initializer:
        if tensor.name == node.input[1]:
            array = numpy_helper.to_array(tensor)
            mixed = np.random.default_rng(7).permutation(array.ravel()).reshape(array.shape)
            tensor.CopyFrom(numpy_helper.from_array(mixed, tensor.name))
    editor.write()


def test_an_honest_engine_passes_and_says_how_much_that_means(one_class):
    report = ptdeploy.verify(one_class[1])
    quality = report.quality
    assert report.passed
    assert quality is not None
    assert quality.positions >= 64
    assert quality.largest_share == 1.0
    assert quality.logits_error is not None
    assert 0 < quality.logits_error < 0.1
    assert any("one class in 100%" in note for note in report.notes)


@pytest.mark.parametrize(
    "module",
    [
        "bert.encoder.layer.0.intermediate.dense",
        "bert.encoder.layer.1.attention.self.value",
        "bert.pooler.dense",
    ],
)
def test_a_layer_of_random_weights_fails_although_every_class_agrees(one_class, tmp_path, module):
    bundle = Path(shutil.copytree(one_class[1], tmp_path / "bundle"))
    _shuffle(bundle, module)
    report = ptdeploy.verify(bundle)
    assert report.quality is not None
    assert report.quality.top1_agreement > 0.97
    assert not report.passed
    (failure,) = report.failures()
    assert failure.startswith("logits error ")
    assert "but at most 0.15 is asked for (--max-logits-error)" in failure


def test_the_reference_shares_no_weights_with_the_model_that_is_exported(one_class):
    trained, _ = one_class
    checkpoint = read_checkpoint(trained.adapter)
    base = resolve_base(checkpoint, str(trained.base))
    exported = load_model(checkpoint, base)
    asked = Comparison((), (), thresholds_for("fp32", None, "softmax"))
    texts = evaluation_text(None, LIMITS, None, Task.SEQ_CLS)
    before = compute_reference(checkpoint, base, LIMITS, asked, texts)
    with torch.no_grad():
        for parameter in exported.parameters():
            parameter.normal_()
    after = compute_reference(checkpoint, base, LIMITS, asked, texts)
    for one, other in zip(before.evaluation, after.evaluation, strict=True):
        assert np.array_equal(one.logits, other.logits)


def test_a_tokenizer_that_makes_no_tokens_is_named():
    nothing = Tokenizer(models.BPE({"\u4e00": 0}, []))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=nothing)
    with pytest.raises(InputError, match="ptdeploy's own evaluation text: no text of it"):
        evaluation_text(tokenizer, LIMITS, None, Task.SEQ_CLS)
    with pytest.raises(InputError, match="--quality-text: no text of it is at least two tokens"):
        evaluation_text(tokenizer, LIMITS, ("one", "other"), Task.SEQ_CLS)


def test_a_classifier_is_evaluated_on_many_texts_of_many_lengths():
    texts = evaluation_texts()
    assert len(set(texts)) == len(texts) >= 64
    assert min(map(len, texts)) < 40 < 150 < max(map(len, texts))
    rows = evaluation_text(None, LIMITS, None, Task.SEQ_CLS).rows
    assert len(rows) >= 64
    assert len({row.ids.size for row in rows}) > 20


@pytest.mark.parametrize("task", list(Task))
def test_the_longest_row_that_is_compared_is_evaluated_too(task):
    limits = RequestLimits(max_sequence=400, max_context=400, vocab_size=tiny.VOCABULARY)
    lengths = [row.ids.size for row in evaluation_text(None, limits, None, task).rows]
    compared = max(row.ids.size for row in reference_rows(limits, ()))
    assert max(lengths) == compared == 400
    late = sum(length > 128 for length in lengths)
    assert late == 1 if task is not Task.SEQ_CLS else late > len(lengths) / 20


@pytest.mark.parametrize(
    ("positions", "asked", "share"),
    [(1, 0.97, 0.95), (12, 0.97, 1 - 0.05 ** (1 / 12)), (64, 1.0, 1 - 0.05 ** (1 / 64))],
)
def test_what_no_wrong_answer_is_allowed_to_hide(positions, asked, share):
    assert detectable(positions, asked) == pytest.approx(share, rel=1e-9)


@given(st.integers(1, 300), st.floats(0, 1))
def test_more_text_and_stricter_bounds_see_smaller_faults(positions, asked):
    share = detectable(positions, asked)
    if share is None:
        assert asked == 0
        return
    stricter = detectable(positions, 1.0)
    assert stricter is not None
    assert 0 < stricter <= share <= 1
    random = np.random.default_rng(positions)
    agreed = 1 - random.binomial(positions, share, 4000) / positions
    assert 0.9 < (agreed < asked).mean() <= 1


def _quality(**changes: object) -> Quality:
    found = {
        "evaluated_on": "the given text",
        "texts": 3,
        "positions": 3,
        "top1_agreement": 1.0,
        "perplexity": None,
        "reference_perplexity": None,
        **changes,
    }
    return Quality(**found)  # type: ignore[arg-type]


def test_a_text_too_short_to_evaluate_on_is_noted_with_what_could_pass():
    (note,) = quality_notes(_quality(detectable=detectable(3, 0.97), largest_share=0.5))
    assert note == (
        "agreement at 3 positions is a coarse measure: a fault that changes 63% of the answers "
        "could pass it."
    )
    (note,) = quality_notes(_quality(detectable=None, largest_share=0.5))
    assert "any number of the answers" in note
    assert quality_notes(_quality(detectable=0.05, largest_share=0.5)) == []


def test_only_answers_that_an_allowed_error_cannot_swap_are_clear():
    logits = np.array([[3, 0, 0], [0, 0.1, 0], [0, 0, 3], [3, 2.9, 0]], np.float32)
    assert clear(logits, 0.15).tolist() == [True, False, True, False]
    assert clear(logits, 0.0).all()
    assert not clear(logits, 1e9).any()
    assert clear(logits[:, :1], 0.15).all()


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_200_clear_answers_show_a_fault_of_a_few_percent(precision):
    share = detectable(200, quantized()[precision].min_class_agreement)
    assert share is not None
    assert share < 0.04


LOGITS = np.random.default_rng(1).normal(size=(80, 4)).astype(np.float32)


def test_the_logits_error_is_of_what_changes_probabilities():
    assert logits_error(LOGITS, LOGITS) == 0
    assert logits_error(LOGITS, LOGITS + 7) == pytest.approx(0, abs=1e-6)
    assert logits_error(LOGITS, 1.1 * LOGITS) == pytest.approx(0.1, rel=0.05)


def test_an_engine_that_heeds_no_text_or_another_has_an_error_of_1_or_more():
    assert logits_error(LOGITS, np.tile(LOGITS.mean(0), (80, 1))) == pytest.approx(1, abs=0.05)
    assert logits_error(LOGITS, LOGITS[::-1]) > 1.2


@pytest.mark.parametrize("bias", [0, 3, 20])
def test_the_bias_of_a_commonest_class_does_not_hide_what_the_text_changes(bias):
    biased = LOGITS + np.array([bias, 0, 0, 0], np.float32)
    other = LOGITS[::-1] + np.array([bias, 0, 0, 0], np.float32)
    assert logits_error(biased, other) > 0.15


def test_numbers_that_are_not_finite_never_pass():
    allowed = quantization_for("int4", QuantizationOptions())
    for bad in (np.nan, np.inf):
        error = logits_error(LOGITS, np.full_like(LOGITS, bad))
        assert quantization_failures(_quality(logits_error=error), allowed)


def test_a_single_score_counts_as_it_is():
    score = LOGITS[:, :1]
    assert logits_error(score, 1.2 * score) == pytest.approx(0.2, rel=0.05)


@pytest.mark.parametrize(
    ("architecture", "task", "head", "asked", "said"),
    [
        ("gpt2", "CAUSAL_LM", None, "max_logits_error", "of a classifier, and this model writes"),
        ("bert", "SEQ_CLS", None, "max_perplexity_ratio", "of a causal model, and this one is a"),
        ("gpt2", "TOKEN_CLS", None, "max_perplexity_ratio", "of a causal model, and this one is a"),
        ("bert", "SEQ_CLS", "sigmoid", "max_logits_error", "and the head here is a sigmoid"),
        ("bert", "SEQ_CLS", "regression", "max_logits_error", "and the head here is a regression"),
    ],
)
def test_a_bound_that_nothing_is_held_to_is_refused(
    tmp_path, architecture, task, head, asked, said
):
    trained = tiny.make(tmp_path, architecture, task)
    with pytest.raises(InputError, match=said) as refused:
        ptdeploy.compile(
            trained.adapter,
            target="ort",
            base=str(trained.base),
            output=tmp_path / "bundle",
            precision="int8",
            head=head,
            quantization=QuantizationOptions(**{asked: 1e-7}),
        )
    assert refused.value.problem.startswith(f"quantization.{asked} is ")


def test_a_causal_model_has_no_bound_of_classifiers(compiled):
    loose = QuantizationOptions(min_agreement=0, max_perplexity_ratio=1e9)
    how = {"precision": "int8", "quantization": loose}
    manifest = read_bundle(compiled("qwen2", "CAUSAL_LM", how).bundle).manifest
    assert manifest.quantization.max_logits_error is None
