"""What a report checked, and what fails, in words: computed here once, for every form of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import msgspec

from ptdeploy.bundle import Quantization
from ptdeploy.parity.effect import MOST_MISSING, apart_words, effect_words, missing_words
from ptdeploy.parity.quality import TOP1, Quality

if TYPE_CHECKING:
    from ptdeploy.parity.report import CaseResult, ParityReport

Kind = Literal["logits", "greedy tokens", "tokenizer", "quality", "data"]

# A share of changed answers that agreement should not miss, and one of texts in a single class.
_COARSE, _ONE_CLASS = 0.15, 0.9


@dataclass(frozen=True)
class Check:
    """One thing that was checked: what came out, what was allowed, and what to say of it.

    `value` is the measured fact, `bound` what it was held against, empty where it speaks for
    itself, and `said` both as a phrase. `fails` are sentences on what does not hold: none where it
    passes, nor where the engine `stopped` and gave no numbers that could be wrong.
    """

    kind: Kind
    name: str
    passed: bool
    value: str
    bound: str = ""
    said: str = ""
    fails: tuple[str, ...] = ()
    stopped: str | None = None


def alone(report: ParityReport) -> ParityReport:
    """A report without those of other prompts."""
    if not report.prompts:
        return report
    passed = all(one.passed for one in checks(report))
    return msgspec.structs.replace(report, prompts=(), passed=passed)


def checks(report: ParityReport) -> list[Check]:
    """Every single check of a report's own prompt, in the order they were run."""
    return [
        *(_case(report, case) for case in report.cases),
        *_greedy(report),
        *_tokenizer(report),
        *_quality(report),
        *_effects(report),
        *_data(report),
    ]


def totals(report: ParityReport) -> list[Check]:
    """The report at a glance: a check for each kind of number, at its worst or summed up.

    Their names are what the value counts: "5 of 5", "texts encode alike".
    """
    finite = all(case.max_abs is not None for case in report.cases)
    allowed = report.largest_allowed
    within = sum(case.passed for case in report.cases)
    agreement = report.top1_agreement
    found = [
        Check(
            "logits",
            "max abs of logits",
            finite and (allowed is None or report.max_abs <= allowed),
            f"{report.max_abs:.2g}" if finite else "not finite",
            "" if allowed is None else f"allowed {allowed:.2g}",
        ),
        Check(
            "logits",
            "smallest top-1 agreement",
            # Near ties may go either way: whether it is enough, each case says.
            all(case.passed for case in report.cases if case.top1_agreement < 1),
            f"{agreement:.2%}",
        ),
        Check(
            "logits",
            "cases within thresholds" if report.judges_cases else "cases pass",
            within == len(report.cases),
            f"{within} of {len(report.cases)}",
        ),
    ]
    if report.greedy:
        agreed = sum(one.agreed for one in report.greedy)
        total = sum(one.total for one in report.greedy)
        found.append(
            Check(
                "greedy tokens",
                "greedy tokens agree",
                all(one.passed for one in report.greedy),
                f"{agreed} of {total}",
            )
        )
    found += _quality_totals(report)
    found += [
        Check(
            "quality",
            f"of {apart_words(one)} missing",
            one.passed,
            missing_words(one),
            f"at most {MOST_MISSING:.0%}",
        )
        for one in report.effects
    ]
    found += [replace(one, name="texts encode alike") for one in _tokenizer(report)]
    data = report.data
    if data is not None:
        found += [replace(one, name=f"{data.name} on {data.rows} rows") for one in _data(report)]
    return found


def _quality_totals(report: ParityReport) -> Iterator[Check]:
    quality, allowed = report.quality, report.quality_allowed
    if allowed is None:
        return
    if quality is None or quality.stopped:
        value = "none" if quality is None else "not finite"
        yield Check("quality", "quantized weights on evaluation text", False, value)
        return
    for one in _asked(quality, allowed):
        name = one.name
        if one.unit == "agreement":
            name = f"{name} {_of_answers(quality)}"
        yield Check("quality", name, one.holds, one.value, one.bound)


