"""JUnit XML: one test case for each comparison, as CI services read it."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from ptdeploy.parity.checks import checks
from ptdeploy.parity.report import ParityReport
from ptdeploy.printable import printable_fields


def render(report: ParityReport) -> bytes:
    """A test suite whose failures are the checks that do not pass."""
    report = printable_fields(report)
    found = checks(report)
    failed = [one for one in found if not one.passed]
    suite = ElementTree.Element(
        "testsuite",
        name="ptdeploy parity",
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
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    ElementTree.indent(suites)
    document: bytes = ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)
    return document + b"\n"
