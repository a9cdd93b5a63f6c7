"""How commands end as programs: streams that take nothing, readers that have gone, signals."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ptdeploy.cli import doctor
from ptdeploy.cli.main import main

PROGRAM = [sys.executable, "-m", "ptdeploy"]
# Sends its own process a signal when a module is first asked for.
PRESSED = """
import runpy, signal, sys
class Press:
    module, number = sys.argv[1], int(sys.argv[2])
    def find_spec(self, name, *_):
        if name == self.module:
            self.module = None
            signal.raise_signal(self.number)
sys.meta_path.insert(0, Press())
# Shells ignore it for what they start in the background, these tests for instance.
signal.signal(signal.SIGINT, signal.default_int_handler)
del sys.argv[1:3]
runpy.run_module("ptdeploy", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def gone() -> int:
    """The end for writing of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.fixture(params=["full", "gone"])
def unheard(request):
    """A stream that takes nothing."""
    stream = os.open("/dev/full", os.O_WRONLY) if request.param == "full" else gone()
    yield stream
    os.close(stream)


@pytest.mark.parametrize(
    ("words", "code"), [(["inspect", "/nope"], 2), (["nonsense"], 2), (["doctor", "--no"], 2)]
)
def test_an_error_that_nobody_hears_has_its_exit_code(unheard, words, code):
    done = subprocess.run([*PROGRAM, *words], stderr=unheard, check=False)
    assert done.returncode == code


def test_progress_that_nobody_hears_changes_no_exit_code(unheard, compiled):
    words = ["verify", str(compiled("bert", "SEQ_CLS").bundle)]
    done = subprocess.run(
        [*PROGRAM, *words], stderr=unheard, stdout=subprocess.PIPE, text=True, check=False
    )
    assert "parity holds" in done.stdout
    assert done.returncode == 0


@pytest.mark.parametrize(
    "line",
    [
        "--help",
        "--version",
        "--cmake-dir",
        "run --help",
        "compile --help",
        "inspect /nope --json",
        "nonsense --json",
    ],
)
def test_a_reader_who_has_gone_is_141(line):
    writer = gone()
    done = subprocess.run(
        [*PROGRAM, *line.split()], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert done.returncode == 141
    assert "Broken pipe" not in done.stderr
    assert "Traceback" not in done.stderr
    assert ("no such file or folder" in done.stderr) is ("/nope" in line)


def test_a_refusal_behind_answers_that_nobody_reads_is_141(compiled):
    words = ["run", str(compiled("bert", "SEQ_CLS").bundle), "--ids", "5", "--prompt", "no"]
    writer = gone()
    done = subprocess.run(
        [*PROGRAM, *words, "--json"], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert done.returncode == 141
    assert "has no prompt 'no'" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module", ["ptdeploy.cli.main", "argparse", "msgspec"])
def test_a_signal_before_anything_was_read_is_no_traceback(module, number):
    done = subprocess.run(
        [sys.executable, "-c", PRESSED, module, str(int(number)), "inspect", "/nope", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 128 + number
    words = f"ended by {number.name}; nothing half made is left.\n"
    assert done.stderr == f"ptdeploy: {words}"
    assert json.loads(done.stdout) == {
        "error": f"E{words[1:-1]}",
        "fix": "",
        "exit": 128 + number,
    }


def test_an_error_that_a_library_makes_of_ctrl_c_is_130(heeds_ctrl_c, monkeypatch, capsys):
    def run(_: argparse.Namespace) -> int:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            raise AttributeError("nothing there")

    monkeypatch.setattr(doctor, "run", run)
    assert main(["doctor", "--json"]) == 130
    said = capsys.readouterr()
    # What failed may have been the clearing.
    assert said.err == "ptdeploy: ended by SIGINT.\n"
    assert json.loads(said.out) == {"error": "Ended by SIGINT.", "fix": "", "exit": 130}


def test_ctrl_c_with_json_is_an_error_there_too(heeds_ctrl_c, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "run", lambda _: signal.raise_signal(signal.SIGINT))
    assert main(["doctor", "--json"]) == 130
    assert json.loads(capsys.readouterr().out)["exit"] == 130
    assert main(["doctor"]) == 130
    assert capsys.readouterr() == ("", "ptdeploy: ended by SIGINT; nothing half made is left.\n")