def faults(report: ParityReport) -> list[str]:
    """Why the engine failed, each reason once, with how often and where first."""
    return [*_faults(report), *_of_others(report, faults)]


def _of_others(
    report: ParityReport, sentences: Callable[[ParityReport], list[str]]
) -> Iterator[str]:
    for other in report.prompts:
        where = "without a prompt" if other.prompt is None else f"prompt {other.prompt!r}"
        yield from (f"{where}: {one}" for one in sentences(other))


def _faults(report: ParityReport) -> list[str]:
    found: dict[str, list[str]] = {}
    for case in report.cases:
        if case.stopped:
            where = f"{case.name}, lengths {list(case.lengths)}"
            found.setdefault(case.stopped, []).append(where)
    for one in report.greedy:
        if one.stopped:
            where = f"greedy tokens of a row of {one.length}"
            found.setdefault(one.stopped, []).append(where)
    lines = [
        f"the engine failed in {len(where)} of {len(report.runs)} runs, first in {where[0]}: "
        f"{reason}"
        for reason, where in found.items()
    ]
    scored = {}
    if report.quality is not None and report.quality.stopped:
        scored[report.quality.stopped] = report.quality.evaluated_on
    if report.data is not None and report.data.stopped:
        scored[report.data.stopped] = "the given data"
    return lines + [
        f"the engine failed on {where}: {reason}"
        for reason, where in scored.items()
        if reason not in found
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
        *_effects(report),
    ]
    own = [*_faults(report), *(sentence for one in found for sentence in one.fails)]
    return [*own, *_of_others(report, failures)]


def _case(report: ParityReport, case: CaseResult) -> Check:
    allowed = report.largest_allowed
    bound = "" if allowed is None else f"allowed {allowed:.3g}"
    lengths = f"lengths {list(case.lengths)}"
    value = f"max abs {shown(case.max_abs)}, KL {shown(case.kl)}"
    said = f"{value}, {bound}" if bound else value
    fails = f"{case.name}, {lengths}: {value}, top-1 agreement {case.top1_agreement:.4f}"
    if (output := case.output) is not None:
        apart = (
            f"; output {output.output} is {shown(output.max_abs)} off, allowed {output.allowed:.3g}"
        )
        said, fails = said + apart, fails + apart
    own = report.own_allowed
    if own is not None and case.held_to_own:
        apart = f"{shown(case.own_max_abs)} from the engine's own rows alone"
        bound = f"allowed {own:.3g}"
        said += f"; {apart}, {bound}"
        if case.own_max_abs is None or case.own_max_abs > own:
            fails += f"; {apart}, {bound}"
        if (output := case.own_output) is not None:
            fails += (
                f"; output {output.output} is {shown(output.max_abs)} from the engine's own rows "
                f"alone, allowed {output.allowed:.3g}"
            )
    return Check(
        kind="logits",
        name=f"{case.name}, rows {list(case.rows)}, {lengths}",
        passed=case.passed,
        value=value,
        bound=bound,
        said=said,
        fails=() if case.passed or case.stopped else (fails,),
        stopped=case.stopped,
    )


def _greedy(report: ParityReport) -> Iterator[Check]:
    for one in report.greedy:
        value, own, bound = f"{one.agreed} of {one.total}", "", ""
        name = f"row of {one.length}"
        name += ", without a prompt" if one.without_prompt else ""
        name += ", mixed prompts" if one.mixed else ""
        fails = f"greedy tokens of a {name}: {value} agree"
        if report.decode_allowed is not None and not one.stopped:
            bound = f"allowed {report.decode_allowed:.3g}"
            found = [f"log probabilities {shown(one.steps_apart)} off"]
            measured = [one.steps_apart]
            if one.agreed < one.total:
                found.append(f"a token {shown(one.behind)} below the likeliest")
                measured.append(one.behind)
            own = (
                "; given the text and its tokens at once, the engine finds "
                f"{' and '.join(found)}, {bound}"
            )
            if any(number is None or number > report.decode_allowed for number in measured):
                fails += own
        yield Check(
            kind="greedy tokens",
            name=name,
            passed=one.passed,
            value=value,
            bound=bound,
            said=f"{value} tokens agree{own}",
            fails=() if one.passed or one.stopped else (fails,),
            stopped=one.stopped,
        )


