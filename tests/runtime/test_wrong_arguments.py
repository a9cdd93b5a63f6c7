"""What the API says of arguments that it does not take: by the names of its own parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import ptdeploy
from ptdeploy.cli.main import main
from ptdeploy.errors import InputError, PtdeployError

ROW = [5, 6, 7]
Ask = Callable[..., Any]


@pytest.mark.parametrize(
    ("ask", "problem"),
    [
        (lambda _: ptdeploy.load(5), "bundle is 5; it must be a path"),
        (lambda _: ptdeploy.prompt_list(5), "bundle is 5; it must be a path"),
        (lambda b: ptdeploy.load(b, device=""), "device is ''; it must be text, not empty"),
        (lambda b: ptdeploy.verify(b, prompt=""), "prompt is ''; it must be text, not empty"),
        (lambda b: ptdeploy.profile(b, tokens=0), "tokens 0: must be at least 1"),
        (lambda b: ptdeploy.profile(b, batch=0), "batch 0: must be at least 1"),
        (lambda b: ptdeploy.profile(b, rounds=0), "rounds 0: must be at least 1"),
        (lambda b: ptdeploy.profile(b, tokens=5000), "tokens 5000: at most"),
        (lambda b: ptdeploy.verify(b, locate=True), "locate=True compares with PyTorch"),
        (lambda b: ptdeploy.verify(b, data="/nowhere"), "data /nowhere: "),
        (lambda _: ptdeploy.save_full(5, "x"), "peft_model is 5; it must be a peft.PeftModel"),
        (lambda _: ptdeploy.load_full(5, "x"), "base is 5; it must be a model of transformers"),
    ],
)
def test_a_refused_argument_is_named_as_the_parameter(compiled, ask: Ask, problem):
    with pytest.raises(InputError) as refused:
        ask(compiled("qwen2", "CAUSAL_LM").bundle)
    assert refused.value.problem.startswith(problem)
    assert str(refused.value).startswith(problem)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"labels": ""}, "labels is ''; it must be text, not empty"),
        ({"precision": ""}, "precision is ''; it must be text, not empty"),
        ({"head": "foo"}, "head foo: is none of"),
        ({"labels": "a,b"}, "labels names 2 classes, but the head has 3"),
        ({"golden": 1001}, "golden 1001: must be from 1 to 1000"),
        ({"max_batch": 3}, "max_batch is about a KV buffer"),
        ({"max_context": 9}, "max_context is about a KV buffer"),
        ({"tokenizer": "/nowhere/at/all"}, "tokenizer /nowhere/at/all: no such folder"),
        (
            {"precision": "int8", "quantization": ptdeploy.QuantizationOptions(accuracy_level=9)},
            "quantization.accuracy_level",
        ),
    ],
    ids=str,
)
def test_compile_names_its_parameters(compiled, tmp_path, given, problem):
    one = compiled("bert", "SEQ_CLS").trained
    told = {"base": str(one.base), "target": "ort", "output": tmp_path / "b", **given}
    with pytest.raises(PtdeployError) as refused:
        ptdeploy.compile(one.adapter, **told)
    assert refused.value.problem.startswith(problem)


@pytest.mark.parametrize(
    ("ask", "fix"),
    [
        (lambda b, a: ptdeploy.verify(b, locate=True), "Pass the checkpoint with checkpoint."),
        (lambda b, a: ptdeploy.verify(b, graph=True), "Leave graph=True out."),
        (
            lambda b, a: ptdeploy.compile(a, target="ort", output=b),
            "Choose another output, or replace it with force=True.",
        ),
        (
            lambda b, a: ptdeploy.convert(a, to="peft", output=b),
            "Choose another output, or replace it with force=True.",
        ),
        (
            lambda b, a: ptdeploy.compile(target="ort"),
            "Pass one, or for a bundle without a prompt base MODEL and task CAUSAL_LM.",
        ),
        (
            lambda b, a: ptdeploy.compile(a, target="ort", output=b.parent / "c", base="/nowhere"),
            "Pass the folder where it is here, or its hub id, with base.",
        ),
        # A command is a command, whatever called for it.
        (
            lambda b, a: ptdeploy.compile_prompt(a, over="b", task_id="all"),
            "Put all of them into the bundle: ptdeploy prompt add b {adapter} --task-id all",
        ),
    ],
)
def test_how_to_go_on_is_said_in_the_names_of_parameters(compiled, ask: Ask, fix):
    one = compiled("bert", "SEQ_CLS")
    with pytest.raises(PtdeployError) as refused:
        ask(one.bundle, one.trained.adapter)
    assert refused.value.fix == fix.format(adapter=one.trained.adapter)
    assert str(refused.value).endswith(refused.value.fix)


def test_the_command_line_says_how_to_go_on_in_its_options(compiled, capsys):
    one = compiled("bert", "SEQ_CLS")
    bundle, adapter = str(one.bundle), str(one.trained.adapter)
    for words, fix in (
        (["verify", bundle, "--locate"], "Pass the checkpoint with --checkpoint."),
        (
            ["compile", adapter, "--target", "ort", "-o", bundle],
            "Choose another -o, or replace it with --force.",
        ),
    ):
        assert main(words) == 2
        assert capsys.readouterr().err.endswith(f"\n{fix}\n")


def test_the_command_line_names_the_option_that_was_typed(compiled, tmp_path, capsys):
    one = compiled("bert", "SEQ_CLS").trained
    told = ["compile", str(one.adapter), "--base", str(one.base), "--target", "ort"]
    for asked, problem in (
        (["--golden", "1001"], "--golden 1001: must be from 1"),
        (["--max-batch=3"], "--max-batch is about a KV buffer"),
    ):
        assert main([*told, "-o", str(tmp_path / "b"), *asked]) == 2
        assert problem in capsys.readouterr().err


def test_a_prompt_of_another_kind_is_told_what_it_may_be(compiled):
    engine = ptdeploy.load(compiled("qwen2", "CAUSAL_LM").bundle)
    with pytest.raises(InputError, match=r"^prompt is a name, None, or a list of those"):
        engine.generate([ROW], 2, prompt=3)


def test_an_unknown_option_is_refused_with_those_of_the_method(compiled):
    engine = ptdeploy.load(compiled("qwen2", "CAUSAL_LM").bundle)
    session = engine.session()
    session.append(ROW)
    for ask, others in (
        (lambda: engine.generate([ROW], foo=1), "prompt, stop, seed, logprobs, cancel."),
        (lambda: engine.stream(ROW, foo=1), "eos_token_ids, prompt, stop, seed, cancel."),
        (lambda: engine.stream(ROW, logprobs=True), "eos_token_ids, prompt, stop, seed, cancel."),
        (lambda: session.generate(prompt="default"), "eos_token_ids, stop, seed, logprobs, cancel"),
    ):
        with pytest.raises(InputError, match=r"^No option '") as refused:
            ask()
        assert others in refused.value.problem


def test_an_engine_says_which_one_it_is_and_what_it_has(compiled):
    writer = ptdeploy.load(compiled("qwen2", "CAUSAL_LM").bundle)
    classifier = ptdeploy.load(compiled("bert", "SEQ_CLS").bundle)
    for engine, name, problem, fix in (
        (classifier, "generate", "is opened as a Classifier", "Use classify() or regress()."),
        (writer, "classify", "has no classify(), which a Classifier has", "Use generate() or str"),
        (writer, "tag", "which a TokenClassifier has", "Use generate() or stream() or session()"),
    ):
        assert not hasattr(engine, name)
        for kind in (InputError, AttributeError):
            with pytest.raises(kind) as refused:
                getattr(engine, name)
        assert problem in refused.value.problem
        assert refused.value.fix.startswith(fix)
    with pytest.raises(AttributeError, match="'CausalLM' object has no attribute 'answer'"):
        _ = writer.answer


def test_a_long_text_is_told_how_much_room_to_leave(compiled):
    one = compiled("llama", "CAUSAL_LM", tokenizer="metaspace", vocab_size=600)
    engine = ptdeploy.load(one.bundle)
    text, limit = "the cat " * 300, engine.limits.max_sequence
    with pytest.raises(InputError) as refused:
        engine.generate(text, 5)
    assert f"N is at most {limit} less max_new_tokens" in refused.value.fix
    ids = engine.encode(text, truncate=True)[0].ids[: limit - 5]
    assert len(engine.generate([ids], 5, eos_token_ids=())[0].token_ids) == 5
