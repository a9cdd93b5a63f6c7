"""The command `convert`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ptdeploy.bundle.signature import words_of
from ptdeploy.cli import options
from ptdeploy.cli.console import show, show_json_facts
from ptdeploy.cli.parser import path
from ptdeploy.printable import number_of, printable

if TYPE_CHECKING:
    from ptdeploy.commands.convert import Converted

SUMMARY = "Write a trained prompt in another format, exactly."


def add_options(sub: argparse.ArgumentParser) -> None:
    from ptdeploy.commands.request import FORMS

    sub.add_argument("checkpoint", type=path, metavar="CHECKPOINT", help="any that compile takes")
    sub.add_argument(
        "--to",
        required=True,
        choices=FORMS,
        help="; ".join(f"{name}: {words}" for name, words in FORMS.items()),
    )
    sub.add_argument(
        "-o", "--output", required=True, type=path, metavar="OUT", help="a folder, or OUT.npy"
    )
    sub.add_argument(
        "--base",
        type=path,
        metavar="PATH_OR_ID",
        help="base model, over the checkpoint's own; prefix-kv of virtual tokens runs it",
    )
    options.add_task(sub)
    options.add_adapter(sub)
    options.add_task_id(sub)
    sub.add_argument("--force", action="store_true", help="replace one that is there")
    options.add_quiet(sub)


def run(arguments: argparse.Namespace) -> int:
    from ptdeploy.commands.convert import convert_checkpoint
    from ptdeploy.commands.request import ConvertRequest

    request = ConvertRequest(**options.asked(ConvertRequest, arguments))
    done = convert_checkpoint(request, options.progress(arguments))
    path, checkpoint = printable(str(done.path)), done.checkpoint
    if arguments.json:
        facts = {"path": str(done.path), "to": arguments.to, "kind": done.kind}
        return show_json_facts({**facts, "shape": list(done.shape), "notes": list(done.notes)})
    show(
        f"read      {checkpoint.format}, {checkpoint.kind}, {checkpoint.task.value}\n"
        f"wrote     {path}: {_written(done)}"
    )
    return 0


def _written(done: Converted) -> str:
    """What was written, by its kind unless that is a bare tensor's."""
    if len(done.shape) == 2:
        words = f"{number_of(done.shape[0], 'virtual token')}, {done.shape[1]} wide"
    else:
        words = f"prefix KV {words_of(done.shape)}"
    return words if done.kind in ("VIRTUAL_TOKENS", "PREFIX_KV") else f"{done.kind}, {words}"