def _tokenizer(report: ParityReport) -> Iterator[Check]:
    agreed, total = report.texts_agreed, report.texts_total
    if not total:
        return
    value = f"{agreed} of {total}"
    fails = f"tokenizer: {total - agreed} of {total} texts give other token ids"
    if report.first_other_text is not None:
        fails += f", the first of the given data's is row {report.first_other_text}"
    yield Check(
        kind="tokenizer",
        name="texts",
        passed=agreed == total,
        value=value,
        said=f"{value} texts encode alike",
        fails=(fails,) if agreed < total else (),
    )


def _quality(report: ParityReport) -> Iterator[Check]:
    if report.quality_allowed is None:
        return
    quality = report.quality
    stopped = None if quality is None else quality.stopped
    fails = [] if stopped else quantization_failures(quality, report.quality_allowed)
    yield Check(
        kind="quality",
        name="quantized weights",
        passed=not fails and not stopped,
        value="" if quality is None or stopped else quantization_words(quality),
        bound=_asked_of(quality, report.quality_allowed),
        said="; ".join(fails),
        fails=tuple(fails),
        stopped=stopped,
    )


def _effects(report: ParityReport) -> Iterator[Check]:
    for one in report.effects:
        value = effect_words(one)
        yield Check(
            kind="quality",
            name=apart_words(one),
            passed=one.passed,
            value=value,
            bound=f"at most {MOST_MISSING:.0%}",
            said=value,
            fails=() if one.passed else (f"{value}, but at most {MOST_MISSING:.0%} may be",),
        )


def _asked_of(quality: Quality | None, allowed: Quantization) -> str:
    """What a quantized engine is held to, of what was measured."""
    if quality is None:
        return ""
    asked = (f"{one.bound} {one.unit}" for one in _asked(quality, allowed))
    return f"asked for: {', '.join(asked)}"


def _data(report: ParityReport) -> Iterator[Check]:
    data = report.data
    if data is None:
        return
    value = _score(data.engine)
    bound = "" if data.reference is None else f"PEFT {_score(data.reference)}"
    fails = f"{data.name} on the given data: {value}" + (bound and f", {bound}")
    missed = f", but {' and '.join(data.missed)} is asked for" if data.missed else ""
    yield Check(
        kind="data",
        name=data.name,
        passed=data.passed,
        value=value,
        bound=bound,
        said=f"{value} on {data.rows} rows{missed}",
        fails=() if data.passed or data.stopped else (fails + missed,),
        stopped=data.stopped,
    )


def _score(number: float | None) -> str:
    """A metric on data, with as many digits as a bound on it."""
    return "not finite" if number is None else f"{number:.6g}"


def quantization_failures(quality: Quality | None, allowed: Quantization | None) -> list[str]:
    """Where a quantized engine falls short of what its manifest asks for, in words."""
    if allowed is None:
        return []
    if quality is None:
        return ["the reference holds no text to evaluate quantized weights on"]
    return [one.fails for one in _asked(quality, allowed) if not one.holds]


@dataclass(frozen=True)
class _Asked:
    """One bound of what quantized weights must keep; `unit` is what the bound is of, in words."""

    name: str
    value: str
    bound: str
    unit: str
    holds: bool
    fails: str


