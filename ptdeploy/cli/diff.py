"""The command `diff`."""

from __future__ import annotations

import argparse

from ptdeploy.cli import options
from ptdeploy.cli.console import show, show_json_facts
from ptdeploy.cli.parser import path
from ptdeploy.errors import InputError

_ROUNDS = 15
SUMMARY = "Say what changed from one bundle to another."


def add_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("before", type=path, metavar="BUNDLE_A", help="what B is compared with")
    sub.add_argument("after", type=path, metavar="BUNDLE_B", help="a folder that compile made")
    sub.add_argument(
        "--speed", action="store_true", help="time both engines on the same requests, in turns"
    )
    sub.add_argument(
        "--max-slowdown",
        type=float,
        metavar="R",
        help="time them, with more rounds where B seems too slow, and exit 1 if it takes over R "
        "times as long as A",
    )
    sub.add_argument(
        "--rounds", type=int, metavar="N", help=f"timed turns of each; default: {_ROUNDS}"
    )
    options.add_quiet(sub)


def run(arguments: argparse.Namespace) -> int:
    from ptdeploy.commands.diff import compare_bundles, describe

    most = arguments.max_slowdown
    timed = arguments.speed or most is not None
    if arguments.rounds is not None and arguments.rounds < 1:
        raise InputError(f"--rounds {arguments.rounds}: must be at least 1.")
    if arguments.rounds is not None and not timed:
        raise InputError(
            "--rounds is about timing, and nothing is timed.",
            "Pass --speed or --max-slowdown, or leave --rounds out.",
        )
    rounds = arguments.rounds or _ROUNDS
    with options.progress(arguments).waiting("time both bundles" if timed else "compare them"):
        found = compare_bundles(arguments.before, arguments.after, timed, rounds, most)
    slow = [one for one in found.speed if one.too_slow]
    if arguments.json:
        import msgspec

        show_json_facts(msgspec.to_builtins(found))
    else:
        show(describe(found))
        for one in slow:
            show(f"TOO SLOW: {one.request} takes {one.ratio:.2f} times as long, allowed {most}")
    return 1 if slow else 0
