"""No code asks which task it is but the files of the tasks: a new task is found by nobody else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import ptdeploy
from ptdeploy.bundle.task import Task
from ptdeploy.program.kinds import KINDS
from ptdeploy.runtime import ENGINES

PACKAGE = Path(ptdeploy.__file__).parent
# A program kind's own file, the registry of engines, and where the names are from.
MAY_NAME_A_TASK = ("program/kinds/", "runtime/__init__.py", "bundle/task.py")
# The same in C++: a file each, what they share, the registry, and the manifest's reader.
TASKS_IN_CPP = ("task.cc", "classifier.cc", "token_classifier.cc", "causal.cc", "manifest.cc")
CLASSES = {
    parent.__name__
    for one in (*ENGINES.values(), *map(type, KINDS))
    for parent in one.__mro__
    if parent.__module__.startswith("ptdeploy.")
}
NAMES = {task.value for task in Task}


def branches(source: str) -> Iterator[str]:
    """Where Python code names a task, compares with its name, or asks for a task's class."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Name(id="Task"), attr=attr) if attr in NAMES:
                yield f"{node.lineno}: Task.{attr}"
            case ast.Compare():
                for one in (node.left, *node.comparators):
                    if isinstance(one, ast.Constant) and one.value in NAMES:
                        yield f"{node.lineno}: a comparison with {one.value!r}"
            case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=[_, kinds]):
                for one in ast.walk(kinds):
                    name = getattr(one, "id", getattr(one, "attr", None))
                    if name in CLASSES:
                        yield f"{node.lineno}: isinstance of {name}"


@pytest.mark.parametrize(
    "source",
    [
        "if task is Task.CAUSAL_LM: pass",
        "x = {Task.SEQ_CLS: 1}[task]",
        "if manifest.task in (Task.TOKEN_CLS,): pass",
        "if facts['task'] == 'SEQ_CLS': pass",
        "isinstance(engine, CausalLM)",
        "isinstance(engine, runtime.Classifier | TokenClassifier)",
        "isinstance(base.kind, DecoderClassifier)",
    ],
)
def test_a_branch_on_the_task_is_seen(source):
    assert list(branches(source))


@pytest.mark.parametrize("source", ["engine.writes", "isinstance(error, InputError)", "Task(name)"])
def test_what_is_no_branch_on_the_task_is_let_be(source):
    assert not list(branches(source))


def test_no_python_code_asks_which_task_it_is():
    found = [
        f"{path.relative_to(PACKAGE)}:{where}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if not path.relative_to(PACKAGE).as_posix().startswith(MAY_NAME_A_TASK)
        for where in branches(path.read_text("utf-8"))
    ]
    assert not found


def test_no_cpp_code_asks_which_task_it_is():
    found = [
        f"{path.name}: {line.strip()}"
        for path in sorted((PACKAGE / "cpp" / "src").iterdir())
        if path.name not in TASKS_IN_CPP
        for line in path.read_text("utf-8").splitlines()
        if re.search(r"\bTask::\w+|\btask [!=]=", line)
    ]
    assert not found