def _asked(quality: Quality, allowed: Quantization) -> Iterator[_Asked]:
    # NaN compares false with everything, so each bound is written as what must hold.
    least = allowed.min_agreement
    yield _Asked(
        quality.measured,
        f"{_agreement(quality):.2%}",
        f"at least {least:.2%}",
        "agreement",
        quality.top1_agreement >= least,
        f"{quality.measured} {quality.top1_agreement:.4f} on {quality.evaluated_on}, "
        f"but {least} is asked for (--min-agreement)",
    )
    error, most = quality.logits_error, allowed.max_logits_error
    if error is not None and most is not None:
        yield _Asked(
            "logits error",
            f"{error:.2g}",
            f"at most {most:g}",
            "logits error",
            error <= most,
            f"logits error {error:.4f} on {quality.evaluated_on}, "
            f"but at most {most} is asked for (--max-logits-error)",
        )
    ratio, most = quality.perplexity_ratio, allowed.max_perplexity_ratio
    if ratio is not None:
        yield _Asked(
            "times the reference's perplexity",
            f"{ratio:.3f}",
            f"at most {most:g}",
            "times the perplexity",
            ratio <= most,
            f"perplexity {ratio:.4f} times the reference's on {quality.evaluated_on}, "
            f"but at most {most} is asked for (--max-perplexity-ratio)",
        )


def _agreement(quality: Quality) -> float:
    """What is shown as agreement: of clear answers, or of all of them where none is clear."""
    return quality.agreement_of_all if quality.clear == 0 else quality.top1_agreement


def _of_answers(quality: Quality) -> str:
    """What an agreement is of, in words."""
    if quality.measured != TOP1:
        return f"over {quality.texts} texts"
    if quality.clear is None:
        return f"of {quality.positions} positions"
    if quality.clear == 0:
        return f"of {quality.positions} answers, none of them clear,"
    return f"of {quality.clear} clear answers"


def quality_notes(quality: Quality | None) -> list[str]:
    """Where agreement alone would say little, in words."""
    if quality is None or quality.measured != TOP1:
        return []
    notes = []
    if quality.detectable is None or quality.detectable > _COARSE:
        share = "any number" if quality.detectable is None else f"{quality.detectable:.0%}"
        positions = quality.positions if quality.clear is None else quality.clear
        notes.append(
            f"agreement at {positions} positions is a coarse measure: a fault that changes "
            f"{share} of the answers could pass it."
        )
    if quality.largest_share is not None and quality.largest_share >= _ONE_CLASS:
        notes.append(
            f"the reference finds one class in {quality.largest_share:.0%} of "
            f"{quality.evaluated_on}: "
            + (
                "agreement says little, the logits error decides."
                if quality.logits_error is not None
                else "agreement says little."
            )
        )
    return notes


def quantization_words(quality: Quality) -> str:
    """What quantizing the weights cost."""
    aside = []
    if quality.clear is not None and 0 < quality.clear < quality.positions:
        aside = [f"the others of {quality.positions} are near ties"]
    if quality.detectable is not None:
        aside.append(
            f"a fault that changes {quality.detectable:.1%} of the answers would be seen 19 times "
            "of 20"
        )
    seen = f" ({'; '.join(aside)})" if aside else ""
    if quality.logits_error is not None:
        seen += f", logits error {quality.logits_error:.2g}"
    return (
        f"quantized weights on {quality.evaluated_on}: {quality.measured} "
        f"{_agreement(quality):.2%} {_of_answers(quality)}{_in_texts(quality)}"
        f"{seen}{ratio_words(quality.perplexity_ratio)}"
    )


def _in_texts(quality: Quality) -> str:
    """How many texts answers were of, where that was not said."""
    return f" in {quality.texts} texts" if quality.measured == TOP1 else ""


def ratio_words(ratio: float | None) -> str:
    """What quantization did to the perplexity, to go on from other words; nothing where unknown."""
    return "" if ratio is None else f", perplexity {ratio:.3f} times the reference's"


def shown(number: float | None) -> str:
    """A measure in words: NaN and infinity are named."""
    return "not finite" if number is None else f"{number:.3g}"
