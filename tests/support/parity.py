"""A parity report of the C++ library's probe against Python's."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ptdeploy.parity.report import GreedyResult, ParityReport


def assert_same(theirs: Any, ours: ParityReport) -> None:
    """Both ran the same cases on the same engine: the numbers are the same."""
    assert [*map(without_tiny_kl, theirs["failures"])] == [*map(without_tiny_kl, ours.failures())]
    assert theirs["passed"] == ours.passed
    assert theirs["reference"] == ours.reference
    assert theirs["largest_allowed"] == ours.largest_allowed
    assert theirs["own_allowed"] == near(ours.own_allowed)
    assert theirs["decode_allowed"] == near(ours.decode_allowed)
    assert [one["name"] for one in theirs["cases"]] == [one.name for one in ours.cases]
    for got, want in zip(theirs["cases"], ours.cases, strict=True):
        assert got["lengths"] == list(want.lengths)
        # A difference of equal logits is exact; sums and exponentials round in another order.
        assert got["max_abs"] == want.max_abs
        assert got["mean_abs"] == near(want.mean_abs)
        assert got["cosine"] == near(want.cosine)
        assert got["kl"] == near(want.kl)
        assert got["top1_agreement"] == want.top1_agreement
        assert got["passed"] == want.passed
        assert got["mixed"] == want.mixed
        assert got["without_prompt"] == want.without_prompt
        assert got["own_max_abs"] == want.own_max_abs
    assert theirs["greedy"] == [*map(_greedy_row, ours.greedy)]
    assert theirs["effects"] == [
        {
            "other": one.other,
            "without_prompt": one.without_prompt,
            "missing": None if one.missing is None else pytest.approx(one.missing, abs=1e-9),
            "error": None if one.error is None else pytest.approx(one.error, abs=1e-9),
            "positions": one.positions,
            "told": one.told,
            "passed": one.passed,
        }
        for one in ours.effects
    ]
    if ours.quality is None:
        assert theirs["quality"] is None
    else:
        assert theirs["quality"] == {
            "evaluated_on": ours.quality.evaluated_on,
            "texts": ours.quality.texts,
            "positions": ours.quality.positions,
            "top1_agreement": ours.quality.top1_agreement,
            "perplexity_ratio": near(ours.quality.perplexity_ratio),
            "logits_error": near(ours.quality.logits_error),
            "largest_share": ours.quality.largest_share,
            "detectable": near(ours.quality.detectable),
            "clear": ours.quality.clear,
            "near_ties": ours.quality.near_ties,
            "rms_error": near(ours.quality.rms_error),
        }


def _greedy_row(one: GreedyResult) -> dict[str, Any]:
    return {
        "length": one.length,
        "agreed": one.agreed,
        "total": one.total,
        "passed": one.passed,
        "mixed": one.mixed,
        "without_prompt": one.without_prompt,
        "behind": one.behind,
        # Log probabilities of steps are of sums in single precision.
        "steps_apart": pytest.approx(one.steps_apart, abs=1e-6),
    }


def without_tiny_kl(failure: str) -> str:
    """Near zero its last digits are rounding's, and those of what steps are off by."""
    words = re.sub(r"KL (-?[\d.]+e-1\d|0\b(?!\.))", "KL of rounding", failure)
    return re.sub(r"log probabilities ([\d.]+e-\d+|0) off", "log probabilities hardly off", words)


def near(number: float | None) -> Any:
    return None if number is None else pytest.approx(number, rel=1e-9, abs=1e-14, nan_ok=True)
