"""The CI templates' own script lines, run here on a tiny model."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")
CI = Path(__file__).parents[1] / "docs" / "ci"


def steps(template: str) -> tuple[dict[str, str], list[str]]:
    """A template's variables, and its script lines in order; installing is left to this machine."""
    content = yaml.safe_load((CI / template).read_text())
    if template == "gitlab-ci.yml":
        return content["variables"], content["parity"]["script"]
    runs = [step["run"] for step in content["jobs"]["parity"]["steps"] if "run" in step]
    return content["env"], [run for run in runs if "pip install" not in run]


def run_steps(
    template: str, folder: Path, first: int = 0, **changes: str
) -> subprocess.CompletedProcess[str]:
    """Run the lines from the `first` on as the service would: a shell each, until one fails."""
    variables, lines = steps(template)
    commands = folder / "bin"
    commands.mkdir(exist_ok=True)
    command = commands / "ptdeploy"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ptdeploy "$@"\n')
    command.chmod(0o755)
    environment = {
        **os.environ,
        **variables,
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parents[1]),
        **changes,
    }
    (folder / "build").mkdir(exist_ok=True)
    done = subprocess.CompletedProcess([], 0, "", "")
    for line in lines[first:]:
        done = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", line],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            break
    return done


def test_programs_that_tests_need_are_looked_for_in_one_place():
    tests = Path(__file__).parent
    looking = [
        str(file.relative_to(tests))
        for file in tests.rglob("*.py")
        if re.search(r"shutil\.which", file.read_text("utf-8"))
    ]
    assert looking == ["support/tools.py"]


@pytest.fixture
def repository(compiled, tmp_path) -> Path:
    """What the templates expect to be checked out."""
    one = compiled("bert", "SEQ_CLS")
    shutil.copytree(one.trained.adapter, tmp_path / "model" / "adapter")
    shutil.copytree(one.trained.base, tmp_path / "model" / "base")
    shutil.copytree(one.bundle, tmp_path / "released.bundle")
    return tmp_path


@pytest.mark.parametrize("template", ["github-actions.yml", "gitlab-ci.yml"])
def test_a_template_passes_what_holds_and_stops_what_is_slower(repository, template):
    done = run_steps(template, repository, RELEASED="released.bundle", MAX_SLOWDOWN="1000")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (repository / "build" / "parity" / "junit.xml").is_file()
    if template == "github-actions.yml":
        assert "Parity holds" in (repository / "summary.md").read_text()
        # Nothing is a thousand times as fast as itself.
        one = {"RELEASED": "released.bundle", "MAX_SLOWDOWN": "0.001"}
        done = run_steps(template, repository, -1, **one)
        assert done.returncode == 1
        assert "TOO SLOW" in done.stdout


@pytest.mark.parametrize("template", ["github-actions.yml", "gitlab-ci.yml"])
def test_a_template_judges_the_data_it_is_told(repository, template):
    """Whatever else holds: a bound that the data misses, and a file that is not there, stop it."""
    shutil.copytree(repository / "released.bundle", repository / "build" / "model.bundle")
    verify = next(i for i, line in enumerate(steps(template)[1]) if "ptdeploy verify" in line)
    (repository / "my rows.jsonl").write_text(
        '{"ids": [5, 6, 7], "label": 0}\n{"ids": [5, 6, 7], "label": 1}\n'
    )
    # Of two labels for the same tokens one is wrong.
    (repository / "bounds.json").write_text('{"min_accuracy": 0.9}')
    one = {"DATA": "my rows.jsonl", "THRESHOLDS": "bounds.json"}
    missed = run_steps(template, repository, verify, **one)
    assert missed.returncode == 1, missed.stdout + missed.stderr
    assert "BUT A BOUND ON THE GIVEN DATA DOES NOT" in missed.stdout
    (repository / "bounds.json").write_text('{"min_accuracy": 0.0}')
    assert run_steps(template, repository, verify, **one).returncode == 0
    assert run_steps(template, repository, verify, **{**one, "DATA": "none.jsonl"}).returncode == 2


def test_a_template_wants_the_released_bundle_it_is_told(repository):
    shutil.copytree(repository / "released.bundle", repository / "build" / "model.bundle")
    for template in ("github-actions.yml", "gitlab-ci.yml"):
        assert run_steps(template, repository, -1, RELEASED="relesed.bundle").returncode == 2
        # As it is handed out, for who has released nothing yet.
        done = run_steps(template, repository, -1)
        assert (done.returncode, "RELEASED is empty" in done.stdout) == (0, True)


def test_a_template_stops_a_mismatch(repository):
    from support.faults import Editor

    # The bundle that is built is replaced by a faulty one before it is verified.
    editor = Editor.copy(repository / "released.bundle", repository / "faulty")
    editor.prompt["head.classifier.weight"] = -editor.prompt["head.classifier.weight"]
    editor.write()
    verify = steps("gitlab-ci.yml")[1][1]
    done = subprocess.run(
        ["bash", "-c", verify.replace("ptdeploy ", f'"{sys.executable}" -m ptdeploy ', 1)],
        cwd=repository,
        env={
            **os.environ,
            **steps("gitlab-ci.yml")[0],
            "BUNDLE": "faulty",
            "PYTHONPATH": str(Path(__file__).parents[1]),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "classifier is the first mismatch" in done.stdout
