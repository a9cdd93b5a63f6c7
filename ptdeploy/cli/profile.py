"""The command `profile`."""

from __future__ import annotations

import argparse
import dataclasses

from ptdeploy.cli import options
from ptdeploy.cli.console import show, show_json_facts
from ptdeploy.errors import InputError

_TOP = 20
SUMMARY = "Time each layer of a bundle's engine."


def add_options(sub: argparse.ArgumentParser) -> None:
    options.add_bundle(sub)
    sub.add_argument(
        "--batch",
        type=int,
        default=1,
        metavar="N",
        help="rows of a request, or of a decode step; default: 1",
    )
    sub.add_argument("--tokens", type=int, metavar="N", help="in each row; default: 32")
    sub.add_argument(
        "--rounds", type=int, default=20, metavar="N", help="timed runs, after a few; default: 20"
    )
    options.add_prompt(sub)
    sub.add_argument("--device", choices=options.devices(), help="default: the bundle's")
    options.add_threads(sub)
    sub.add_argument("--top", type=int, metavar="N", help=f"lines of each table; default: {_TOP}")
    options.add_quiet(sub)


def run(arguments: argparse.Namespace) -> int:
    from ptdeploy.commands.profile import describe, profile_bundle

    if arguments.top is not None and arguments.top < 1:
        raise InputError(f"--top {arguments.top}: must be at least 1.")
    if arguments.top is not None and arguments.json:
        raise InputError(
            "--top is about tables, and --json has every layer.", "Leave one of them out."
        )
    found = profile_bundle(
        arguments.bundle,
        batch=arguments.batch,
        tokens=arguments.tokens,
        rounds=arguments.rounds,
        device=arguments.device,
        threads=arguments.threads,
        prompt=options.prompt(arguments),
        progress=options.progress(arguments),
    )
    if arguments.json:
        return show_json_facts(dataclasses.asdict(found))
    show(describe(found, arguments.top or _TOP))
    return 0
