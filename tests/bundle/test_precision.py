"""One table says what a precision is: everything else that names its numbers is made from it."""

from __future__ import annotations

from pathlib import Path

import pytest

import ptdeploy
from ptdeploy.backends import get_backend
from ptdeploy.bundle import Quantization
from ptdeploy.bundle.precision import PRECISIONS, looser, quantized
from ptdeploy.bundle.published_precision import DOCS, with_tables
from ptdeploy.bundle.quantization import QuantizationOptions, quantization_for
from ptdeploy.cli.main import main
from ptdeploy.parity.thresholds import thresholds_for
from ptdeploy.targets import TARGETS, get_target

ROOT = Path(__file__).parents[2]


def test_the_docs_tables_are_what_the_table_gives():
    page = (ROOT / DOCS).read_text("utf-8")
    assert page == with_tables(page), "run: make schema"
    assert with_tables(page.replace("| int4 | 4 | 0.80 |", "| int4 | 4 | 0.10 |")) == page


def test_docs_without_marks_are_refused():
    with pytest.raises(ValueError, match="has no lines"):
        with_tables("# Parity\n")


def test_help_texts_have_the_tables_defaults(capsys):
    with pytest.raises(SystemExit):
        main(["compile", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for bound in ("min_agreement", "max_perplexity_ratio", "max_logits_error"):
        numbers = ", ".join(f"{getattr(one, bound):.2f}" for one in quantized().values())
        assert f"default: {numbers}" in shown


@pytest.mark.parametrize("target", TARGETS)
def test_every_precision_of_a_target_is_in_the_table(target):
    for device in get_backend(target).devices:
        assert set(get_target(target).precisions(device)) <= set(PRECISIONS)


@pytest.mark.parametrize("name", PRECISIONS)
def test_a_precision_is_held_by_thresholds_or_by_the_evaluation_text(name):
    one, quantization = PRECISIONS[name], quantization_for(name, QuantizationOptions())
    assert (one.thresholds is None) == (quantization is not None)
    if one.weights is not None and quantization is not None:
        assert quantization.bits == one.weights.bits
        assert quantization.min_agreement == one.weights.min_agreement


@pytest.mark.parametrize(
    ("head", "of_classes", "of_values"),
    [("softmax", 0.9, 0.7), *((head, 0.7, 0.9) for head in ("sigmoid", "regression"))],
)
def test_each_head_has_its_own_bound_where_there_are_two(head, of_classes, of_values):
    both = Quantization(8, 0, 4, of_values, 9, min_class_agreement=of_classes)
    assert both.of_head(head) == Quantization(8, 0, 4, 0.9, 9)
    one = Quantization(8, 0, 4, 0.8, 9)
    assert one.of_head(head) == one


@pytest.mark.parametrize("name", ["int8", "fp99"])
def test_no_bounds_are_made_up_for_a_precision_without_thresholds(name):
    with pytest.raises(ptdeploy.InputError, match="no thresholds for the precision"):
        thresholds_for(name, None, "softmax")


def test_the_looser_of_two_precisions_is_the_one_that_may_cost_more():
    exact_to_coarse = ("fp32", "tf32", "fp16", "bf16")
    for index, finer in enumerate(exact_to_coarse):
        for coarser in exact_to_coarse[index:]:
            assert looser(finer, coarser) == looser(coarser, finer) == coarser
    # Evaluated on text, or unknown: no thresholds take their place.
    assert looser("int8", "bf16") == "int8"
    assert looser("fp99", "bf16") == "fp99"
