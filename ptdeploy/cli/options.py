"""Options that several commands share, and what they say."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from ptdeploy.backends import BACKENDS, get_backend
from ptdeploy.bundle.task import Task
from ptdeploy.cli.parser import path
from ptdeploy.progress import Progress
from ptdeploy.text_files import argument_text

if TYPE_CHECKING:
    from ptdeploy.runtime.prompt_choice import OnePrompt


def add_bundle(sub: argparse.ArgumentParser) -> None:
    """Of commands that read one."""
    sub.add_argument("bundle", type=path, metavar="BUNDLE", help="a folder that compile made")


def add_prompt(sub: argparse.ArgumentParser) -> None:
    """Of commands that ask an engine."""
    group = sub.add_mutually_exclusive_group()
    group.add_argument("--prompt", metavar="NAME", help="default: the bundle's default prompt")
    group.add_argument("--no-prompt", action="store_true", help="the base model alone")


def prompt(arguments: argparse.Namespace) -> OnePrompt:
    """The prompt that was asked for."""
    from ptdeploy.runtime.prompt_choice import DEFAULT

    if arguments.no_prompt:
        return None
    return DEFAULT if arguments.prompt is None else argument_text(arguments.prompt)


def add_threads(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="of an engine on a CPU; default: PTDEPLOY_THREADS, else one for each core",
    )


def add_adapter(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--adapter", metavar="NAME", help="which of several adapters, or of a .nemo file's tasks"
    )


def add_task_id(sub: argparse.ArgumentParser, or_all: bool = False) -> None:
    """`or_all` lets all be asked for, each a prompt of its own."""
    sub.add_argument(
        "--task-id",
        type=_task_or_all if or_all else int,
        metavar="N|all" if or_all else "N",
        help="which task of a multitask prompt, from 0 on"
        + (", or all: each a prompt, named task-0, task-1, ..." if or_all else ""),
    )


def _task_or_all(text: str) -> int | str:
    if text == "all":
        return text
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number, nor 'all'") from error


def add_head(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--head",
        choices=("softmax", "sigmoid", "regression"),
        help="what SEQ_CLS logits are: scores of classes of which one is true, of classes each "
        "true or not, or the answer itself; default: as config.json's problem_type says",
    )


def add_cpp_tokenizer(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--cpp-tokenizer",
        action="store_true",
        help="write the tokenizer as OpenVINO's program too, with which C++ takes text",
    )


def add_golden(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--golden",
        type=int,
        metavar="N",
        help="reference rows to store for verify without the checkpoint, at least 1; "
        "default: 8 or 9 random ones and up to 8 texts",
    )


def add_task(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--task",
        choices=[one.value for one in Task],
        help="what it was trained for, where the checkpoint does not say it",
    )


def add_checkpoint(sub: argparse.ArgumentParser) -> None:
    """Of commands that read a checkpoint whole."""
    sub.add_argument(
        "--base", type=path, metavar="PATH_OR_ID", help="base model, over the adapter's own"
    )
    sub.add_argument(
        "--tokenizer",
        type=path,
        metavar="PATH_OR_ID",
        help="default: the checkpoint's own, else the base model's; none: token ids only",
    )
    add_quiet(sub)


def add_quiet(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("-q", "--quiet", action="store_true", help="no progress; notes are still said")


def asked(kind: type[Any], arguments: argparse.Namespace, **given: Any) -> dict[str, Any]:
    """The fields of a request by the options of the same names; `given` ones have other names."""
    names = (one.name for one in dataclasses.fields(kind))
    return {name: given[name] if name in given else getattr(arguments, name) for name in names}


def task(arguments: argparse.Namespace) -> Task | None:
    return Task(arguments.task) if arguments.task else None


def progress(arguments: argparse.Namespace) -> Progress:
    return Progress(quiet=arguments.quiet, notes=True)


def devices() -> list[str]:
    return sorted({device for name in BACKENDS for device in get_backend(name).devices})


def default_devices() -> str:
    return ", ".join(f"{get_backend(name).devices[0]} for {name}" for name in BACKENDS)
