"""All tasks of a multitask prompt, each as a prompt with a name: `--task-id all`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ptdeploy.arguments import refused, text, whole
from ptdeploy.bundle.schema import is_prompt_name
from ptdeploy.bundle.task import Task
from ptdeploy.errors import InputError

if TYPE_CHECKING:
    from ptdeploy.source.checkpoint import Checkpoint

ALL: Literal["all"] = "all"
TaskId = int | Literal["all"]
# Stands for a task's number in a pattern of names.
_NUMBER = "{task}"
_NAMES = f"task-{_NUMBER}"


def is_all(task_id: Any) -> bool:
    """Whether all tasks are asked for."""
    return isinstance(task_id, str) and task_id == ALL


def task_or_all(name: str, value: Any) -> TaskId:
    """A task's number, or all of them."""
    if is_all(value):
        return ALL
    if isinstance(value, str):
        raise refused(name, value, f"a whole number, or {ALL!r}")
    return int(whole()(name, value))


def prompt_name(name: str, value: Any) -> str:
    """What a prompt may be called."""
    found = text(name, value)
    if is_prompt_name(found):
        return found
    wanted = "1 to 64 letters, digits, '.', '_' or '-' of ASCII, the first a letter or a digit"
    raise refused(name, found, wanted)


def prompt_names(name: str, value: Any) -> str:
    """Names of all tasks' prompts: in a row, between commas, or one with `{task}` in it."""
    found = text(name, value)
    for one in found.split(","):
        if not is_prompt_name(one.replace(_NUMBER, "0")):
            raise refused(name, found, f"a name for each task, A,B,C, or one with {_NUMBER} in it")
    return found


def read_named(
    path: str | Path,
    adapter: str | None,
    task: Task | None,
    labels: str | None,
    task_id: TaskId | None,
    name: str | None,
) -> dict[str | None, Checkpoint]:
    """A checkpoint's prompt by its name, or with `task_id` ALL each task's.

    Without a `name` the tasks' are task-0, task-1 and so on, else what prompt_names takes.
    Raises CheckpointError as read_checkpoint does, InputError if the names are not the tasks'.
    """
    from ptdeploy.source.checkpoint import NoTaskChosen, read_checkpoint

    if task_id != "all":
        assert name is not None, "a single prompt has one"
        try:
            return {name: read_checkpoint(path, adapter, task, labels, task_id)}
        except NoTaskChosen as error:
            fix = "Say which one with --task-id N, or put all into a bundle with --task-id all."
            raise NoTaskChosen(error.problem, fix) from error
    first = read_checkpoint(path, adapter, task, labels, 0)
    names = _names(name or _NAMES, first.num_tasks)
    others = (
        read_checkpoint(path, adapter, task, labels, number) for number in range(1, len(names))
    )
    return dict(zip(names, (first, *others), strict=True))


def _names(pattern: str, tasks: int) -> list[str]:
    if _NUMBER in pattern and "," not in pattern:
        names = [pattern.replace(_NUMBER, str(number)) for number in range(tasks)]
    else:
        names = pattern.split(",")
    if len(names) != tasks:
        raise InputError(
            f"--name {pattern}: names {len(names)} prompts, but the checkpoint has {tasks} tasks.",
            f"Give a name for each, A,B,C, or one with {_NUMBER} in it.",
        )
    bad = [name for name in names if not is_prompt_name(name)]
    if bad or len(set(names)) < tasks:
        what = f"{bad[0]!r} is no name of a prompt" if bad else "two of the names are the same"
        raise InputError(f"--name {pattern}: {what}.", "Choose other names.")
    return names
