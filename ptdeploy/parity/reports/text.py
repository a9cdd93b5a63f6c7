"""A report on a terminal."""

from __future__ import annotations

from ptdeploy.parity.checks import Check, checks
from ptdeploy.parity.report import ParityReport
from ptdeploy.parity.reports.words import grouped, located_words, outcome, verdict
from ptdeploy.printable import printable_fields


def describe(report: ParityReport) -> str:
    """The report in lines of text, the verdict last."""
    report = printable_fields(report)
    lines = [
        f"{'case':<28}{'runs':>5}{'longest':>8}{'max abs':>10}{'mean abs':>10}{'KL':>10}"
        f"{'top-1':>9}"
    ]
    lines += [
        f"{group.name:<28}{group.count:>5}{group.longest:>8}{_short(group.max_abs):>10}"
        f"{_short(group.mean_abs):>10}{_short(group.kl):>10}{group.top1_agreement:>9.2%}"
        f"{'' if group.passed else f'  {outcome(group).upper()}'}"
        for group in grouped(report)
    ]
    lines += [_said(report, one) for one in checks(report) if one.kind != "logits" and one.value]
    bound = (
        "" if report.largest_allowed is None else f"allowed max abs {report.largest_allowed:.2g}; "
    )
    lines.append(f"{bound}reference: {report.reference}")
    faults = report.faults()
    lines += faults
    failures = [] if report.passed else report.failures()[len(faults) :]
    lines += [f"departs: {failure}" for failure in failures[:12]]
    if len(failures) > 12:
        lines.append(f"departs: and {len(failures) - 12} more")
    lines += [f"note: {note}" for note in report.notes]
    if report.located is not None:
        lines += located_words(report.located)
    if report.failing is not None:
        lines.append(
            f"smallest failing input: {len(report.failing.lengths)} row(s) of "
            f"{', '.join(map(str, report.failing.lengths))} tokens, {report.failing.file}"
        )
        lines.append(f"reproduce: {report.failing.command}")
    lines.append(verdict(report) if report.passed else verdict(report).upper())
    return "\n".join(lines)


def _said(report: ParityReport, one: Check) -> str:
    if one.kind == "greedy tokens":
        return f"greedy tokens, {one.name}: {one.value} agree"
    if one.kind == "tokenizer":
        return f"tokenizer: {one.said}"
    if one.kind == "quality":
        return one.value
    assert report.data is not None, "what else is checked are cases, which have a table"
    beside = f", {one.bound}" if one.bound else ""
    return f"{one.name} on {report.data.rows} rows of the given data: {one.value}{beside}"


def _short(number: float | None) -> str:
    return "not finite" if number is None else f"{number:.2g}"
