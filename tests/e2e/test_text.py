"""Text in, text or labels out: the bundle's tokenizer gives what transformers gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import tiny
from transformers import AutoTokenizer

import ptdeploy
from ptdeploy.cli.main import main


@pytest.fixture(scope="module")
def bundles(compiled) -> dict[str, tuple[tiny.Trained, Path]]:
    made = {}
    for architecture, task in (("bert", "SEQ_CLS"), ("bert", "TOKEN_CLS"), ("gpt2", "CAUSAL_LM")):
        one = compiled(architecture, task, tokenizer="characters")
        made[task] = (one.trained, one.bundle)
    return made


def test_text_becomes_the_ids_that_transformers_gives(bundles):
    trained, bundle = bundles["SEQ_CLS"]
    theirs = AutoTokenizer.from_pretrained(trained.base)
    engine = ptdeploy.load(bundle)
    for text in ("hello", "A longer text, of over eight tokens!", "ünknown"):
        ids = theirs(text, padding=False, truncation=False)["input_ids"]
        assert engine.encode(text)[0].ids == ids
        assert engine.classify(text) == engine.classify([ids])
    assert ptdeploy.verify(bundle).texts_agreed == ptdeploy.verify(bundle).texts_total > 20


def test_many_texts_are_classified_in_order_and_as_if_alone(bundles):
    engine = ptdeploy.load(bundles["SEQ_CLS"][1])
    texts = ["a" * n for n in range(1, 21)]
    together = engine.classify(texts, batch_size=7)
    for text, result in zip(texts, together, strict=True):
        (alone,) = engine.classify(text)
        assert result.index == alone.index
        assert result.probabilities == pytest.approx(alone.probabilities, abs=1e-6)


def test_text_that_is_too_long_is_refused_or_cut_on_request(bundles, capsys):
    engine = ptdeploy.load(bundles["SEQ_CLS"][1])
    text = "a" * 58
    with pytest.raises(ptdeploy.InputError, match="60 tokens, but at most 59"):
        engine.classify(text)
    (encoding,) = engine.encode(text, truncate=True)
    assert len(encoding.ids) == 59
    assert encoding.ids[0] == 3, "[CLS] stays"
    assert encoding.ids[-1] == 4, "[SEP] stays"
    assert len(engine.encode("a" * 30)[0].ids) == 32, "cutting leaves no trace"
    assert main(["run", str(bundles["SEQ_CLS"][1]), text]) == 2
    assert main(["run", str(bundles["SEQ_CLS"][1]), text, "--truncate"]) == 0


def test_tokens_carry_their_place_in_the_text(bundles, capsys):
    text = "go, on"
    (tokens,) = ptdeploy.load(bundles["TOKEN_CLS"][1]).tag(text)
    assert [text[token.start : token.end] for token in tokens] == list(text)
    assert main(["run", str(bundles["TOKEN_CLS"][1]), text, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    assert [token["token"] for token in result] == list(text)


def test_streamed_text_is_the_generated_text(bundles, capsys):
    bundle = bundles["CAUSAL_LM"][1]
    engine = ptdeploy.load(bundle)
    (generated,) = engine.generate("once", max_new_tokens=12)
    assert "".join(engine.stream("once", max_new_tokens=12)) == generated.text
    assert main(["run", str(bundle), "once", "--max-new-tokens", "12"]) == 0
    assert capsys.readouterr().out == f"once{generated.text}\n"


def test_chat_ids_are_those_of_transformers_whatever_the_templates_variables(bundles, capsys):
    trained, bundle = bundles["CAUSAL_LM"]
    theirs = AutoTokenizer.from_pretrained(trained.base)
    engine = ptdeploy.load(bundle)
    messages = [{"role": "user", "content": "hello"}]
    for variables in ({}, {"enable_thinking": False}, {"tools": [{"name": "look up"}]}):
        want = theirs.apply_chat_template(messages, add_generation_prompt=True, **variables)
        assert engine.chat_ids(messages, **variables) == want["input_ids"]
    ask = ["run", str(bundle), "hello", "--max-new-tokens", "3", "--json", "--chat"]
    answers = []
    for more in ([], ["--chat-template-kwargs", '{"enable_thinking": false}']):
        assert main([*ask, *more]) == 0
        answers.append(json.loads(capsys.readouterr().out)["result"]["token_ids"])
    asked = [engine.chat_ids(messages), engine.chat_ids(messages, enable_thinking=False)]
    assert answers == [one.token_ids for one in engine.generate(asked, 3)]
    for wrong in ("[1]", "{", '{"messages": [], "self": 1}', '{"tools": 5}'):
        assert main([*ask, "--chat-template-kwargs", wrong]) == 2
    assert main([*ask[:-1], "--chat-template-kwargs", "{}"]) == 2
    assert "needs --chat" in capsys.readouterr().err


def test_texts_from_a_file_are_answered_line_by_line(bundles, tmp_path, capsys):
    (tmp_path / "texts").write_text("one\n\ntwo\n")
    assert (
        main(["run", str(bundles["SEQ_CLS"][1]), "--file", str(tmp_path / "texts"), "--json"]) == 0
    )
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["input"] for answer in answers] == ["one", "", "two"]


def test_empty_text_is_refused(bundles):
    with pytest.raises(ptdeploy.InputError, match="empty"):
        ptdeploy.load(bundles["CAUSAL_LM"][1]).generate("")


def test_another_tokenizer_is_a_mismatch(bundles):
    from dataclasses import replace

    from ptdeploy.bundle import read_bundle
    from ptdeploy.parity.compare import compare
    from ptdeploy.parity.reference.store import load_reference

    bundle = bundles["SEQ_CLS"][1]
    reference = load_reference(read_bundle(bundle))
    other = replace(reference, text_ids=((1, 2), *reference.text_ids[1:]))
    report = compare(ptdeploy.load(bundle), other)
    assert not report.passed
    assert "tokenizer: 1 of " in report.failures()[-1]
