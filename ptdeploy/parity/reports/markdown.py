"""Markdown for a pull request's comment."""

from __future__ import annotations

import re

from ptdeploy.bundle import Manifest
from ptdeploy.parity.checks import checks, shown, totals
from ptdeploy.parity.report import ParityReport
from ptdeploy.parity.reports.words import (
    UNJUDGED,
    CaseGroup,
    grouped,
    located_words,
    of_prompt,
    outcome,
    own_words,
    verdict,
)
from ptdeploy.printable import printable_fields

# What starts markup within a line; a heading, a list or a fence starts a line, and no line of the
# report starts with words of others.
_MARKUP = re.compile(r"([\\`*_\[\]<>|~&@#])")


def render(report: ParityReport, manifest: Manifest) -> str:
    """The verdict first, then the numbers; what does not fit a glance is folded away."""
    report, manifest = printable_fields(report), printable_fields(manifest)
    mark = "✅" if report.passed else "❌"
    lines = [
        f"### {mark} {verdict(report).capitalize()}: {_plain(manifest.base.name)}",
        "",
        f"{manifest.task.value}, "
        + _plain(f"{report.target} {report.precision} on {report.device}, ")
        + f"against {_plain(report.reference)}",
        "",
    ]
    if report.prompts:
        lines += [
            line for one in report.each() for line in _prompt(one, of_prompt(one).capitalize())
        ]
    else:
        lines += _prompt(report)
    return "\n".join(lines)


def _prompt(report: ParityReport, title: str = "") -> list[str]:
    """What was found of one prompt."""
    mark = "✅" if report.passed else "❌"
    lines = [f"#### {mark} {_plain(title)}", ""] if title else []
    lines += [
        "| case | runs | longest | max abs | KL | top-1 | |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    lines += [
        f"| {_plain(g.name)} | {g.count} | {g.longest} | {shown(g.max_abs)} | {shown(g.kl)} "
        f"| {g.top1_agreement:.2%} | {_outcome(g)} |"
        for g in grouped(report)
    ]
    lines.append("")
    lines += [" ".join(_facts(report)), ""]
    if not report.passed:
        failures = report.failures()
        lines += [f"- {_plain(failure)}" for failure in failures[:10]]
        if len(failures) > 10:
            lines.append(f"- and {len(failures) - 10} more")
        lines.append("")
    if report.located is not None:
        lines += ["```", *located_words(report.located), "```", ""]
    if report.failing is not None:
        lines += ["Reproduce the smallest failing input:", "", "```sh", report.failing.command]
        lines += ["```", ""]
    if report.notes:
        lines += [
            "<details><summary>Notes</summary>",
            "",
            *(f"- {_plain(n)}" for n in report.notes),
        ]
        lines += ["", "</details>", ""]
    return lines


def _outcome(group: CaseGroup) -> str:
    if not group.passed:
        return f"**{outcome(group)}**"
    return "ok" if group.judged else outcome(group)


def _facts(report: ParityReport) -> list[str]:
    facts = []
    if not report.judges_cases:
        facts.append(f"{UNJUDGED.capitalize()}.")
    if report.largest_allowed is not None:
        facts.append(f"Allowed max abs: {report.largest_allowed:.3g}.")
    if report.own_allowed is not None:
        facts.append(f"{own_words(report.own_allowed).capitalize()}.")
    facts += [
        f"Greedy tokens: {one.value} agree."
        for one in totals(report)
        if one.kind == "greedy tokens"
    ]
    for one in checks(report):
        if one.kind == "tokenizer":
            facts.append(f"Tokenizer: {one.value} texts alike.")
        elif one.kind == "quality" and one.value:
            facts.append(f"{_plain(one.value.capitalize())}.")
        elif one.kind == "data" and report.data is not None:
            beside = f" ({one.bound})" if one.bound else ""
            facts.append(
                f"{_plain(one.name.capitalize())} on {report.data.rows} rows of the given data: "
                f"{one.value}{beside}."
            )
    return facts


def _plain(text: str) -> str:
    """Words of others, so that they stand there as they are: no link, table cell or mention."""
    return _MARKUP.sub(r"\\\1", text)
