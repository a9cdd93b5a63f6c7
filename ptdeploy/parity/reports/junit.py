"""JUnit XML: one test case for each comparison, as CI services read it."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from ptdeploy.parity.checks import checks
from ptdeploy.parity.report import ParityReport
from ptdeploy.parity.reports.words import of_prompt
from ptdeploy.printable import printable_fields


def render(report: ParityReport) -> bytes:
    """A test suite for each prompt, whose failures are the checks that do not pass."""
    report = printable_fields(report)
    suites = ElementTree.Element("testsuites")
    for one in report.each():
        suites.append(_suite(one, f", {of_prompt(one)}" if report.prompts else ""))
    ElementTree.indent(suites)
    document: bytes = ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def _suite(report: ParityReport, of: str) -> ElementTree.Element:
    found = checks(report)
    failed = [one for one in found if not one.passed]
    suite = ElementTree.Element(
        "testsuite",
        name=f"ptdeploy parity{of}",
        tests=str(len(found)),
        failures=str(len(failed)),
        errors="0",
        skipped="0",
    )
    for one in found:
        case = ElementTree.SubElement(
            suite, "testcase", classname=f"parity.{one.kind}", name=one.name, time="0"
        )
        if not one.passed:
            said = one.stopped or one.said
            ElementTree.SubElement(case, "failure", message=said, type="mismatch").text = said
    return suite
