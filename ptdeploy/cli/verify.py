"""The command `verify`."""

from __future__ import annotations

import argparse

from ptdeploy.cli import options
from ptdeploy.cli.console import show, show_json_text
from ptdeploy.cli.parser import path
from ptdeploy.printable import printable

SUMMARY = "Check a bundle's files and its parity with PyTorch."


def add_options(sub: argparse.ArgumentParser) -> None:
    options.add_bundle(sub)
    sub.add_argument(
        "--checkpoint",
        type=path,
        metavar="CKPT",
        help="compute the reference again with PEFT; default: the one stored in the bundle",
    )
    sub.add_argument(
        "--data",
        type=path,
        metavar="FILE",
        help='compare on your own data too: JSONL with {"text": ...} or {"ids": [...]}, '
        '"text_pair" or "token_type_ids", and "label" to score it',
    )
    sub.add_argument(
        "--thresholds", type=path, metavar="FILE", help="JSON with bounds over the precision's own"
    )
    sub.add_argument(
        "--locate",
        action="store_true",
        help="name the first module that does not match; needs --checkpoint",
    )
    sub.add_argument(
        "--report",
        type=path,
        metavar="DIR",
        help="write report.json, junit.xml, report.md, report.html and the smallest failing input",
    )
    sub.add_argument(
        "--graph",
        action="store_true",
        help="without a GPU: not the engine but the graph that it was built from",
    )
    sub.add_argument(
        "--prompt",
        metavar="NAME",
        help="this prompt alone; default: every one, or with --checkpoint or --data the default",
    )
    options.add_adapter(sub)
    options.add_checkpoint(sub)


def run(arguments: argparse.Namespace) -> int:
    from ptdeploy.commands.request import VerifyRequest
    from ptdeploy.commands.verify import verify_bundle
    from ptdeploy.parity.reports import report_json
    from ptdeploy.parity.reports.text import describe

    request = VerifyRequest(**options.asked(VerifyRequest, arguments))
    report = verify_bundle(request, options.progress(arguments))
    if arguments.json:
        show_json_text(report_json(report).decode())
    else:
        show(describe(report))
        if request.report:
            show(f"report: {printable(str(request.report))}/report.html")
    return 0 if report.passed else 1
