"""One page that stands alone: no script, no font and no picture from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ptdeploy.bundle import Manifest
from ptdeploy.parity.checks import quantization_words, shown
from ptdeploy.parity.report import Located, ModuleError, ParityReport
from ptdeploy.parity.reports import svg
from ptdeploy.parity.reports.text import grouped, outcome, verdict
from ptdeploy.printable import printable_fields

_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1b2430; --soft: #5c6878;
  --rule: #e2e6ec; --good: #2f6fde; --bad: #d1373f; --ok: #1d7d4f; --code: #eef1f5; }
@media (prefers-color-scheme: dark) { :root { --page: #12161c; --card: #1b212a; --ink: #e8ecf1;
  --soft: #9aa6b5; --rule: #2e3743; --good: #6ea0f5; --bad: #f0666e; --ok: #4cc38a;
  --code: #252d38; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 860px; margin: 0 auto; padding: 28px 20px 60px; }
header { border-left: 6px solid var(--ok); padding: 2px 0 2px 16px; margin-bottom: 22px; }
header.departs { border-color: var(--bad); }
h1 { font-size: 24px; line-height: 1.25; margin: 0; }
header p { margin: 4px 0 0; color: var(--soft); overflow-wrap: anywhere; }
h2 { font-size: 16px; margin: 0 0 2px; }
section { background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 18px 20px; margin: 16px 0; }
section > p { color: var(--soft); margin: 0 0 12px; font-size: 14px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; }
.tile { background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 12px 16px; }
.tile b { display: block; font-size: 22px; font-weight: 600; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13px; }
.tile.bad b { color: var(--bad); }
svg { display: block; width: 100%; height: auto; font: 12px system-ui, sans-serif; }
svg .grid { stroke: var(--rule); } svg .limit { stroke: var(--ink);
  stroke-dasharray: 5 4; }
svg text { fill: var(--soft); } svg .label { fill: var(--ink); font-size: 13px; }
svg .limit-text { fill: var(--ink); paint-order: stroke; stroke: var(--card);
  stroke-width: 5px; }
svg .good { fill: var(--good); } svg .bad { fill: var(--bad); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 5px 8px; border-bottom: 1px solid var(--rule); }
th { color: var(--soft); font-weight: 500; font-size: 13px; }
th:first-child, td:first-child { text-align: left; }
tr:last-child td { border-bottom: 0; } .wide { overflow-x: auto; }
td.bad, b.bad { color: var(--bad); font-weight: 600; } td.ok { color: var(--ok); }
code, pre { background: var(--code); border-radius: 5px; font: 13px ui-monospace, Menlo, Consolas,
  monospace; } code { padding: 1px 5px; overflow-wrap: anywhere; }
pre { padding: 10px 12px; overflow-x: auto; margin: 8px 0 0; }
ul { margin: 6px 0 0; padding-left: 20px; } li { overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 16px; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
"""


def render(report: ParityReport, manifest: Manifest) -> str:
    """The whole page."""
    report, manifest = printable_fields(report), printable_fields(manifest)
    outcome = verdict(report).capitalize()
    title = f"{outcome}: {manifest.source.base_model}"
    parts = [
        f"<header{'' if report.passed else ' class=departs'}><h1>{escape(outcome)}</h1>"
        f"<p>{escape(manifest.source.base_model)}, {escape(manifest.task.value)}; "
        f"{escape(report.target)} {escape(report.precision)} on {escape(report.device)}, "
        f"against {escape(report.reference)}</p></header>",
        _tiles(report),
        _failures(report),
        "" if report.located is None else _located(report.located),
        _histograms(report),
        _positions(report),
        "" if report.located is None else _layers(report.located),
        _steps(report),
        _cases(report),
        _about(report, manifest),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body><main>"
        + "\n".join(part for part in parts if part)
        + "</main></body></html>\n"
    )


def _tiles(report: ParityReport) -> str:
    finite = all(case.max_abs is not None for case in report.cases)
    allowed = report.largest_allowed
    beyond = not finite or (allowed is not None and report.max_abs > allowed)
    tiles = [
        (
            f"{report.max_abs:.2g}" if finite else "not finite",
            "max abs of logits" + ("" if allowed is None else f", allowed {allowed:.2g}"),
            beyond,
        ),
        (f"{report.top1_agreement:.2%}", "smallest top-1 agreement", report.top1_agreement < 1),
        (
            f"{sum(case.passed for case in report.cases)} of {len(report.cases)}",
            "cases within thresholds",
            not all(case.passed for case in report.cases),
        ),
    ]
    if report.greedy:
        agreed, total = (sum(getattr(g, n) for g in report.greedy) for n in ("agreed", "total"))
        tiles.append((f"{agreed} of {total}", "greedy tokens agree", agreed < total))
    if report.texts_total:
        tiles.append(
            (
                f"{report.texts_agreed} of {report.texts_total}",
                "texts encode alike",
                report.texts_agreed < report.texts_total,
            )
        )
    if report.data is not None:
        theirs = "" if report.data.reference is None else f", PEFT {report.data.reference:.4f}"
        tiles.append(
            (
                "not finite" if report.data.engine is None else f"{report.data.engine:.4f}",
                f"{report.data.name} on {report.data.rows} rows{theirs}",
                not report.data.passed,
            )
        )
    return (
        '<div class="tiles">'
        + "".join(
            f'<div class="tile{" bad" if bad else ""}"><b>{escape(number)}</b>'
            f"<span>{escape(words)}</span></div>"
            for number, words, bad in tiles
        )
        + "</div>"
    )


