"""--help says what every argument is, and how a command can end."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest

from ptdeploy.cli.main import EXIT_CODES, _parser, main


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from parsers(inner)


def test_every_argument_has_a_help_text():
    named = [
        (parser.prog, action.metavar or action.dest)
        for parser in parsers(_parser())
        for action in parser._actions
        if not isinstance(action, argparse._SubParsersAction) and not action.help
    ]
    assert named == []


def help_of(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_help_says_every_exit_code(capsys):
    said = help_of(capsys)
    assert said.endswith(EXIT_CODES)
    for code in (0, 1, 2, 3, 4, 130, 141):
        assert f" {code} " in EXIT_CODES


@pytest.mark.parametrize("command", ["run", "profile"])
def test_help_says_how_many_threads_there_are(capsys, command):
    said = help_of(capsys, command)
    assert "--threads N of an engine on a CPU; default: PTDEPLOY_THREADS, else one for" in said
