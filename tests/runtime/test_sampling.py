"""Sampling against transformers' own logits processors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from transformers.generation.logits_process import (
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ptdeploy import InputError
from ptdeploy.bundle import GenerationOptions
from ptdeploy.runtime.request_options import with_options
from ptdeploy.runtime.sampling import Sampler, check, distribution, log_probability

VOCABULARY = 40

logits_rows = arrays(
    np.float32, VOCABULARY, elements=st.integers(-96, 96).map(lambda n: n / 8), unique=True
)


def _theirs(logits: np.ndarray, options: GenerationOptions) -> np.ndarray:
    """Probabilities (vocabulary,) after transformers' processors, in its order."""
    scores = torch.from_numpy(logits.copy())[None]
    ids = torch.zeros(1, 1, dtype=torch.int64)
    chain = [TemperatureLogitsWarper(options.temperature)]
    if options.top_k:
        chain.append(TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        chain.append(TopPLogitsWarper(options.top_p))
    if options.min_p > 0:
        chain.append(MinPLogitsWarper(options.min_p))
    for one in chain:
        scores = one(ids, scores)
    return scores.softmax(-1)[0].double().numpy()


@settings(max_examples=200, deadline=None)
@given(
    logits_rows,
    st.builds(
        GenerationOptions,
        do_sample=st.just(True),
        temperature=st.floats(0.2, 3),
        top_k=st.integers(0, VOCABULARY + 5),
        top_p=st.floats(0.05, 1),
        min_p=st.one_of(st.just(0.0), st.floats(0.001, 1)),
    ),
)
def test_the_distribution_is_transformers_own(logits, options):
    tokens, probabilities = distribution(logits, options)
    ours = np.zeros(VOCABULARY)
    ours[tokens] = probabilities
    theirs = _theirs(logits, options)
    assert probabilities.sum() == pytest.approx(1)
    # At the very edge of a cut, rounding may keep one token more or less: of tiny weight, or the
    # last of those that are kept.
    differs = np.flatnonzero((ours > 0) != (theirs > 0))
    if differs.size:
        assert _at_the_edge(logits, options, differs)
    else:
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


def _at_the_edge(logits, options, differs) -> bool:
    """Whether cuts a rounding error wider and narrower disagree on these tokens as well."""
    kept = []
    for shift in (-1e-5, 1e-5):
        near = GenerationOptions(
            do_sample=True,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=min(1.0, max(1e-6, options.top_p + shift)),
            min_p=min(1.0, max(0.0, options.min_p - shift)) if options.min_p else 0.0,
        )
        kept.append(set(distribution(logits, near)[0].tolist()))
    return set(differs.tolist()) <= kept[0] ^ kept[1] or bool(
        _theirs(logits, options)[differs].max(initial=0) < 1e-6
    )


@settings(max_examples=50, deadline=None)
@given(
    logits_rows,
    st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=8),
    st.floats(0.5, 2),
)
def test_the_penalty_and_the_earliest_end_are_transformers_own(logits, prompt, penalty):
    options = GenerationOptions(
        repetition_penalty=penalty, min_new_tokens=2, eos_token_ids=(3, int(logits.argmax()))
    )
    sampler = Sampler(options, prompt, None)
    ids = torch.tensor([prompt])
    before = logits.copy()
    for _ in range(4):
        scores = RepetitionPenaltyLogitsProcessor(penalty)(ids, torch.from_numpy(logits)[None])
        early = MinNewTokensLengthLogitsProcessor(
            len(prompt), 2, torch.tensor(options.eos_token_ids)
        )
        scores = early(ids, scores)
        token = sampler.next(logits)
        assert scores[0, token] == scores.max()
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    np.testing.assert_array_equal(logits, before)


def test_frequencies_follow_the_distribution():
    logits = np.array([2.0, 1.0, 0.0, -1.0], np.float32)
    options = GenerationOptions(do_sample=True, temperature=1.5)
    sampler = Sampler(options, [], 7)
    drawn = np.bincount([sampler.next(logits) for _ in range(4000)], minlength=4) / 4000
    np.testing.assert_allclose(drawn, distribution(logits, options)[1], atol=0.03)


def test_a_seed_repeats_itself_and_another_does_not():
    logits = np.zeros(VOCABULARY, np.float32)
    options = GenerationOptions(do_sample=True)

    def draw(seed):
        sampler = Sampler(options, [], seed)
        return [sampler.next(logits) for _ in range(20)]

    assert draw(1) == draw(1) != draw(2)


def test_log_probabilities_are_the_models_own():
    logits = np.array([1000.0, 999.0, -5.0], np.float32)
    want = torch.from_numpy(logits).log_softmax(-1)
    assert [log_probability(logits, i) for i in range(3)] == pytest.approx(want.tolist())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("min_p", 2.0),
        ("min_p", float("nan")),
        ("repetition_penalty", 0.0),
        ("max_new_tokens", -1),
        ("min_new_tokens", -1),
        ("eos_token_ids", (-1,)),
        ("eos_token_ids", (5, 100)),
    ],
)
def test_an_option_out_of_range_is_named(name, value):
    with pytest.raises(InputError, match=f"{name} is .* must be"):
        check(GenerationOptions(**{name: value}), 100)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (True, "max_new_tokens is True; it must be a whole number."),
        (1.5, "max_new_tokens is 1.5; it must be a whole number."),
        (-1, "max_new_tokens is -1; it must be at least 0 and at most 2147483647."),
    ],
)
def test_a_count_of_tokens_is_a_whole_number(value, wanted):
    with pytest.raises(InputError) as refused:
        with_options(GenerationOptions(), {"max_new_tokens": value}, 101)
    assert str(refused.value) == wanted
