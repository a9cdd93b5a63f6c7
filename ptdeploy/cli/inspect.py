"""The command `inspect`."""

from __future__ import annotations

import argparse

from ptdeploy.cli import options
from ptdeploy.cli.console import show, show_json_facts
from ptdeploy.cli.parser import path

SUMMARY = "Say what a checkpoint, a bundle or a pack is."


def add_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("path", type=path, metavar="PATH", help="a checkpoint, a bundle or a pack")
    options.add_task(sub)
    sub.add_argument(
        "--layers",
        action="store_true",
        help="open the bundle's engine, and list the layers it runs, their types and its memory",
    )
    options.add_adapter(sub)
    options.add_task_id(sub)


def run(arguments: argparse.Namespace) -> int:
    from ptdeploy.commands.inspect import describe, inspect

    facts = inspect(
        arguments.path,
        arguments.adapter,
        options.task(arguments),
        layers=arguments.layers,
        task_id=arguments.task_id,
    )
    if arguments.json:
        return show_json_facts(facts)
    show(describe(facts))
    return 0
