"""What a report checked, and what fails, in words: computed here once, for every form of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ptdeploy.bundle import Quantization
from ptdeploy.parity.quality import TOP1, Quality

if TYPE_CHECKING:
    from ptdeploy.parity.report import CaseResult, ParityReport

Kind = Literal["logits", "greedy tokens", "tokenizer", "quality", "data"]

# A share of changed answers that agreement should not miss, and one of texts in a single class.
_COARSE, _ONE_CLASS = 0.15, 0.9


@dataclass(frozen=True)
class Check:
    """One thing that was checked: what came out, what was allowed, and what to say of it.

    `value` is the measured fact in words, `bound` what it may be, empty where it speaks for itself.
    `fails` are sentences on what does not hold, none where it passes or where the engine `stopped`
    and gave no numbers that could be wrong.
    """

    kind: Kind
    name: str
    passed: bool
    value: str
    bound: str = ""
    fails: tuple[str, ...] = ()
    stopped: str | None = None


def checks(report: ParityReport) -> list[Check]:
    """Every single check of a report, in the order they were run."""
    return [
        *(_case(report, case) for case in report.cases),
        *_greedy(report),
        *_tokenizer(report),
        *_quality(report),
        *_data(report),
    ]


def totals(report: ParityReport) -> list[Check]:
    """The report at a glance: one check for each kind of number, at its worst or summed."""
    finite = all(case.max_abs is not None for case in report.cases)
    allowed = report.largest_allowed
    beyond = not finite or (allowed is not None and report.max_abs > allowed)
    within = sum(case.passed for case in report.cases)
    agreement = report.top1_agreement
    found = [
        Check(
            "logits",
            "max abs of logits",
            not beyond,
            f"{report.max_abs:.2g}" if finite else "not finite",
            "" if allowed is None else f"{allowed:.2g}",
        ),
        Check("logits", "smallest top-1 agreement", not agreement < 1, f"{agreement:.2%}"),
        Check(
            "logits",
            "cases within thresholds",
            within == len(report.cases),
            f"{within} of {len(report.cases)}",
        ),
    ]
    if report.greedy:
        agreed = sum(one.agreed for one in report.greedy)
        total = sum(one.total for one in report.greedy)
        found.append(
            Check("greedy tokens", "greedy tokens agree", agreed == total, f"{agreed} of {total}")
        )
    return [*found, *_tokenizer(report), *_data(report)]


def faults(report: ParityReport) -> list[str]:
    """Why the engine failed, each reason once, with how often and where first."""
    found: dict[str, list[str]] = {}
    for case in report.cases:
        if case.stopped:
            where = f"{case.name}, lengths {list(case.lengths)}"
            found.setdefault(case.stopped, []).append(where)
    for one in report.greedy:
        if one.stopped:
            where = f"greedy tokens of a row of {one.length}"
            found.setdefault(one.stopped, []).append(where)
    return [
        f"the engine failed in {len(where)} of {len(report.runs)} runs, first in {where[0]}: "
        f"{reason}"
        for reason, where in found.items()
    ]


def failures(report: ParityReport) -> list[str]:
    """Where the engine failed and what does not hold; cases on your own data first."""
    own_first = sorted(report.cases, key=lambda case: case.source != "data")
    found = [
        *(_case(report, case) for case in own_first),
        *_greedy(report),
        *_tokenizer(report),
        *_data(report),
        *_quality(report),
    ]
    return [*faults(report), *(sentence for one in found for sentence in one.fails)]


def _case(report: ParityReport, case: CaseResult) -> Check:
    lengths = f"lengths {list(case.lengths)}"
    numbers = f"max abs {shown(case.max_abs)}, KL {shown(case.kl)}"
    fails = f"{case.name}, {lengths}: {numbers}, top-1 agreement {case.top1_agreement:.4f}"
    return Check(
        "logits",
        f"{case.name}, rows {list(case.rows)}, {lengths}",
        case.passed,
        numbers,
        "" if report.largest_allowed is None else f"{report.largest_allowed:.3g}",
        () if case.passed or case.stopped else (fails,),
        case.stopped,
    )


def _greedy(report: ParityReport) -> list[Check]:
    return [
        Check(
            "greedy tokens",
            f"row of {one.length}",
            one.passed,
            f"{one.agreed} of {one.total}",
            fails=()
            if one.passed or one.stopped
            else (f"greedy tokens of a row of {one.length}: {one.agreed} of {one.total} agree",),
            stopped=one.stopped,
        )
        for one in report.greedy
    ]


def _tokenizer(report: ParityReport) -> list[Check]:
    agreed, total = report.texts_agreed, report.texts_total
    if not total:
        return []
    fails = f"tokenizer: {total - agreed} of {total} texts give other token ids"
    return [
        Check(
            "tokenizer",
            "texts encode alike",
            agreed == total,
            f"{agreed} of {total}",
            fails=(fails,) if agreed < total else (),
        )
    ]


def _data(report: ParityReport) -> list[Check]:
    data = report.data
    if data is None:
        return []
    fails = f"{data.name} on the given data: {shown(data.engine)}"
    if data.reference:
        fails += f", PEFT {shown(data.reference)}"
    return [
        Check(
            "data",
            data.name,
            data.passed,
            shown(data.engine),
            "" if data.reference is None else f"PEFT {data.reference:.4f}",
            () if data.passed else (fails,),
        )
    ]


def _quality(report: ParityReport) -> list[Check]:
    if report.quality_allowed is None:
        return []
    fails = tuple(quantization_failures(report.quality, report.quality_allowed))
    value = "" if report.quality is None else quantization_words(report.quality)
    return [Check("quality", "rounded weights", not fails, value, fails=fails)]


def quantization_failures(quality: Quality | None, allowed: Quantization | None) -> list[str]:
    """Where a quantized engine falls short of what its manifest asks for, in words."""
    if allowed is None:
        return []
    if quality is None:
        return ["the reference holds no text to judge rounded weights on"]
    lines = []
    # NaN compares false with everything, so each bound is written as what must hold.
    if not quality.top1_agreement >= allowed.min_agreement:
        lines.append(
            f"{quality.measured} {quality.top1_agreement:.4f} on {quality.judged_on}, "
            f"but {allowed.min_agreement} is asked for (--min-agreement)"
        )
    error, most = quality.logits_error, allowed.max_logits_error
    if error is not None and most is not None and not error <= most:
        lines.append(
            f"logits error {error:.4f} on {quality.judged_on}, "
            f"but at most {most} is asked for (--max-logits-error)"
        )
    ratio = quality.perplexity_ratio
    if ratio is not None and not ratio <= allowed.max_perplexity_ratio:
        lines.append(
            f"perplexity {ratio:.4f} times the reference's on {quality.judged_on}, "
            f"but at most {allowed.max_perplexity_ratio} is asked for (--max-perplexity-ratio)"
        )
    return lines


def quality_notes(quality: Quality | None) -> list[str]:
    """Where agreement alone would say little, in words."""
    if quality is None or quality.measured != TOP1:
        return []
    notes = []
    if quality.detectable is None or quality.detectable > _COARSE:
        share = "any number" if quality.detectable is None else f"{quality.detectable:.0%}"
        notes.append(
            f"agreement at {quality.positions} positions is a coarse measure: a fault that changes "
            f"{share} of the answers could pass it."
        )
    if quality.largest_share is not None and quality.largest_share >= _ONE_CLASS:
        notes.append(
            f"the reference finds one class in {quality.largest_share:.0%} of {quality.judged_on}: "
            + (
                "agreement says little, the logits error decides."
                if quality.logits_error is not None
                else "agreement says little."
            )
        )
    return notes


def quantization_words(quality: Quality) -> str:
    """What quantizing the weights cost."""
    seen = ""
    if quality.detectable is not None:
        seen += f" (a fault in {quality.detectable:.1%} of the answers would be seen)"
    if quality.logits_error is not None:
        seen += f", logits error {quality.logits_error:.2g}"
    return (
        f"rounded weights on {quality.judged_on}: {quality.measured} "
        f"{quality.top1_agreement:.2%} at {quality.positions} positions of {quality.texts} texts"
        f"{seen}{ratio_words(quality.perplexity_ratio)}"
    )


def ratio_words(ratio: float | None) -> str:
    """What quantization did to the perplexity, to go on from other words; nothing where unknown."""
    return "" if ratio is None else f", perplexity {ratio:.3f} times the reference's"


def shown(number: float | None) -> str:
    """A measure in words: NaN and infinity are named."""
    return "not finite" if number is None else f"{number:.3g}"


def of_kind(found: Sequence[Check], kind: Kind) -> list[Check]:
    """The checks of one kind, in their order."""
    return [one for one in found if one.kind == kind]
