"""One report in four forms: for programs, for CI, for a pull request, and for people."""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec

from ptdeploy.bundle import Manifest
from ptdeploy.bundle.contents import check_in_no_bundle
from ptdeploy.errors import OutputError
from ptdeploy.files import check_folder, json_document, read_regular, write_together
from ptdeploy.parity.report import ParityReport

REPORT_FIX = "Choose another --report."
FAILING_NAME = "failing.jsonl"
# The caller's own bounds that the failing input is held to.
BOUNDS_NAME = "failing-thresholds.json"
NAMES = ("report.json", "junit.xml", "report.md", "report.html", FAILING_NAME, BOUNDS_NAME)
# What every version's report.json begins with, and where it is looked for: a report may be long.
_FIRST_FIELDS = ("target", "precision", "reference", "cases")
_FIRST_BYTES = 64 * 1024


def report_json(report: ParityReport) -> bytes:
    """A report as indented JSON."""
    return json_document(report)


def report_schema() -> bytes:
    """The report's JSON Schema, as docs/parity-report.schema.json publishes it."""
    return json_document(msgspec.json.schema(ParityReport))


def check_report(folder: Path) -> None:
    """Refuse, before any work, a folder that the report cannot go into.

    Only an earlier report is ever replaced. Raises OutputError.
    """
    check_folder(folder, "--report")
    check_in_no_bundle(folder, "--report ", REPORT_FIX)
    others = [name for name in NAMES if os.path.lexists(folder / name)]
    if others and not _is_report(folder):
        raise OutputError(
            f"--report {folder}: holds {others[0]}, which is not of a report of ptdeploy.",
            REPORT_FIX,
        )


def _is_report(folder: Path) -> bool:
    """Whether a report of this or another version is there."""
    try:
        first = read_regular(folder / "report.json", _FIRST_BYTES).lstrip()
    except OSError:
        return False
    fields = (rb'[{,]\s*"%s"\s*:' % name.encode() for name in _FIRST_FIELDS)
    return first.startswith(b"{") and all(re.search(field, first) for field in fields)


def write_reports(report: ParityReport, manifest: Manifest, folder: Path) -> None:
    """Write report.json, junit.xml, report.md and report.html, all whole or none of them."""
    from ptdeploy.parity.reports import html, junit, markdown

    contents = (
        report_json(report),
        junit.render(report),
        markdown.render(report, manifest).encode(),
        html.render(report, manifest).encode(),
    )
    write_together(folder, dict(zip(NAMES, contents, strict=False)), REPORT_FIX)
