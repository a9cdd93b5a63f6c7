"""The report's plots as inline SVG: logarithmic axes, one colour for what holds, one for what not.

Colours come from the page's style sheet by class, so that they follow light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 720
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 22, 40
_PLOT = WIDTH - _LEFT - _RIGHT


@dataclass(frozen=True)
class Bar:
    """A row of a histogram: counts in bins, and whether its case passed."""

    label: str
    counts: Sequence[int]
    passed: bool


@dataclass(frozen=True)
class Point:
    """A value on a logarithmic axis, or None where it is not finite; `title` shows on hovering."""

    value: float | None
    title: str
    departs: bool = False


def histograms(bars: Sequence[Bar], edges: Sequence[float], allowed: float | None) -> str:
    """How many logits differ by how much: a row for each case, a column for each decade."""
    left, row, bins = 216, 34, len(edges) + 1
    width = (WIDTH - left - _RIGHT) / bins
    height = _TOP + row * len(bars) + 40
    parts = []
    for i, bar in enumerate(bars):
        bottom = _TOP + row * (i + 1)
        total = sum(bar.counts) or 1
        parts.append(_line(left, bottom, WIDTH - _RIGHT, bottom, "grid"))
        parts.append(_text(left - 10, bottom - 9, bar.label, "end", "label"))
        for k, count in enumerate(bar.counts):
            if not count:
                continue
            # Square root: a single logit of thousands must stay visible.
            tall = max(2.0, math.sqrt(count / total) * (row - 8))
            beyond = allowed is not None and k > 0 and edges[k - 1] >= allowed
            kind = "bad" if beyond or (not bar.passed and k == bins - 1) else "good"
            title = f"{bar.label}: {count} of {total} logits, {_range(edges, k)}"
            parts.append(
                f'<rect class="{kind}" x="{left + k * width + 1.5:.1f}" y="{bottom - tall:.1f}" '
                f'width="{width - 3:.1f}" height="{tall:.1f}" rx="2">'
                f"<title>{escape(title)}</title></rect>"
            )
    axis = _TOP + row * len(bars)
    for k, edge in enumerate(edges):
        if k % 2 == 0:
            parts.append(_text(left + (k + 1) * width, axis + 16, _power(edge), "middle", "tick"))
    parts.append(
        _text((left + WIDTH) / 2, axis + 34, "absolute difference of a logit", "middle", "axis")
    )
    if allowed is not None and edges[0] < allowed < edges[-1] * 10:
        place = (math.log10(allowed) - math.log10(edges[0])) + 1
        x = left + min(max(place, 0), bins) * width
        parts.append(_line(x, _TOP - 6, x, axis, "limit"))
        parts.append(_text(x + 5, _TOP + 3, f"allowed {allowed:.2g}", "start", "limit-text"))
    return _svg(height, parts, "Differences of logits, a row for each kind of case")


def scatter(
    points: Sequence[Point], places: Sequence[str], allowed: float | None, x_title: str, bars: bool
) -> str:
    """Values in order on a logarithmic axis; what is not finite stands at its top."""
    height, base = 250, 250 - _BOTTOM
    known = [p.value for p in points if p.value is not None and p.value > 0]
    low = math.floor(math.log10(min([*known, allowed or 1.0], default=1e-9))) if known else -9
    low = max(low, -12)
    high = math.ceil(math.log10(max([*known, allowed or 0.0], default=1.0))) if known else 0
    if any(p.value is None for p in points) or high <= low:
        high = max(high + 1, low + 1)

    def y(value: float | None) -> float:
        if value is None:
            return float(_TOP)
        share = (math.log10(max(value, 10.0**low)) - low) / (high - low)
        return base - share * (base - _TOP)

    parts = []
    stride = max(1, (high - low) // 6)
    for power in range(low, high + 1, stride):
        level = y(10.0**power)
        parts.append(_line(_LEFT, level, WIDTH - _RIGHT, level, "grid"))
        parts.append(_text(_LEFT - 8, level + 4, _power(10.0**power), "end", "tick"))
    step = _PLOT / max(len(points), 1)
    for i, point in enumerate(points):
        x, top = _LEFT + step * (i + 0.5), y(point.value)
        kind = "bad" if point.departs or point.value is None else "good"
        title = f"<title>{escape(point.title)}</title>"
        if bars:
            wide = min(max(step - 2, 1.5), 28)
            parts.append(
                f'<rect class="{kind}" x="{x - wide / 2:.1f}" y="{top:.1f}" width="{wide:.1f}" '
                f'height="{max(base - top, 1.5):.1f}" rx="2">{title}</rect>'
            )
        else:
            parts.append(
                f'<circle class="{kind}" cx="{x:.1f}" cy="{top:.1f}" r="3.2">{title}</circle>'
            )
    named = [i for i, place in enumerate(places) if place]
    for i in named[:: max(1, -(-len(named) // 8))]:
        parts.append(_text(_LEFT + step * (i + 0.5), base + 16, places[i], "middle", "tick"))
    parts.append(_text(_LEFT + _PLOT / 2, height - 4, x_title, "middle", "axis"))
    if allowed is not None:
        level = y(allowed)
        parts.append(_line(_LEFT, level, WIDTH - _RIGHT, level, "limit"))
        # Beside the plot: on it, the bars would hide the words.
        words = f"- - - allowed {allowed:.2g}"
        parts.append(_text(WIDTH - _RIGHT, _TOP - 10, words, "end", "limit-text"))
    return _svg(height, parts, x_title)


def agreement(shares: Sequence[float]) -> str:
    """The share of greedy rows that agree up to each step."""
    height, base, top = 190, 190 - _BOTTOM, _TOP
    step = _PLOT / max(len(shares), 1)
    parts = []
    for share in (0, 0.5, 1):
        level = base - share * (base - top)
        parts.append(_line(_LEFT, level, WIDTH - _RIGHT, level, "grid"))
        parts.append(_text(_LEFT - 8, level + 4, f"{share:.0%}", "end", "tick"))
    for i, share in enumerate(shares):
        level = base - share * (base - top)
        kind = "good" if share == 1 else "bad"
        parts.append(
            f'<rect class="{kind}" x="{_LEFT + i * step + 1.5:.1f}" y="{level:.1f}" '
            f'width="{step - 3:.1f}" height="{max(base - level, 1.5):.1f}" rx="2">'
            f"<title>step {i + 1}: {share:.0%} of rows agree so far</title></rect>"
        )
        parts.append(_text(_LEFT + (i + 0.5) * step, base + 16, str(i + 1), "middle", "tick"))
    parts.append(_text(_LEFT + _PLOT / 2, height - 4, "token generated", "middle", "axis"))
    return _svg(height, parts, "Share of rows whose greedy tokens agree, by step")


def _svg(height: float, parts: Sequence[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">'
        + "".join(parts)
        + "</svg>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str, kind: str) -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _power(value: float) -> str:
    superscript = str(round(math.log10(value))).translate(
        str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    )
    return f"10{superscript}"


def _range(edges: Sequence[float], k: int) -> str:
    if k == 0:
        return f"under {edges[0]:.0e}"
    if k == len(edges):
        return f"{edges[-1]:.0e} or more, or not finite"
    return f"{edges[k - 1]:.0e} to {edges[k]:.0e}"
