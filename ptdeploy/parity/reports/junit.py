"""JUnit XML: one test case for each comparison, as CI services read it."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from ptdeploy.parity.checks import quantization_failures, shown
from ptdeploy.parity.report import ParityReport
from ptdeploy.printable import printable_fields


def render(report: ParityReport) -> bytes:
    """A test suite whose failures are what departs."""
    report = printable_fields(report)
    found: list[tuple[str, str, str]] = []
    for case in report.cases:
        said = f"max abs {shown(case.max_abs)}, KL {shown(case.kl)}"
        allowed = (
            "" if report.largest_allowed is None else f", allowed {report.largest_allowed:.3g}"
        )
        name = f"{case.name}, rows {list(case.rows)}, lengths {list(case.lengths)}"
        departs = "" if case.passed else said + allowed
        found.append(("logits", name, case.stopped or departs))
    for one in report.greedy:
        said = "" if one.passed else f"{one.agreed} of {one.total} tokens agree"
        found.append(("greedy tokens", f"row of {one.length}", one.stopped or said))
    if report.texts_total:
        said = f"{report.texts_agreed} of {report.texts_total} texts encode alike"
        found.append(
            ("tokenizer", "texts", "" if report.texts_agreed == report.texts_total else said)
        )
    if report.quality_allowed is not None:
        said = "; ".join(quantization_failures(report.quality, report.quality_allowed))
        found.append(("quality", "rounded weights", said))
    if report.data is not None:
        said = (
            "" if report.data.passed else f"{shown(report.data.engine)} on {report.data.rows} rows"
        )
        found.append(("data", report.data.name, said))
    failed = [one for one in found if one[2]]
    suite = ElementTree.Element(
        "testsuite",
        name="ptdeploy parity",
        tests=str(len(found)),
        failures=str(len(failed)),
        errors="0",
        skipped="0",
    )
    for kind, name, said in found:
        case_element = ElementTree.SubElement(
            suite, "testcase", classname=f"parity.{kind}", name=name, time="0"
        )
        if said:
            ElementTree.SubElement(
                case_element, "failure", message=said, type="departs"
            ).text = said
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    ElementTree.indent(suites)
    document: bytes = ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)
    return document + b"\n"
