"""What the forms of a report have in common: cases by kind, the verdict, where it goes wrong."""

from __future__ import annotations

from dataclasses import dataclass

from ptdeploy.bundle.precision import FINITE, Thresholds
from ptdeploy.parity.checks import checks
from ptdeploy.parity.report import Located, ParityReport

UNJUDGED = "rows alone are not judged: quantized weights are held to what much text says"


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
    judged: bool
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
                report.judges_cases or all(map(report.holds_to_own, cases)),
                sum(case.stopped is not None for case in cases),
            )
        )
    return groups


def of_prompt(report: ParityReport) -> str:
    """Whose a report is, where there are several."""
    return "without a prompt" if report.prompt is None else f"prompt {report.prompt!r}"


def verdict(report: ParityReport) -> str:
    """The outcome in a few words; an engine that fails gives no numbers that could be wrong."""
    if report.passed:
        return "parity holds"
    every = [report, *report.prompts]
    runs = [run for one in every for run in one.runs]
    wrong = any(not run.passed and not run.stopped for run in runs)
    if any(one.engine_failed for one in every):
        return "the engine fails" + (", and there is a parity mismatch" if wrong else "")
    failed = [(each, one) for each in every for one in checks(each) if not one.passed]
    if failed and all(one.kind == "data" and _misses_bounds(each) for each, one in failed):
        return "parity holds, but a bound on the given data does not"
    return "parity mismatch"


def _misses_bounds(report: ParityReport) -> bool:
    """Whether what is measured on the given data misses a bound; one that is not finite has none
    to miss."""
    return report.data is not None and bool(report.data.missed)


def located_words(located: Located) -> list[str]:
    """Where it goes wrong, in a few lines."""
    if not located.module:
        return [f"located: {located.cause}"]
    lines = [
        f"located: {located.module} is the first mismatch, of {located.compared} tensors compared",
        f"  operator {located.operator} ({located.dtype})",
    ]
    if len(located.operators) > 1:
        lines.append(f"  between what agrees and it: {', '.join(located.operators)}")
    return [*lines, f"  likely cause: {located.cause or 'unknown'}"]


def own_words(allowed: float) -> str:
    """What a quantized engine is held to where it does not run a row alone and at once."""
    return (
        "beside other rows, or continued, a row is held to what the engine gives for it alone: "
        f"allowed {allowed:.2g}"
    )


def outcome(group: CaseGroup) -> str:
    """What came of a group's cases, in a word or two."""
    if group.failed:
        return "fails"
    if not group.passed:
        return "mismatch"
    return "holds" if group.judged else "not judged"


def threshold_words(found: Thresholds) -> str:
    """What cases are held to, without bounds that every finite number keeps."""
    words = []
    if found.max_abs < FINITE.max_abs:
        words.append(f"max abs {found.max_abs:g} + {found.relative:g} of the largest logit")
    if found.cosine > FINITE.cosine:
        words.append(f"cosine {found.cosine:g}")
    if found.kl < FINITE.kl:
        words.append(f"KL {found.kl:g}")
    if found.min_top1_agreement > 0:
        words.append(f"top-1 agreement {found.min_top1_agreement:.2%}")
    return ", ".join(words)


def _largest(numbers: list[float | None]) -> float | None:
    return None if None in numbers else max(n for n in numbers if n is not None)