def _failures(report: ParityReport) -> str:
    if report.passed:
        return ""
    failures = report.failures()
    items = "".join(f"<li>{escape(line)}</li>" for line in failures[:12])
    if len(failures) > 12:
        items += f"<li>and {len(failures) - 12} more</li>"
    again = ""
    if report.failing is not None:
        lengths = ", ".join(map(str, report.failing.lengths))
        again = (
            f"<p>The smallest input that still departs has {len(report.failing.lengths)} row(s) of "
            f"{lengths} tokens. Reproduce it:</p><pre>{escape(report.failing.command)}</pre>"
        )
    title = "What fails" if report.engine_failed else "What departs"
    return f"<section><h2>{title}</h2><ul>{items}</ul>{again}</section>"


def _located(located: Located) -> str:
    if not located.module:
        return f"<section><h2>Where</h2><p>{escape(located.cause)}</p></section>"
    rows = [
        ("First module", f"<code>{escape(located.module)}</code>"),
        ("Operator", f"<code>{escape(located.operator)}</code> in {escape(located.dtype)}"),
        ("Likely cause", escape(located.cause or "unknown")),
    ]
    if len(located.operators) > 1:
        rows.append(("Operators from what agrees", escape(", ".join(located.operators))))
    body = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows)
    return f"<section><h2>Where it goes wrong</h2><dl>{body}</dl></section>"


def _histograms(report: ParityReport) -> str:
    bars = [svg.Bar(f"{g.name} x{g.count}", g.histogram, g.passed) for g in grouped(report)]
    plot = svg.histograms(bars, report.histogram_edges, report.largest_allowed)
    return _plot(
        "Error by case", "Heights are square roots of shares, so that one logit shows.", plot
    )


def _positions(report: ParityReport) -> str:
    if not report.positions:
        return ""
    allowed = report.largest_allowed
    points = [
        svg.Point(
            one.max_abs,
            f"{_tokens(one.first, one.last)}: {shown(one.max_abs)}",
            allowed is not None and (one.max_abs is None or one.max_abs > allowed),
        )
        for one in report.positions
    ]
    places = [str(one.first) for one in report.positions]
    plot = svg.scatter(points, places, allowed, "token of the row", bars=True)
    return _plot(
        "Error by position",
        "The largest difference of a logit at each token; a class counts at the row's last token.",
        plot,
    )


def _layers(located: Located) -> str:
    if not located.modules:
        return ""
    points = [
        svg.Point(one.relative, f"{one.what} of {one.module}: {shown(one.relative)}", one.departs)
        for one in located.modules
    ]
    plot = svg.scatter(
        points, _layer_marks(located.modules), None, "tensor, as PyTorch computes them", bars=False
    )
    return _plot(
        "Error by layer",
        "Each tensor's largest difference over its own largest value, by the number of its layer. "
        "Hover for its module.",
        plot,
    )


def _layer_marks(modules: Sequence[ModuleError]) -> list[str]:
    """The layer's number at the first tensor of each layer."""
    marks, before = [], ""
    for one in modules:
        number = next((part for part in one.module.split(".") if part.isdigit()), "")
        marks.append(number if number != before else "")
        before = number
    return marks


def _steps(report: ParityReport) -> str:
    if not report.greedy:
        return ""
    steps = max(one.total for one in report.greedy)
    shares = [
        sum(one.agreed > step for one in report.greedy) / len(report.greedy)
        for step in range(steps)
    ]
    words = f"{len(report.greedy)} rows continued greedily, against PEFT's generate row by row."
    return _plot("Agreement by step", words, svg.agreement(shares))


def _cases(report: ParityReport) -> str:
    rows = "".join(
        f"<tr><td>{escape(g.name)}</td><td>{g.count}</td><td>{g.longest}</td>"
        f"<td>{shown(g.max_abs)}</td><td>{shown(g.mean_abs)}</td><td>{shown(g.kl)}</td>"
        f"<td>{g.top1_agreement:.2%}</td>"
        f"<td class={'ok' if g.passed else 'bad'}>{outcome(g)}</td></tr>"
        for g in grouped(report)
    )
    head = "".join(
        f"<th>{name}</th>"
        for name in ("case", "runs", "longest", "max abs", "mean abs", "KL", "top-1", "")
    )
    return (
        f'<section><h2>Cases</h2><p>Each kind of case at its worst.</p><div class="wide"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


def _about(report: ParityReport, manifest: Manifest) -> str:
    facts = [
        ("Checkpoint", f"{manifest.source.format}, adapter {manifest.source.adapter}"),
        ("Prompt", f"{manifest.prompt.num_virtual_tokens} virtual tokens, {manifest.prompt.kind}"),
        ("Graph", f"{manifest.graph.route}: {manifest.graph.reason}"),
        ("Versions", ", ".join(f"{n} {v}" for n, v in sorted(manifest.versions.items()))),
    ]
    if report.thresholds is not None:
        t = report.thresholds
        facts.append(
            (
                "Thresholds",
                f"max abs {t.max_abs:g} + {t.relative:g} of the largest logit, "
                f"cosine {t.cosine:g}, KL {t.kl:g}",
            )
        )
    if report.quality is not None:
        facts.append(("Rounding", quantization_words(report.quality)))
    facts += [("Note", note) for note in report.notes]
    body = "".join(f"<dt>{escape(n)}</dt><dd>{escape(v)}</dd>" for n, v in facts)
    return f"<section><h2>About this bundle</h2><dl>{body}</dl></section>"


def _plot(title: str, words: str, plot: str) -> str:
    return f"<section><h2>{escape(title)}</h2><p>{escape(words)}</p>{plot}</section>"


def _tokens(first: int, last: int) -> str:
    return f"token {first}" if first == last else f"tokens {first} to {last}"
