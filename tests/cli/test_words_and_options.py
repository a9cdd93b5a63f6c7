"""Words and options in any order, and what a wrong one is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ptdeploy.cli.main import main

OPTIONS = ["--max-new-tokens", "1"]


@pytest.fixture
def bundle(compiled) -> Path:
    return compiled("qwen2", "CAUSAL_LM", tokenizer="characters").bundle


def refused(capsys, *words: str) -> list[str]:
    """The lines that a wrong command line gets on standard error."""
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert bool(said.out) is ("--json" in words)
    return said.err.splitlines()


@pytest.mark.parametrize(
    "words",
    [
        ["BUNDLE", "a b", *OPTIONS, "c"],
        ["BUNDLE", *OPTIONS, "a b", "c"],
        [*OPTIONS, "BUNDLE", "a b", "--", "c"],
        ["BUNDLE", *OPTIONS, "--", "a b", "c"],
        [*OPTIONS, "--", "BUNDLE", "a b", "c"],
    ],
)
def test_texts_may_stand_on_both_sides_of_options(bundle, capsys, words):
    words = [str(bundle) if word == "BUNDLE" else word for word in words]
    assert main(["run", "--json", *words]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["input"] for one in answers] == ["a b", "c"]
    assert all(len(one["result"]["token_ids"]) == 1 for one in answers)


def test_what_follows_two_dashes_is_text(bundle, capsys):
    words = ["d", *OPTIONS, "--json", "--", "--temperature", "--", "-h"]
    assert main(["run", str(bundle), *words]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["input"] for one in answers] == ["d", "--temperature", "--", "-h"]


def test_an_action_of_a_command_takes_its_words_in_any_order(tmp_path, capsys):
    words = ["prompt", "add", str(tmp_path / "b"), "--name", "n", str(tmp_path / "p")]
    assert main(words) == 2
    assert "no such bundle folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "command", "problem"),
    [
        (["run", "B", "--bogus", "3", "t"], "ptdeploy run", "unrecognized arguments: --bogus"),
        (["run", "B", "t", "--bogus=3"], "ptdeploy run", "unrecognized arguments: --bogus=3"),
        (["inspect", "A", "--json", "B"], "ptdeploy inspect", "unrecognized arguments: B"),
        (["inspect", "A", "--", "-B"], "ptdeploy inspect", "unrecognized arguments: -B"),
        (["inspect", "A", "B\nptdeploy"], "ptdeploy inspect", "arguments: B\\nptdeploy"),
        (["run", "--json"], "ptdeploy run", "the following arguments are required: BUNDLE"),
        (["prompt", "list", "B", "--x"], "ptdeploy prompt list", "unrecognized arguments: --x"),
        (["prompt"], "ptdeploy prompt", "the following arguments are required: ACTION"),
        (["compile", "C"], "ptdeploy compile", "one of the arguments --target --over is required"),
        (["run", "B", "--seed", "x"], "ptdeploy run", "argument --seed: invalid int value: 'x'"),
        ([], "ptdeploy", "the following arguments are required: COMMAND"),
        (["--bogus", "doctor"], "ptdeploy", "unrecognized arguments: --bogus"),
    ],
)
def test_a_wrong_command_line_is_told_what_is_wrong_and_where_help_is(
    capsys, words, command, problem
):
    first, second = refused(capsys, *words)
    assert first.startswith(f"{command}: error: ")
    assert first.endswith(problem)
    assert second == f"See {command} --help."
