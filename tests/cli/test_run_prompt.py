"""The command line asks with the prompt that it is told."""

from __future__ import annotations

import json
import shutil

import pytest

import ptdeploy
from ptdeploy.cli.main import main


@pytest.fixture
def bundle(compiled, packed, tmp_path):
    """Of two prompts, the other one's name is `other`."""
    shutil.copytree(compiled("qwen2", "CAUSAL_LM").bundle, tmp_path / "b")
    ptdeploy.prompt_add(tmp_path / "b", packed("qwen2", "CAUSAL_LM").path)
    return tmp_path / "b"


def test_run_asks_with_the_prompt_it_is_told(bundle, capsys):
    engine = ptdeploy.load(bundle)
    for options, prompt in (([], "default"), (["--prompt", "other"], "other")):
        asked = ["run", str(bundle), "--ids", "5,6,7", "--max-new-tokens", "9", "--json"]
        assert main([*asked, *options]) == 0
        (wanted,) = engine.generate([[5, 6, 7]], 9, prompt=prompt)
        assert json.loads(capsys.readouterr().out)["result"]["token_ids"] == wanted.token_ids


@pytest.mark.parametrize("command", [["run", "--file"], ["profile", "--rounds", "1"]])
def test_an_unknown_prompt_is_said_once(bundle, tmp_path, capsys, command):
    (tmp_path / "texts").write_text("5\n6\n")
    first, *rest = command
    rest += [str(tmp_path / "texts")] if first == "run" else []
    assert main([first, str(bundle), "--prompt", "othr", *rest]) == 2
    said = capsys.readouterr()
    assert said.err.count("has no prompt 'othr'; it has 'default', 'other'.") == 1
    assert not said.out


def test_profile_times_the_prompt_it_is_told(bundle, capsys):
    asked = ["profile", str(bundle), "--rounds", "1", "--tokens", "4", "--json", "--quiet"]
    assert main([*asked, "--prompt", "other"]) == 0
    assert json.loads(capsys.readouterr().out)["sections"]
