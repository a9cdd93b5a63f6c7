"""A report on a terminal."""

from __future__ import annotations

from ptdeploy.parity.checks import Check, checks
from ptdeploy.parity.report import ParityReport
from ptdeploy.parity.reports.words import (
    UNJUDGED,
    grouped,
    located_words,
    of_prompt,
    outcome,
    own_words,
    verdict,
)
from ptdeploy.printable import printable_fields
from ptdeploy.tables import columns


def describe(report: ParityReport) -> str:
    """The report in lines of text, the verdict last."""
    report = printable_fields(report)
    if not report.prompts:
        lines = _lines(report)
    else:
        lines = [line for one in report.each() for line in (of_prompt(one), *_lines(one))]
    lines.append(verdict(report) if report.passed else verdict(report).upper())
    return "\n".join(lines)


def _lines(report: ParityReport) -> list[str]:
    lines = _cases(report)
    if not report.judges_cases:
        lines.append(UNJUDGED)
    if report.own_allowed is not None:
        lines.append(own_words(report.own_allowed))
    lines += [_said(report, one) for one in checks(report) if one.kind != "logits" and one.value]
    bound = (
        "" if report.largest_allowed is None else f"allowed max abs {report.largest_allowed:.2g}; "
    )
    lines.append(f"{bound}reference: {report.reference}")
    faults = report.faults()
    lines += faults
    failures = [] if report.passed else report.failures()[len(faults) :]
    lines += [f"mismatch: {failure}" for failure in failures[:12]]
    if len(failures) > 12:
        lines.append(f"mismatch: and {len(failures) - 12} more")
    lines += [f"note: {note}" for note in report.notes]
    if report.located is not None:
        lines += located_words(report.located)
    if report.failing is not None:
        lines.append(
            f"smallest failing input: {len(report.failing.lengths)} row(s) of "
            f"{', '.join(map(str, report.failing.lengths))} tokens, {report.failing.file}"
        )
        lines.append(f"reproduce: {report.failing.command}")
    return lines


def _cases(report: ParityReport) -> list[str]:
    head = ("case", "runs", "longest", "max abs", "mean abs", "KL", "top-1", "")
    rows = [
        (
            group.name,
            str(group.count),
            str(group.longest),
            *map(_short, (group.max_abs, group.mean_abs, group.kl)),
            f"{group.top1_agreement:.2%}",
            "" if group.passed else f"  {outcome(group).upper()}",
        )
        for group in grouped(report)
    ]
    return columns([head, *rows], (28, 5, 8, 10, 10, 10, 9, 0), right=range(1, 7), gap="")


def _said(report: ParityReport, one: Check) -> str:
    if one.kind == "greedy tokens":
        return f"greedy tokens, {one.name}: {one.value} agree"
    if one.kind == "tokenizer":
        return f"tokenizer: {one.said}"
    beside = f", {one.bound}" if one.bound else ""
    if one.kind == "quality":
        return one.value + beside
    assert report.data is not None, "what else is checked are cases, which have a table"
    return f"{one.name} on {report.data.rows} rows of the given data: {one.value}{beside}"


def _short(number: float | None) -> str:
    return "not finite" if number is None else f"{number:.2g}"
