"""The report's plots as marks on a plane: logarithmic axes, one kind for what holds, one for not.

The page's template draws them as SVG, and its style sheet colours a mark by its kind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 720
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 22, 40
_PLOT = WIDTH - _LEFT - _RIGHT


@dataclass(frozen=True)
class Mark:
    """A line, a text, a bar or a dot at (x, y); what it needs besides depends on its shape.

    A line ends at (`x2`, `y2`), a bar has a `width` and a `height`. `text` is what a text says and
    what shows on hovering over the others.
    """

    shape: str
    kind: str
    x: float
    y: float
    x2: float = 0
    y2: float = 0
    width: float = 0
    height: float = 0
    text: str = ""
    anchor: str = ""


@dataclass(frozen=True)
class Plot:
    """Marks in the order they are drawn, on a plane of WIDTH by `height`."""

    label: str
    height: float
    marks: Sequence[Mark]


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
    wrong: bool = False


@dataclass(frozen=True)
class Share:
    """The share of rows that agree up to a step, and whether another's mismatch is no near tie."""

    share: float
    wrong: bool


def histograms(bars: Sequence[Bar], edges: Sequence[float], allowed: float | None) -> Plot:
    """How many logits differ by how much: a row for each case, a column for each decade."""
    left, row, bins = 216, 34, len(edges) + 1
    width = (WIDTH - left - _RIGHT) / bins
    marks = []
    for i, bar in enumerate(bars):
        bottom = _TOP + row * (i + 1)
        total = sum(bar.counts) or 1
        marks.append(_line(left, bottom, WIDTH - _RIGHT, bottom, "grid"))
        marks.append(_text(left - 10, bottom - 9, bar.label, "end", "label"))
        for k, count in enumerate(bar.counts):
            if not count:
                continue
            # Square root: a single logit of thousands must stay visible.
            tall = max(2.0, math.sqrt(count / total) * (row - 8))
            beyond = allowed is not None and k > 0 and edges[k - 1] >= allowed
            kind = "bad" if beyond or (not bar.passed and k == bins - 1) else "good"
            title = f"{bar.label}: {count} of {total} logits, {_range(edges, k)}"
            marks.append(_bar(left + k * width + 1.5, bottom - tall, width - 3, tall, kind, title))
    axis = _TOP + row * len(bars)
    for k, edge in enumerate(edges):
        if k % 2 == 0:
            marks.append(_text(left + (k + 1) * width, axis + 16, _power(edge), "middle", "tick"))
    marks.append(
        _text((left + WIDTH) / 2, axis + 34, "absolute difference of a logit", "middle", "axis")
    )
    if allowed is not None and edges[0] < allowed < edges[-1] * 10:
        place = (math.log10(allowed) - math.log10(edges[0])) + 1
        x = left + min(max(place, 0), bins) * width
        marks.append(_line(x, _TOP - 6, x, axis, "limit"))
        marks.append(_text(x + 5, _TOP + 3, f"allowed {allowed:.2g}", "start", "limit-text"))
    return Plot("Differences of logits, a row for each kind of case", axis + 40, marks)


@dataclass(frozen=True)
class _Decades:
    """A logarithmic axis upwards, from 10 to the `low` to 10 to the `high`."""

    low: int
    high: int
    base: float

    def y(self, value: float | None) -> float:
        """Where a value stands; what is not finite stands at the top."""
        if value is None:
            return float(_TOP)
        share = (math.log10(max(value, 10.0**self.low)) - self.low) / (self.high - self.low)
        return self.base - share * (self.base - _TOP)

    def marks(self) -> list[Mark]:
        marks = []
        for power in range(self.low, self.high + 1, max(1, (self.high - self.low) // 6)):
            level = self.y(10.0**power)
            marks.append(_line(_LEFT, level, WIDTH - _RIGHT, level, "grid"))
            marks.append(_text(_LEFT - 8, level + 4, _power(10.0**power), "end", "tick"))
        return marks


def _decades(points: Sequence[Point], allowed: float | None, base: float) -> _Decades:
    known = [p.value for p in points if p.value is not None and p.value > 0]
    low = math.floor(math.log10(min([*known, allowed or 1.0], default=1e-9))) if known else -9
    low = max(low, -12)
    high = math.ceil(math.log10(max([*known, allowed or 0.0], default=1.0))) if known else 0
    if any(p.value is None for p in points) or high <= low:
        high = max(high + 1, low + 1)
    return _Decades(low, high, base)


def scatter(
    points: Sequence[Point], places: Sequence[str], allowed: float | None, x_title: str, bars: bool
) -> Plot:
    """Values in order on a logarithmic axis; what is not finite stands at its top."""
    height, base = 250, 250 - _BOTTOM
    axis = _decades(points, allowed, base)
    marks = axis.marks()
    step = _PLOT / max(len(points), 1)
    for i, point in enumerate(points):
        x, top = _LEFT + step * (i + 0.5), axis.y(point.value)
        kind = "bad" if point.wrong or point.value is None else "good"
        if bars:
            wide = min(max(step - 2, 1.5), 28)
            marks.append(_bar(x - wide / 2, top, wide, max(base - top, 1.5), kind, point.title))
        else:
            marks.append(Mark("dot", kind, x, top, text=point.title))
    named = [i for i, place in enumerate(places) if place]
    for i in named[:: max(1, -(-len(named) // 8))]:
        marks.append(_text(_LEFT + step * (i + 0.5), base + 16, places[i], "middle", "tick"))
    marks.append(_text(_LEFT + _PLOT / 2, height - 4, x_title, "middle", "axis"))
    if allowed is not None:
        level = axis.y(allowed)
        marks.append(_line(_LEFT, level, WIDTH - _RIGHT, level, "limit"))
        # Beside the plot: on it, the bars would hide the words.
        words = f"- - - allowed {allowed:.2g}"
        marks.append(_text(WIDTH - _RIGHT, _TOP - 10, words, "end", "limit-text"))
    return Plot(x_title, height, marks)


def agreement(shares: Sequence[Share]) -> Plot:
    """The share of greedy rows that agree up to each step."""
    height, base, top = 190, 190 - _BOTTOM, _TOP
    step = _PLOT / max(len(shares), 1)
    marks = []
    for share in (0, 0.5, 1):
        level = base - share * (base - top)
        marks.append(_line(_LEFT, level, WIDTH - _RIGHT, level, "grid"))
        marks.append(_text(_LEFT - 8, level + 4, f"{share:.0%}", "end", "tick"))
    for i, one in enumerate(shares):
        level = base - one.share * (base - top)
        kind = "bad" if one.wrong else "good"
        title = f"step {i + 1}: {one.share:.0%} of rows agree so far"
        marks.append(
            _bar(_LEFT + i * step + 1.5, level, step - 3, max(base - level, 1.5), kind, title)
        )
        marks.append(_text(_LEFT + (i + 0.5) * step, base + 16, str(i + 1), "middle", "tick"))
    marks.append(_text(_LEFT + _PLOT / 2, height - 4, "token generated", "middle", "axis"))
    return Plot("Share of rows whose greedy tokens agree, by step", height, marks)


def _line(x: float, y: float, x2: float, y2: float, kind: str) -> Mark:
    return Mark("line", kind, x, y, x2=x2, y2=y2)


def _text(x: float, y: float, text: str, anchor: str, kind: str) -> Mark:
    return Mark("text", kind, x, y, text=text, anchor=anchor)


def _bar(x: float, y: float, width: float, height: float, kind: str, title: str) -> Mark:
    return Mark("bar", kind, x, y, width=width, height=height, text=title)


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
