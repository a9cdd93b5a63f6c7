"""What a refusal says: the range that is taken, what is missing, and how to go on."""

from __future__ import annotations

import errno
import io
import json
import sys
from types import SimpleNamespace

import pytest

import ptdeploy
from ptdeploy.bundle import read_bundle
from ptdeploy.cli import doctor
from ptdeploy.cli.main import main


def refusal(capsys, code: int, *words: str) -> str:
    capsys.readouterr()
    assert main(list(words)) == code
    return capsys.readouterr().err


def test_a_temperature_may_be_0_says_its_range(compiled, capsys):
    bundle = str(compiled("qwen2", "CAUSAL_LM").bundle)
    asked = ["run", bundle, "--ids", "5", "--max-new-tokens", "1", "--temperature"]
    assert refusal(capsys, 2, *asked, "-1") == (
        "ptdeploy: --temperature is -1.0; it must be more than 0, or 0 for the likeliest token.\n"
    )
    assert main([*asked, "0"]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["profile", "b", "--batch", "99999999"],
            "--batch is 99999999; it must be a whole number ",
        ),
        (["profile", "b", "--threads=-1"], "--threads is -1; it must be a whole number from 0 to "),
        (["compile", "c", "--target", "ort", "--max-batch", "9999999999"], "--max-batch is 9999"),
        (["compile", "c", "--target", "ort", "--max-context", "9999999999"], "--max-context is 99"),
        (["compile", "c", "--target", "trt", "--workspace", "9999999999"], "--workspace is 99999"),
        (["compile", "--over", "b"], "--over makes a pack of a checkpoint, and there is none."),
    ],
)
def test_a_value_is_refused_in_the_words_that_were_typed(capsys, words, said):
    message = refusal(capsys, 2, *words)
    assert message.startswith(f"ptdeploy: {said}")
    assert "-9223372036854775808" not in message


def test_a_base_alone_without_a_task_is_told_so(compiled, capsys):
    base = str(compiled("qwen2", "CAUSAL_LM").trained.base)
    said = refusal(capsys, 2, "compile", "--base", base, "--target", "ort")
    assert "makes a bundle for CAUSAL_LM; no --task is given.\nSay --task CAUSAL_LM" in said
    asked = ["compile", "--base", base, "--target", "ort", "--task", "SEQ_CLS"]
    assert "CAUSAL_LM, not for SEQ_CLS." in refusal(capsys, 2, *asked)


def test_empty_input_is_said_to_be_empty(compiled, tmp_path, monkeypatch, capsys):
    bundle = str(compiled("qwen2", "CAUSAL_LM").bundle)
    (tmp_path / "none.txt").touch()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO()))
    fix = "Give texts in UTF-8, one a line.\n"
    said = refusal(capsys, 2, "run", bundle, "--file", "-")
    assert said == f"ptdeploy: --file -: standard input is empty.\n{fix}"
    said = refusal(capsys, 2, "run", bundle, "--file", str(tmp_path / "none.txt"))
    assert said == f"ptdeploy: --file {tmp_path / 'none.txt'}: it is empty.\n{fix}"


def test_a_device_of_another_target_has_a_way_on(compiled, capsys):
    bundle = str(compiled("qwen2", "CAUSAL_LM").bundle)
    assert refusal(capsys, 3, "run", bundle, "--ids", "5", "--device", "gpu") == (
        "ptdeploy: The target ort runs on cpu, cuda, not on 'gpu'.\n"
        "Leave the device out, or compile for a target that runs on gpu: openvino.\n"
    )


def test_a_pack_that_is_not_there_is_none(compiled, tmp_path):
    engine = ptdeploy.load(compiled("qwen2", "CAUSAL_LM").bundle)
    (tmp_path / "file.prompt").touch()
    for name in ("nowhere.prompt", "file.prompt"):
        with pytest.raises(ptdeploy.BundleError) as refused:
            engine.load_prompt(tmp_path / name)
        assert refused.value.problem == f"{tmp_path / name}: no such pack or bundle."


@pytest.mark.parametrize("texts", [["a text"], "a text", [["a", "text"]]])
def test_logits_of_text_say_how_to_encode_it(compiled, texts):
    engine = ptdeploy.load(compiled("qwen2", "CAUSAL_LM").bundle)
    with pytest.raises(ptdeploy.InputError, match="this is text") as refused:
        engine.logits(texts)
    assert refused.value.fix == (
        "Encode texts first: rows = engine.encode(texts); engine.logits([row.ids for row in rows])"
    )


def test_why_a_graph_has_plain_operators_names_no_exception(compiled):
    bundle = read_bundle(compiled("bloom", "CAUSAL_LM").bundle)
    assert bundle.manifest.graph.reason == "its code does not take another attention"


@pytest.mark.parametrize(
    ("error", "code", "problem"),
    [
        ((OSError, errno.EIO, "Input/output error", "a"), 2, "a: Input/output error."),
        ((ValueError, "a\x1b[31m"), 4, "A fault in ptdeploy: ValueError: a\x1b[31m"),
    ],
)
def test_every_error_is_json_where_that_was_asked_for(capsys, monkeypatch, error, code, problem):
    def run(arguments: object) -> int:
        raise error[0](*error[1:])

    monkeypatch.setattr(doctor, "run", run)
    assert main(["doctor", "--json"]) == code
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert (found["error"], found["exit"]) == (problem, code)
    assert ("please report the above" in said.err) is (code == 4)
    assert main(["doctor"]) == code
    assert capsys.readouterr() == ("", said.err)


@pytest.mark.parametrize("words", [["doctor", "--never"], ["nothing"], ["run"], []])
def test_a_wrong_command_line_is_an_error_in_json_too(capsys, words):
    with pytest.raises(SystemExit) as ended:
        main([*words, "--json"])
    assert ended.value.code == 2
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["exit"] == 2
    assert f"error: {found['error']}\n{found['fix']}\n" in said.err


def test_what_stands_behind_two_dashes_asks_for_no_json(capsys):
    with pytest.raises(SystemExit):
        main(["inspect", "--", "--json", "nowhere"])
    said = capsys.readouterr()
    assert said.out == ""
    assert "unrecognized arguments: nowhere" in said.err
