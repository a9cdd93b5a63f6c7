"""Commands that mostly answer at once say what they wait for, to whoever waits at a terminal."""

from __future__ import annotations

import io
import re
import sys

import pytest

import ptdeploy.progress
from ptdeploy.cli.main import main
from ptdeploy.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class AtOnce:
    """A timer whose time is over as it starts."""

    def __init__(self, _: float, say) -> None:
        self._say = say

    def start(self) -> None:
        self._say()

    def cancel(self) -> None: ...

    def join(self) -> None: ...


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(ptdeploy.progress.threading, "Timer", AtOnce)
    monkeypatch.setattr(ptdeploy.progress, "PATIENCE", 0.0)


def test_a_stage_that_is_waited_for_is_said_with_its_end(impatient):
    terminal = Terminal()
    with Progress(stream=terminal).waiting("open the bundle"):
        assert terminal.getvalue() == "  open the bundle ..."
    assert re.fullmatch(r"  open the bundle \.\.\. \d+\.\d s\n", terminal.getvalue())
    failing = Terminal()
    with pytest.raises(KeyError), Progress(stream=failing).waiting("open the bundle"):
        raise KeyError
    assert failing.getvalue() == "  open the bundle ... failed\n"


def test_one_that_ends_in_time_is_not_said():
    terminal = Terminal()
    with Progress(stream=terminal).waiting("open the bundle"):
        pass
    assert terminal.getvalue() == ""


@pytest.mark.parametrize(("quiet", "stream"), [(True, Terminal()), (False, io.StringIO())])
def test_nobody_who_does_not_wait_hears_of_it(impatient, quiet, stream):
    progress = Progress(quiet=quiet, stream=stream)
    with progress.waiting("open the bundle"):
        assert list(progress.counted("abc", 3, "answered")) == ["a", "b", "c"]
    assert stream.getvalue() == ""


def test_answers_are_counted_while_they_go_elsewhere(impatient, monkeypatch):
    terminal = Terminal()
    assert list(Progress(stream=terminal).counted("ab", 2, "answered")) == ["a", "b"]
    said = ["  0 of 2 answered", "  1 of 2 answered", "  2 of 2 answered\n"]
    assert terminal.getvalue().split("\r")[1:] == said
    seen = Terminal()
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert list(Progress(stream=seen).counted("ab", 2, "answered")) == ["a", "b"]
    assert seen.getvalue() == ""


def test_a_long_stage_says_how_far_it_is_to_whoever_waits(impatient):
    terminal, nobody = Terminal(), io.StringIO()
    for stream in (terminal, nobody):
        progress = Progress(stream=stream)
        with progress.stage("run PEFT"):
            assert list(progress.within("ab", "rows")) == ["a", "b"]
    said = ["  run PEFT ...", *(f"  run PEFT ... {n} of 2 rows" for n in (0, 1, 2))]
    assert re.sub(r" \d+\.\d s\n$", "", terminal.getvalue()).split("\r") == said
    assert re.fullmatch(r"  run PEFT \.\.\. \d+\.\d s\n", nobody.getvalue())


def test_compile_says_how_many_texts_peft_has_done(impatient, monkeypatch, compiled, tmp_path):
    trained = compiled("bert", "SEQ_CLS", tokenizer="characters").trained
    monkeypatch.setattr(sys, "stderr", Terminal())
    command = ["compile", str(trained.adapter), "--base", str(trained.base), "--target", "ort"]
    command += ["-o", str(tmp_path / "bundle"), "--precision", "int8", "--min-agreement", "0"]
    assert main(command) == 0
    for stage in ("each row alone", "check parity"):
        said = rf"{stage} \.\.\. (\d+) of \1 evaluation texts"
        assert re.search(said, sys.stderr.getvalue())


def test_run_and_diff_say_what_they_wait_for(impatient, monkeypatch, compiled, tmp_path):
    bundle = str(compiled("bert", "SEQ_CLS").bundle)
    (tmp_path / "texts").write_text("tok5 tok6\ntok7\n")
    run = ["run", bundle, "--file", str(tmp_path / "texts")]
    for command, words in (
        (run, "open the bundle"),
        (run, "2 of 2 answered"),
        (["diff", bundle, bundle], "compare them"),
    ):
        for quiet in ([], ["--quiet"]):
            monkeypatch.setattr(sys, "stdout", io.StringIO())
            monkeypatch.setattr(sys, "stderr", Terminal())
            assert main([*command, *quiet]) in (0, 2)
            assert (words in sys.stderr.getvalue()) is not bool(quiet), command
