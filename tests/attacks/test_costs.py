"""Cost is bounded by the request, and said before it is spent."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import torch
from attacks.values import with_words
from jinja2.defaults import DEFAULT_FILTERS
from support.damage import edit

import ptdeploy
from ptdeploy.bundle import GenerationOptions
from ptdeploy.runtime import memory, template_limits
from ptdeploy.runtime.chat import ChatTemplate, _tojson, render
from ptdeploy.runtime.kv_layout import KVLayout
from ptdeploy.runtime.sampling import Sampler, distribution
from ptdeploy.runtime.template_growth import SIZERS
from ptdeploy.runtime.tokenizer import library
from ptdeploy.source.checkpoint.tensors import read_tensors

MESSAGES = [{"role": "user", "content": "hi"}]
DOUBLE = "{% set ns = namespace(x='x') %}{% for i in range(99) %}"
COSTLY = {
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}"
    "{% endfor %}",
    "text times a number": "{{ 'x' * 10**9 }}",
    "lists times a number": "{{ ([1] * 10**9)|length }}",
    "text and text, doubled": DOUBLE + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "sums of text, doubled": DOUBLE + "{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
    "blocks, doubled": DOUBLE
    + "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
    "a width": "{{ '%0999999999d' % messages|length }}",
    "a width of format": "{{ '{:>999999999}'.format(messages|length) }}",
    "a method's width": "{{ messages[0].content.ljust(10**9) }}",
    "a filter's width": "{{ messages[0].content|center(10**9) }}",
    "a power": "{{ (messages|length + 1) ** 1000000000 }}",
    "no end of calls": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
}


# Each would be a text of hundreds of millions of characters, or hours of work.
GREAT = {
    "a width among the values": "{{ '%*d' % (10**9, 1) }}",
    "a width of bytes": "{{ '%0999999999d'.encode() % 1 }}",
    "widths that are small one by one": "{{ ('%(a)999999d' * 10000) % {'a': 1} }}",
    "a width behind a percent sign": "{{ '%%(%999999999d' % 1 }}",
    "a key with brackets": "{{ '%(a(b)c)999999999d' % {'a(b)c': 1} }}",
    "widths of format, small one by one": "{{ ('{0:999999}' * 10000).format(1) }}",
    "a width within a field": "{{ '{0:{1}}'.format(1, 10**9) }}",
    "a width as text": "{{ '{0:{1}}'.format(1, '999999999') }}",
    "a width of two fields": "{{ '{0:{1}{1}}'.format(1, 99999) }}",
    "a width in a list": "{{ '{0:{1[0]}}'.format('x', [200000000]) }}",
    "a width in a dictionary": "{{ '{:{w[a]}}'.format('x', w={'a': 200000000}) }}",
    "a width of format_map": "{{ '{x:{w}}'.format_map({'x': 1, 'w': 10**9}) }}",
    "a width of marked text": "{{ ('{:{w[a]}}'|safe).format('x', w={'a': 200000000}) }}",
    "a width of the filter": "{{ '%*d'|format(10**9, 1) }}",
    "a number's bytes": "{{ (5).to_bytes(10**9, 'big') }}",
    "a great number divided": "{% set n = ('f' * 10000000)|int(base=16) %}{{ n // 3 }}",
    "a precision": "{{ 5|round(10000000, 'ceil') }}",
    "lists added one by one": "{{ ([[1]] * 100000)|sum(start=[]) }}",
    "a long date": "{{ strftime_now('%c' * 1000000) }}",
    "what joins, by name": "{{ range(200)|join(d='x' * 1000000) }}",
    "what wraps, by name": "{{ ('a ' * 1000)|wordwrap(1, wrapstring='x' * 500000, "
    "break_on_hyphens=true) }}",
    "what links say": "{{ ('http://a.b ' * 1000)|urlize(target='x' * 1000000) }}",
    "a list as a table": "{{ ('a' * 1000000).translate(['b' * 1000000] * 99) }}",
}


@pytest.mark.parametrize("template", COSTLY.values(), ids=COSTLY)
def test_a_template_that_costs_too_much_is_refused(template):
    with pytest.raises(ptdeploy.InputError, match="template refuses these messages"):
        render(ChatTemplate(template, {}), MESSAGES)


@pytest.mark.parametrize("template", GREAT.values(), ids=GREAT)
def test_what_would_be_great_is_refused_before_it_is_made(template):
    tracemalloc.start()
    try:
        with pytest.raises(ptdeploy.InputError, match=r"it (makes|asks|writes) "):
            render(ChatTemplate(template, {}), MESSAGES)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


# Each round is cheap enough, and there are few enough of them.
AGAIN = {
    "a loop": "{% for i in range(99999) %}{% if 'ab' in a %}{% endif %}{% endfor %}",
    "calls": "{% macro f(n) %}{{ a.count('ab') }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "filters": "{{ ([a] * 99999)|map('replace', 'ab', 'c')|first }}" * 99,
}


@pytest.mark.parametrize("template", AGAIN.values(), ids=AGAIN)
def test_what_is_asked_for_again_and_again_is_stopped(template, monkeypatch):
    monkeypatch.setattr(template_limits, "MOST_SECONDS", 0.2)
    with pytest.raises(ptdeploy.InputError, match="it takes more than"):
        render(ChatTemplate("{% set a = 'a' * 16000000 %}" + template, {}), MESSAGES)


LARGE = 123_456_789


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ v|tojson }}", '{"order": 123456789}'),
        ("{{ v.order }} {{ v.order|string }} {{ v.order|int }}", "123456789 123456789 123456789"),
        ("{% macro m(n) %}{{ n }}{% endmacro %}{{ m(v.order) }}", "123456789"),
        ("{{ [v.order]|join(', ') }}", "123456789"),
        ("{{ nothing|default(v.order) }}", "123456789"),
        ("{{ '%d of %s' % (v.order, v.order) }}", "123456789 of 123456789"),
        ("{{ '%d'|format(v.order) }} {{ '%5d%%' % 7 }}", "123456789     7%"),
        ("{{ '{} {:>12,}'.format(v.order, v.order) }}", "123456789  123,456,789"),
        ("{{ '{:>{w}}'.format(v.order, w=12) }}", "   123456789"),
        ("{{ 'call 123456789: {}'.format('now') }}", "call 123456789: now"),
        ("{{ ('<b>{}</b>'|safe).format('<') }}", "<b>&lt;</b>"),
        ("{{ '{a[b]} {a.c}'.format_map({'a': {'b': 1, 'c': v.order}}) }}", "1 123456789"),
        ("{{ namespace(x=v.order).x // 10 }} {{ v.order|round(-3)|int }}", "12345678 123457000"),
        ("{{ [[1], [v.order]]|sum(start=[])|join }}", "1123456789"),
        ("{{ 'ab'.center(6) }}|{{ 'ab'|center(width=6) }}|{{ '7'.zfill(3) }}", "  ab  |  ab  |007"),
    ],
)
def test_large_numbers_in_a_message_are_no_sizes(template, text):
    assert render(ChatTemplate(template, {}), MESSAGES, v={"order": LARGE}) == text


def test_how_long_a_filter_writes_is_asked_with_the_filters_own_parameters():
    """Else a template would name one that is not looked at."""
    own = {**DEFAULT_FILTERS, "tojson": _tojson}
    for name, sizer in SIZERS.items():
        kind, _, method = name.rpartition(".")
        if name == "str.replace":
            assert len(signature(sizer).parameters) == len(signature(str.replace).parameters)
        elif not kind:
            asked = [*signature(own[name]).parameters.values()]
            asked = [p for p in asked if p.name not in ("environment", "eval_ctx", "context")]
            given = [*signature(sizer).parameters.values()]
            assert [(p.name, p.kind) for p in given] == [(p.name, p.kind) for p in asked], name
            assert [p.default for p in given] == [p.default for p in asked], name
        else:
            assert hasattr({"str": str, "int": int}[kind], method)


def test_what_a_filter_does_not_take_is_refused():
    refused = pytest.raises(ptdeploy.InputError, match="it gives join what that does not take")
    with refused:
        render(ChatTemplate("{{ [1, 2]|join(between='x') }}", {}), MESSAGES)


def test_what_counts_changes_no_text():
    template = (
        "{% for m in messages %}{{ loop.index }}{{ loop.last }}{{ loop.length }}"
        "{{ m.role ~ ':' ~ m.content }}{% else %}none{% endfor %}"
        "{% set x %}a{{ 1 }}{% endset %}{{ x|upper }}{% for m in nothing %}{% endfor %}"
    )
    assert render(ChatTemplate(template, {}), MESSAGES) == "1True1user:hiA1"


@pytest.fixture(scope="module")
def causal(compiled, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("costs") / "bundle"
    return with_words(Path(shutil.copytree(compiled("gpt2", "CAUSAL_LM").bundle, folder)))


def test_a_buffer_that_cannot_fit_is_refused_with_its_size(causal, monkeypatch):
    engine = ptdeploy.load(causal)
    monkeypatch.setattr(memory, "available_memory", lambda: 20 << 20)
    with pytest.raises(ptdeploy.InputError, match=r"would take .* MiB, but 20.0 MiB of memory"):
        engine.generate([[5]] * 3000, 50)
    assert engine.generate([[5]], 3, eos_token_ids=())[0].token_ids


def test_a_model_of_many_slots_is_refused_before_the_buffer_is_made(causal, tmp_path):
    """As a manifest may say: a context of 2^31 - 1 positions is a tebibyte of keys and values."""
    bundle = Path(shutil.copytree(causal, tmp_path / "bundle"))
    edit(bundle, lambda m: m["limits"].update(max_context=2**31 - 1))
    engine = ptdeploy.load(bundle)
    with pytest.raises(ptdeploy.InputError, match=r"would take 1024\.0 GiB, but"):
        engine.session()


def test_a_layout_knows_its_size(causal):
    layout = KVLayout.of(ptdeploy.load(causal).manifest)
    assert layout.bytes(2, 64) == 4 * (2 * 4 * 64 * 8 * 4) + 2 * 101 * 4


def test_memory_is_the_least_that_is_left(monkeypatch):
    monkeypatch.setattr(memory, "_of_machine", lambda: 300)
    monkeypatch.setattr(memory, "_of_group", lambda: 100)
    monkeypatch.setattr(memory, "_of_process", lambda: None)
    assert memory.available_memory() == 100
    monkeypatch.setattr(memory, "_of_group", lambda: -5)
    assert memory.available_memory() == 0


def test_a_text_far_longer_than_what_fits_is_refused_before_it_is_tokenized(causal):
    engine = ptdeploy.load(causal)
    for ask in (engine.generate, engine.encode, engine.session().append):
        with pytest.raises(ptdeploy.InputError, match="characters, but at most 1048576 are read"):
            ask("w5 " * 1_000_000)


def test_stop_strings_are_bounded(causal):
    engine = ptdeploy.load(causal)
    for stop in (["x"] * 65, ["x" * 1025]):
        with pytest.raises(ptdeploy.InputError, match="it may have 64 of up to 1024"):
            engine.generate([[5]], 3, stop=stop)


def test_a_small_file_that_says_it_is_large_is_refused(tmp_path):
    torch.save({"prompt": torch.zeros(1).expand(1 << 32)}, tmp_path / "large.pt")
    with pytest.raises(ptdeploy.CheckpointError, match=r"prompt has shape \[4294967296\]"):
        read_tensors(tmp_path / "large.pt")
    torch.save({"ids": torch.zeros(4).expand(100, 4)}, tmp_path / "small.pt")
    assert read_tensors(tmp_path / "small.pt")["ids"].shape == (100, 4)


class PanicException(BaseException):
    """As pyo3 calls a panic of the Rust side: no Exception."""


def test_a_panic_of_the_rust_side_is_an_error_of_ours():
    refused = pytest.raises(ptdeploy.InputError, match=r"It fails \(index out of bounds\)")
    with refused, library(ptdeploy.InputError, "It fails"):
        raise PanicException("index out of bounds")
    with pytest.raises(KeyboardInterrupt), library(ptdeploy.InputError, "It fails"):
        raise KeyboardInterrupt


LOGITS = np.array([1.0, 3.0, 2.0, 3.0, -1.0], np.float32)


@pytest.mark.parametrize("temperature", [5e-324, 1e-320, 1e-40, 1e-38])
@pytest.mark.parametrize("logits", [LOGITS, -LOGITS - 10, LOGITS * np.float32(1e37)])
def test_a_tiny_temperature_is_greedy(temperature, logits):
    options = GenerationOptions(do_sample=True, temperature=temperature)
    tokens, probabilities = distribution(logits, options)
    likeliest = np.flatnonzero(logits == logits.max())
    assert probabilities.sum() == pytest.approx(1)
    assert tokens[probabilities > 0].tolist() == likeliest.tolist()


@pytest.mark.parametrize("temperature", [1e39, 1e308])
def test_an_enormous_temperature_takes_any_token(temperature):
    options = GenerationOptions(do_sample=True, temperature=temperature)
    assert distribution(LOGITS, options)[1] == pytest.approx([0.2] * 5)


@pytest.mark.parametrize("top_p", [5e-324, 1e-300, 1e-17])
def test_a_tiny_nucleus_holds_a_token(top_p):
    for logits in (LOGITS, np.zeros(7, np.float32)):
        tokens, probabilities = distribution(logits, GenerationOptions(do_sample=True, top_p=top_p))
        assert tokens.size == 1
        assert probabilities.tolist() == [1.0]


@pytest.mark.parametrize("penalty", [5e-324, 1e-40, 1e308])
@pytest.mark.parametrize("sampled", [False, True])
def test_an_extreme_penalty_chooses_a_token(penalty, sampled):
    options = GenerationOptions(do_sample=sampled, repetition_penalty=penalty)
    sampler = Sampler(options, [0, 1, 2, 3, 4], 1)
    assert all(0 <= sampler.next(LOGITS) < 5 for _ in range(9))


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_a_fault_by_name(number):
    logits = LOGITS.copy()
    logits[2] = number
    with pytest.raises(ptdeploy.EngineFault, match="not finite"):
        Sampler(GenerationOptions(), [], None).next(logits)


def test_a_bundle_says_what_its_template_is(causal):
    assert "user hi" in ptdeploy.load(causal).chat_text(MESSAGES)
    assert json.loads((causal / "chat_template.json").read_text())["special_tokens"] == {}
