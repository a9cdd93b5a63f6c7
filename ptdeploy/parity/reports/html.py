"""One page that stands alone: what `report.html.j2` shows, prepared."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from ptdeploy.bundle import Manifest
from ptdeploy.parity.checks import checks, shown, totals
from ptdeploy.parity.measure import finite
from ptdeploy.parity.report import ModuleError, ParityReport
from ptdeploy.parity.reports import plots
from ptdeploy.parity.reports.words import (
    UNJUDGED,
    grouped,
    of_prompt,
    outcome,
    own_words,
    threshold_words,
    verdict,
)
from ptdeploy.printable import number_of, printable_fields


def render(report: ParityReport, manifest: Manifest) -> str:
    """The whole page. All words in it are escaped: the template's own are its only markup."""
    from jinja2 import Environment, StrictUndefined

    report, manifest = printable_fields(report), printable_fields(manifest)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters.update(shown=shown, outcome=outcome, tenth=lambda x: f"{x:.1f}")
    source = (files("ptdeploy.parity.reports") / "report.html.j2").read_text("utf-8")
    return environment.from_string(source).render(
        report=report,
        manifest=manifest,
        outcome=verdict(report).capitalize(),
        totals=totals(report),
        failures=report.failures(),
        located=report.located,
        width=plots.WIDTH,
        histograms=_histograms(report),
        positions=_positions(report) if report.positions else None,
        layers=_layers(report.located.modules)
        if report.located and report.located.modules
        else None,
        steps=_steps(report) if report.greedy else None,
        groups=grouped(report),
        unjudged="" if report.judges_cases else UNJUDGED,
        prompts=[(one, of_prompt(one), verdict(one)) for one in report.each()]
        if report.prompts
        else [],
        about=_about(report, manifest),
    )


def _histograms(report: ParityReport) -> plots.Plot:
    bars = [plots.Bar(f"{g.name} x{g.count}", g.histogram, g.passed) for g in grouped(report)]
    return plots.histograms(bars, report.histogram_edges, _allowed(report))


def _positions(report: ParityReport) -> plots.Plot:
    allowed = report.largest_allowed
    points = [
        plots.Point(
            one.max_abs,
            f"{_tokens(one.first, one.last)}: {shown(one.max_abs)}",
            allowed is not None and (one.max_abs is None or one.max_abs > allowed),
        )
        for one in report.positions
    ]
    places = [str(one.first) for one in report.positions]
    return plots.scatter(points, places, _allowed(report), "token of the row", bars=True)


def _allowed(report: ParityReport) -> float | None:
    """Where the plots draw what is allowed; bounds that a bundle brings may add up to infinity."""
    return None if report.largest_allowed is None else finite(report.largest_allowed)


def _layers(modules: Sequence[ModuleError]) -> plots.Plot:
    points = [
        plots.Point(
            one.relative, f"{one.what} of {one.module}: {shown(one.relative)}", one.mismatch
        )
        for one in modules
    ]
    title = "tensor, as PyTorch computes them"
    return plots.scatter(points, _layer_marks(modules), None, title, bars=False)


def _layer_marks(modules: Sequence[ModuleError]) -> list[str]:
    """The layer's number at the first tensor of each layer."""
    marks, before = [], ""
    for one in modules:
        number = next((part for part in one.module.split(".") if part.isdigit()), "")
        marks.append(number if number != before else "")
        before = number
    return marks


def _steps(report: ParityReport) -> plots.Plot:
    steps = max(one.total for one in report.greedy)
    shares = [
        plots.Share(
            sum(one.agreed > step for one in report.greedy) / len(report.greedy),
            any(not one.passed and one.agreed <= step for one in report.greedy),
        )
        for step in range(steps)
    ]
    return plots.agreement(shares)


def _about(report: ParityReport, manifest: Manifest) -> list[tuple[str, str]]:
    prompt = manifest.prompt
    facts = [
        (
            "Checkpoint",
            f"{prompt.source.format}, adapter {prompt.source.adapter}",
        ),
        ("Prompt", _prompt_words(manifest)),
        ("Graph", f"{manifest.graph.route}: {manifest.graph.reason}"),
        ("Versions", ", ".join(f"{n} {v}" for n, v in sorted(manifest.versions.items()))),
    ]
    if report.thresholds is not None:
        facts.append(("Thresholds", threshold_words(report.thresholds)))
    if report.own_allowed is not None:
        facts.append(("Thresholds", own_words(report.own_allowed)))
    quality = [one.value for one in checks(report) if one.kind == "quality" and one.value]
    facts += [("Quantization", words) for words in quality]
    return facts + [("Note", note) for note in report.notes]


def _prompt_words(manifest: Manifest) -> str:
    prompt = manifest.prompt
    if manifest.default_prompt is None:
        return prompt.kind
    tokens = number_of(prompt.num_virtual_tokens, "virtual token")
    return f"{manifest.default_prompt}: {tokens}, {prompt.kind}"


def _tokens(first: int, last: int) -> str:
    return f"token {first}" if first == last else f"tokens {first} to {last}"
