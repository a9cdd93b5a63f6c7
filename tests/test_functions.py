"""No function is longer than a screen; ruff holds how many ways lead through one."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
LINES = 60
# What stands here goes away; nothing is added.
ALLOWED = {}


def long_functions(text: str) -> list[str]:
    """Names of the functions that are too long, docstrings aside."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node, clean=False) is not None:
                length -= node.body[0].end_lineno - node.body[0].lineno + 1
            if length > LINES:
                found.append(node.name)
    return found


@pytest.mark.parametrize("folder", ["ptdeploy", "tests", "benchmarks", "models"])
def test_no_function_is_longer_than_a_screen(folder):
    found = {
        f"{file.relative_to(REPOSITORY).as_posix()}: {name}"
        for file in (REPOSITORY / folder).rglob("*.py")
        for name in long_functions(file.read_text())
    }
    assert not found


def test_a_long_function_is_found_and_its_docstring_does_not_count():
    head = 'def f():\n    """One.\n\n    Two.\n    """\n'
    assert long_functions(head + "    x = 1\n" * (LINES - 1)) == []
    assert long_functions(head + "    x = 1\n" * LINES) == ["f"]
