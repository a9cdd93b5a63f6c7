"""Whatever value a parameter is given, the call ends with an answer or with an error of ours."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
from attacks.values import VALUES, Door, doors, outcome, with_words

FUNCTIONS = (
    "classifier.",
    "tagger.",
    "causal.",
    "generate(",
    "stream(",
    "session",
    "chat_",
    "compile(",
    "QuantizationOptions(",
    "TrtOptions(",
    "OpenVinoOptions(",
    "verify(",
    "prompt_",
    "compile_prompt(",
    "rebuild(",
    "load(",
    "inspect(",
    "diff(",
    "convert(",
    "profile(",
)


@pytest.fixture(scope="module")
def every_door(compiled, tmp_path_factory) -> list[Door]:
    def worded(architecture: str, task: str) -> Path:
        folder = tmp_path_factory.mktemp("worded") / "bundle"
        return with_words(Path(shutil.copytree(compiled(architecture, task).bundle, folder)))

    return doors(
        worded("bert", "SEQ_CLS"), worded("bert", "TOKEN_CLS"), worded("gpt2", "CAUSAL_LM")
    )


def test_no_door_is_left_out(every_door):
    assert all(door.name.startswith(FUNCTIONS) for door in every_door)
    assert len(every_door) > 130


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_bad_value_is_answered_or_refused(every_door, function, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a value may be the path of a report
    asked = [door for door in every_door if door.name.startswith(function)]
    assert asked
    found = {
        (door.name, name): outcome(door, value())
        for door in asked
        for name, value in VALUES.items()
    }
    wrong = {call: what for call, what in found.items() if what not in ("answered", "refused")}
    assert not wrong
    print(function, dict(Counter(found.values())))
