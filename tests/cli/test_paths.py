"""What a command takes for a path, and how it shows one."""

from __future__ import annotations

import json

import pytest

from ptdeploy.cli.main import main

EMPTY = [
    ["cpp-new", "", "b"],
    ["cpp-new", "d", ""],
    ["compile", "", "--target", "ort"],
    ["compile", "c", "--over", ""],
    ["compile", "c", "--target", "ort", "-o", ""],
    ["compile", "c", "--target", "ort", "--base", ""],
    ["compile", "c", "--target", "ort", "--tokenizer", ""],
    ["compile", "c", "--target", "ort", "--labels", ""],
    ["compile", "c", "--target", "ort", "--quality-text", ""],
    ["convert", "", "--to", "npy", "-o", "o"],
    ["convert", "c", "--to", "npy", "-o", ""],
    ["diff", "", "b"],
    ["diff", "a", ""],
    ["inspect", ""],
    ["inspect", "--", ""],
    ["profile", ""],
    ["prompt", "add", "", "p"],
    ["prompt", "add", "b", ""],
    ["prompt", "list", ""],
    ["prompt", "remove", "", "n"],
    ["prompt", "default", "", "n"],
    ["rebuild", ""],
    ["rebuild", "b", "-o", ""],
    ["run", "", "text"],
    ["run", "b", "--file", ""],
    ["verify", ""],
    ["verify", "b", "--checkpoint", ""],
    ["verify", "b", "--data", ""],
    ["verify", "b", "--thresholds", ""],
    ["verify", "b", "--report", ""],
]


@pytest.mark.parametrize("words", EMPTY, ids=" ".join)
def test_an_empty_path_is_not_the_current_folder(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert ": is empty, and must be a path\n" in capsys.readouterr().err


def test_a_new_project_shows_its_paths_on_lines_of_their_own(compiled, tmp_path, capsys):
    link, folder = tmp_path / "link", tmp_path / "a\nwrote     all"
    link.symlink_to(compiled("bert", "SEQ_CLS").bundle)
    assert main(["cpp-new", str(folder), str(link)]) == 0
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines()] == [
        *("wrote", "build", "cmake", "run", "opens")
    ]
    assert f"opens     {link} (in main.cc)" in said
    assert json.dumps(str(link)) in (folder / "main.cc").read_text()
