"""The command `rebuild`."""

from __future__ import annotations

import argparse

from ptdeploy.cli import options
from ptdeploy.cli.console import show, show_json_facts
from ptdeploy.cli.parity_lines import parity_lines
from ptdeploy.cli.parser import path
from ptdeploy.printable import printable
from ptdeploy.targets import TARGETS, get_target
from ptdeploy.targets.options import TargetOptions

SUMMARY = "Build a bundle's engine again, for this machine."


def add_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "bundle", type=path, metavar="BUNDLE", help="one that was compiled with its ONNX"
    )
    sub.add_argument(
        "-o", "--output", type=path, metavar="BUNDLE", help="default: the bundle is replaced"
    )
    for name in TARGETS:
        get_target(name).add_rebuild_options(sub)
    sub.add_argument("--force", action="store_true", help="replace a bundle that is there")
    options.add_quiet(sub)


def run(arguments: argparse.Namespace) -> int:
    from ptdeploy.commands.inspect import facts_of
    from ptdeploy.commands.rebuild import rebuild_bundle
    from ptdeploy.commands.request import RebuildRequest

    request = RebuildRequest(
        **options.asked(RebuildRequest, arguments, engine=_rebuild_options(arguments))
    )
    bundle = rebuild_bundle(request, options.progress(arguments))
    if arguments.json:
        return show_json_facts(facts_of(bundle))
    show(f"bundle    {printable(str(bundle.path))}\n{parity_lines(bundle.manifest)}", end="")
    return 0


def _rebuild_options(arguments: argparse.Namespace) -> TargetOptions | None:
    asked = (get_target(one).read_rebuild_options(arguments) for one in TARGETS)
    return next((one for one in asked if one is not None), None)
