"""One report in four forms: for programs, for CI, for a pull request, and for people."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ptdeploy.bundle import Manifest
from ptdeploy.files import write_whole
from ptdeploy.parity.compare import ParityReport

REPORT_FIX = "Choose another --report."


def report_json(report: ParityReport) -> bytes:
    """A report as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def report_schema() -> bytes:
    """The report's JSON Schema, as docs/parity-report.schema.json publishes it."""
    schema = msgspec.json.encode(msgspec.json.schema(ParityReport))
    return msgspec.json.format(schema, indent=2) + b"\n"


def write_reports(report: ParityReport, manifest: Manifest, folder: Path) -> None:
    """Write report.json, junit.xml, report.md and report.html, each whole or not at all."""
    from ptdeploy.parity.reports import html, junit, markdown

    for name, content in (
        ("report.json", report_json(report)),
        ("junit.xml", junit.render(report)),
        ("report.md", markdown.render(report, manifest).encode()),
        ("report.html", html.render(report, manifest).encode()),
    ):
        write_whole(folder / name, content, REPORT_FIX)
