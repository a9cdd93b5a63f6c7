"""One report in four forms: for programs, for CI, for a pull request, and for people."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import msgspec

from ptdeploy.bundle import Manifest
from ptdeploy.errors import OutputError
from ptdeploy.parity.compare import ParityReport


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

    write_whole(folder, "report.json", report_json(report))
    write_whole(folder, "junit.xml", junit.render(report))
    write_whole(folder, "report.md", markdown.render(report, manifest).encode())
    write_whole(folder, "report.html", html.render(report, manifest).encode())


def write_whole(folder: Path, name: str, content: bytes) -> Path:
    """Write a file beside its place and rename it there, so that nobody reads half of it.

    Raises OutputError if it cannot be written.
    """
    path = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror}).", "Choose another --report."
        ) from None
    return path
