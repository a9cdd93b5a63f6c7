"""The pytest plugin, in a pytest of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

TEST = """
def test_parity(ptdeploy_bundle, assert_parity):
    assert assert_parity(ptdeploy_bundle).passed
"""


def run_pytest(folder: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    (folder / "test_model.py").write_text(TEST)
    # Where the package is installed, its entry point has registered the plugin already.
    installed = any(one.value == "ptdeploy.pytest_plugin" for one in entry_points(group="pytest11"))
    plugin = [] if installed else ["-p", "ptdeploy.pytest_plugin"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", *plugin, *arguments],
        cwd=folder,
        env={
            **{k: v for k, v in os.environ.items() if k != "PTDEPLOY_BUNDLE"},
            "PYTHONPATH": str(Path(__file__).parents[1]),
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_bundle_comes_from_option_environment_or_ini(compiled, tmp_path):
    bundle = str(compiled("bert", "SEQ_CLS").bundle)
    assert run_pytest(tmp_path, f"--ptdeploy-bundle={bundle}")[0] == 0
    assert run_pytest(tmp_path, PTDEPLOY_BUNDLE=bundle)[0] == 0
    (tmp_path / "bundle").symlink_to(bundle)
    (tmp_path / "pytest.ini").write_text("[pytest]\nptdeploy_bundle = bundle\n")
    assert run_pytest(tmp_path)[0] == 0
    tests = tmp_path / "tests"
    tests.mkdir()
    assert run_pytest(tests)[0] == 0
    assert run_pytest(tests, "--rootdir", str(tests), "-c", str(tmp_path / "pytest.ini"))[0] == 0
    (tmp_path / "pytest.ini").unlink()
    assert run_pytest(tests, "-o", "ptdeploy_bundle=../bundle")[0] == 0


def test_without_a_bundle_the_test_is_skipped_with_a_reason(tmp_path):
    code, out = run_pytest(tmp_path)
    assert code == 0
    assert "no bundle was given" in out
    code, out = run_pytest(tmp_path, "--ptdeploy-bundle", "absent")
    assert code == 1
    assert "absent: is no ptdeploy bundle" in out


def test_a_mismatch_fails_the_test_and_says_what_it_is(compiled, tmp_path):
    from support.faults import Editor

    editor = Editor.copy(compiled("bert", "SEQ_CLS").bundle, tmp_path / "bundle")
    editor.prompt["head.classifier.weight"] = -editor.prompt["head.classifier.weight"]
    editor.write()
    code, out = run_pytest(tmp_path, "--ptdeploy-bundle", "bundle")
    assert code == 1
    assert "does not pass ptdeploy verify" in out
    assert "PARITY MISMATCH" in out


def test_the_package_declares_the_plugin():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"ptdeploy": "ptdeploy.pytest_plugin"}
