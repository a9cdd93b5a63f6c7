"""parity.json beside the manifest: the parity of an engine that could not run where it was built.

A bundle is never changed, so that the manifest goes on saying of its prompts that it is pending.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from ptdeploy.bundle import Bundle, ParitySummary
from ptdeploy.errors import BundleError, OutputError
from ptdeploy.files import read_regular, write_whole
from ptdeploy.parity.reference.store import referred
from ptdeploy.parity.report import ParityReport
from ptdeploy.parity.reports import report_json
from ptdeploy.printable import shell_word

NAME = "parity.json"
# A manifest has room for about 2,500 prompts, and the report of each has some 28 kB.
MAX_BYTES = 128 * 1024 * 1024


def pending(bundle: Bundle) -> tuple[str | None, ...]:
    """The prompts that the engine has not run with where it was built; None is the base alone."""
    manifest = bundle.manifest
    return tuple(
        name
        for name in referred(bundle)
        if (manifest.base if name is None else manifest.prompts[name]).parity is None
    )


def keep_completed(bundle: Bundle, report: ParityReport) -> str:
    """Write the report beside the manifest; gives a note of where it is or why it is not there."""
    path = bundle.path / NAME
    # Into the very folder that was read, whatever has its name by now.
    place = path if bundle.held is None else bundle.held.inside(NAME)
    if any(entry.path == NAME for entry in bundle.manifest.files):
        return f"the report was not kept: the bundle has another file {NAME}."
    content = report_json(report)
    if len(content) > MAX_BYTES:
        return f"the report was not kept: it is larger than {MAX_BYTES} bytes."
    try:
        write_whole(place, content)
    except OutputError as error:
        return f"the report was not kept: {error.problem.replace(str(place), str(path))}"
    return f"this completes the bundle's parity, and was kept as {path}."


def completed(bundle: Bundle) -> dict[str | None, ParitySummary]:
    """What verify found of the prompts whose parity was pending. Raises as read_completed does."""
    report, left = read_completed(bundle), pending(bundle)
    found = () if report is None else report.each()
    return {one.prompt: one.summary() for one in found if one.prompt in left}


def read_completed(bundle: Bundle) -> ParityReport | None:
    """The report that verify left beside the manifest, if a parity was pending and there is one.

    Nothing vouches for this file. Raises BundleError if it is too large, not a report, or one of
    an engine that the manifest does not describe.
    """
    path = bundle.path / NAME
    if not pending(bundle):
        return None
    try:
        held = bundle.held
        content = held.read(NAME, MAX_BYTES + 1) if held else read_regular(path, MAX_BYTES)
    except OSError:
        return None
    quoted = shell_word(bundle.path)
    fix = f"Remove it, and complete the parity again: ptdeploy verify {quoted}"
    report = _decode(path, content, fix)
    manifest = bundle.manifest
    described = (manifest.target, manifest.device, manifest.precision)
    for one in report.each():
        reported = (one.target, one.device, one.precision)
        if reported != described:
            raise BundleError(
                f"{path}: is a report on {' '.join(reported)}, but the bundle is for "
                f"{' '.join(described)}.",
                fix,
            )
    return report


def _decode(path: Path, content: bytes, fix: str) -> ParityReport:
    if len(content) > MAX_BYTES:
        raise BundleError(f"{path}: larger than {MAX_BYTES} bytes, not a parity report.", fix)
    try:
        return msgspec.json.decode(content, type=ParityReport)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{path}: not a parity report ({error}).", fix) from error
