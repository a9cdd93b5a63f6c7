"""The command `doctor`."""

from __future__ import annotations

import argparse

from ptdeploy.cli.console import show, show_json_facts

SUMMARY = "Say what is installed and which targets can run here."


def add_options(sub: argparse.ArgumentParser) -> None:
    """It has none."""


def run(arguments: argparse.Namespace) -> int:
    from ptdeploy.commands.doctor import describe, examine

    facts = examine()
    if arguments.json:
        show_json_facts(facts)
    else:
        show(describe(facts))
    return 3 if facts["problems"] else 0
