"""JUnit XML: one test case for each comparison, as CI services read it."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import Counter

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
    seen: Counter[tuple[str, str]] = Counter()
    suite = ElementTree.Element(
        "testsuite",
        name=f"ptdeploy parity{of}",
        tests=str(len(found)),
        failures=str(len(failed)),
        errors="0",
        skipped="0",
    )
    for one in found:
        # Services merge test cases of one name, whatever suite they are in.
        seen[one.kind, one.name] += 1
        times = seen[one.kind, one.name]
        name = f"{one.name}{of}" + (f" ({times})" if times > 1 else "")
        case = ElementTree.SubElement(
            suite, "testcase", classname=f"parity.{one.kind}", name=name, time="0"
        )
        if not one.passed:
            said = one.stopped or one.said
            ElementTree.SubElement(case, "failure", message=said, type="mismatch").text = said
    return suite
