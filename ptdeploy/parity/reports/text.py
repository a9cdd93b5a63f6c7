"""A report on a terminal."""

from __future__ import annotations

from dataclasses import dataclass

from ptdeploy.parity.checks import quantization_words, shown
from ptdeploy.parity.report import Located, ParityReport
from ptdeploy.printable import printable_fields


@dataclass(frozen=True)
class CaseGroup:
    """All cases of one name, at their worst; None is a number that was not finite."""

    name: str
    count: int
    longest: int
    max_abs: float | None
    mean_abs: float | None
    kl: float | None
    top1_agreement: float
    histogram: tuple[int, ...]
    passed: bool
    failed: int = 0


def grouped(report: ParityReport) -> list[CaseGroup]:
    """The report's cases by name, in their order."""
    names = list(dict.fromkeys(case.name for case in report.cases))
    groups = []
    for name in names:
        cases = [case for case in report.cases if case.name == name]
        groups.append(
            CaseGroup(
                name,
                len(cases),
                max(max(case.lengths) for case in cases),
                _largest([case.max_abs for case in cases]),
                _largest([case.mean_abs for case in cases]),
                _largest([case.kl for case in cases]),
                min(case.top1_agreement for case in cases),
                tuple(map(sum, zip(*(case.histogram for case in cases), strict=True))),
                all(case.passed for case in cases),
                sum(case.stopped is not None for case in cases),
            )
        )
    return groups


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
    lines += [
        f"greedy tokens, row of {one.length}: {one.agreed} of {one.total} agree"
        for one in report.greedy
    ]
    if report.texts_total:
        lines.append(f"tokenizer: {report.texts_agreed} of {report.texts_total} texts encode alike")
    if report.quality is not None:
        lines.append(quantization_words(report.quality))
    if report.data is not None:
        theirs = "" if report.data.reference is None else f", PEFT {report.data.reference:.4f}"
        lines.append(
            f"{report.data.name} on {report.data.rows} rows of the given data: "
            f"{shown(report.data.engine)}{theirs}"
        )
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


def verdict(report: ParityReport) -> str:
    """The outcome in a few words; an engine that fails gives no numbers that could depart."""
    if report.passed:
        return "parity holds"
    departs = any(not one.passed and not one.stopped for one in report.runs)
    if report.engine_failed:
        return "the engine fails" + (" and parity departs" if departs else "")
    return "parity departs"


def located_words(located: Located) -> list[str]:
    """Where it goes wrong, in a few lines."""
    if not located.module:
        return [f"located: {located.cause}"]
    lines = [
        f"located: {located.module} departs first, of {located.compared} tensors compared",
        f"  operator {located.operator} ({located.dtype})",
    ]
    if len(located.operators) > 1:
        lines.append(f"  between what agrees and it: {', '.join(located.operators)}")
    return [*lines, f"  likely cause: {located.cause or 'unknown'}"]


def outcome(group: CaseGroup) -> str:
    """What came of a group's cases, in one word."""
    if group.failed:
        return "fails"
    return "holds" if group.passed else "departs"


def _largest(numbers: list[float | None]) -> float | None:
    return None if None in numbers else max(n for n in numbers if n is not None)


def _short(number: float | None) -> str:
    return "not finite" if number is None else f"{number:.2g}"
