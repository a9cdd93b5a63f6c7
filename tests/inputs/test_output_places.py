"""Where results are written, as a user names it: with `~`, from inside, by a name with dots."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

import ptdeploy
from ptdeploy.bundle import read_bundle, read_pack
from ptdeploy.cli.main import main
from ptdeploy.commands.request import OverRequest
from ptdeploy.printable import shell_word

ENCODER = ("bert", "SEQ_CLS")


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


@pytest.fixture
def inside(compiled, tmp_path, monkeypatch) -> Path:
    """A copy of a bundle that is the working folder."""
    bundle = Path(shutil.copytree(compiled(*ENCODER).bundle, tmp_path / "bundle"))
    monkeypatch.chdir(bundle)
    return bundle


def over(compiled, packed) -> list[str]:
    one = compiled(*ENCODER)
    adapter, base = packed(*ENCODER).adapter, one.trained.base
    return ["compile", str(adapter), "--over", str(one.bundle), "--base", str(base)]


def test_every_output_may_begin_with_a_home_that_the_shell_left(compiled, packed, home, capsys):
    one = compiled(*ENCODER)
    base, adapter = str(one.trained.base), str(one.trained.adapter)
    compiling = ["compile", adapter, "--target", "ort", "--base", base]
    converting = ["convert", adapter, "--to", "peft"]
    for command, name in (
        ([*compiling, "--output=~/b"], "b"),
        ([*over(compiled, packed), "--output=~/t.prompt"], "t.prompt"),
        ([*converting, "--output=~/t"], "t"),
    ):
        assert main([*command, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["path"] == str(home / name)
        assert (home / name).is_dir()
    assert main(["verify", str(one.bundle), "--report=~/rep"]) == 0
    assert f"report: {home}/rep/report.html" in capsys.readouterr().out
    assert (home / "rep" / "report.html").is_file()
    assert os.listdir() == []


def test_a_folder_that_is_called_so_is_meant(home):
    Path("~").mkdir()
    request = OverRequest(checkpoint="x", over="y", output="~/t.prompt")
    assert str(request.place) == "~/t.prompt"


@pytest.mark.parametrize(
    ("output", "name"),
    [("legal-1.5", "legal-1.5"), ("a/legal.prompt", "legal"), ("legal.v2.prompt", "legal.v2")],
)
def test_a_prompt_is_called_as_its_pack_without_the_ending(output, name):
    assert OverRequest(checkpoint="x", over="y", output=output).prompt_name == name


def test_a_bundle_is_changed_from_inside(inside, packed, capsys):
    pack = str(packed(*ENCODER).path)
    for command in (
        ["add", ".", pack, "--name", "legal"],
        ["default", ".", "legal"],
        ["remove", ".", "default"],
    ):
        assert main(["prompt", *command, "--json"]) == 0
        printed = capsys.readouterr()
        assert json.loads(printed.out)["path"] == str(inside)
        assert 'enter it again: cd "$PWD"' in printed.err
        os.chdir(inside)
    assert list(read_bundle(inside).manifest.prompts) == ["legal"]


def test_what_was_changed_from_a_folder_inside_is_given_by_its_own_place(inside, packed):
    os.chdir("prompts/default")
    bundle = ptdeploy.prompt_add("../..", packed(*ENCODER).path, name="legal")
    assert bundle.path == inside
    assert "enter it again" in bundle.notes[-1]
    assert list(ptdeploy.prompt_list(bundle.path)) == ["default", "legal"]


def test_a_bundle_and_a_pack_are_compiled_to_where_one_is(
    inside, compiled, packed, tmp_path, capsys
):
    trained = compiled(*ENCODER).trained
    how = ["--target", "ort", "--base", str(trained.base), "-o", ".", "--force"]
    assert main(["compile", str(trained.adapter), *how]) == 0
    printed = capsys.readouterr()
    assert f"run it    ptdeploy run {inside} " in printed.out
    assert "enter it again" in printed.err
    (tmp_path / "new").mkdir()
    os.chdir(tmp_path / "new")
    assert main([*over(compiled, packed), "-o", ".", "--force"]) == 0
    assert read_pack(tmp_path / "new").name == "new"


def test_notes_are_said_without_progress_and_are_in_the_json(compiled, packed, tmp_path, capsys):
    # Of a pack that was proven over a shorter context there is a note.
    bundle = shutil.copytree(compiled("gpt2", "CAUSAL_LM").bundle, tmp_path / "bundle")
    pack = packed("gpt2", "CAUSAL_LM", options={"max_context": 40}).path
    capsys.readouterr()
    assert main(["prompt", "add", str(bundle), str(pack), "-q", "--json"]) == 0
    printed = capsys.readouterr()
    notes = json.loads(printed.out)["notes"]
    assert any("no row of over 37 tokens was run" in one for one in notes)
    assert [line.removeprefix("  note: ") for line in printed.err.splitlines()] == notes


def test_the_other_prompt_is_one(inside, packed, compiled, capsys):
    from ptdeploy.cli.parity_lines import parity_lines

    bundle = ptdeploy.prompt_add(inside, packed(*ENCODER).path, name="legal")
    assert "the other prompt: max abs" in parity_lines(bundle.manifest)


@pytest.mark.parametrize("name", ["plain", "a b", "it's", "a\x1b[2J'\\x41b", "caf\u00e9\n"])
def test_a_word_for_the_shell_is_read_back_as_it_was(name):
    word = shell_word(name)
    assert word.isprintable()
    command = f"printf %s {word}"
    read = subprocess.run(["bash", "-c", command], capture_output=True, check=True).stdout
    assert os.fsdecode(read) == name
    assert word == shlex.quote(name) or word.startswith("$'")


@pytest.mark.parametrize("place", ["", "/prompts", "/new/deep"])
def test_nothing_is_written_into_a_bundles_folder(compiled, packed, tmp_path, capsys, place):
    bundle = Path(shutil.copytree(compiled(*ENCODER).bundle, tmp_path / "bundle"))
    before, adapter = sorted(bundle.rglob("*")), str(compiled(*ENCODER).trained.adapter)
    assert main(["verify", str(bundle), "--report", f"{bundle}{place}"]) == 2
    assert "the folder of a bundle or a pack" in capsys.readouterr().err
    for command in (
        ["convert", adapter, "--to", "peft"],
        [*over(compiled, packed)],
        ["compile", adapter, "--target", "ort", "--base", str(compiled(*ENCODER).trained.base)],
    ):
        assert main([*command, "-o", f"{bundle}{place}/x"]) == 2
        assert "the folder of a bundle or a pack" in capsys.readouterr().err
    assert sorted(bundle.rglob("*")) == before


def test_a_report_is_not_written_into_a_pack(compiled, packed, tmp_path, capsys):
    pack = shutil.copytree(packed(*ENCODER).path, tmp_path / "pack")
    assert main(["verify", str(compiled(*ENCODER).bundle), "--report", str(pack)]) == 2
    assert f"--report {pack}: is the folder of a bundle or a pack" in capsys.readouterr().err
