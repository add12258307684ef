"""What the charts are made of: a canvas that collects SVG elements, axes, ticks and legends.

Colours come from CSS variables (`CSS` has the rules; the page defines ``--ink``, ``--muted``,
``--grid``, ``--paper``, ``--good``, ``--bad`` and ``--s0`` … ``--s5``). All text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

WIDTH = 720
STYLES = 6

CSS = Markup(
    """
.chart { display: block; width: 100%; min-width: 34rem; max-width: 54rem; height: auto; }
.chart text { font: 12px system-ui, sans-serif; fill: var(--muted); }
.chart .strong { fill: var(--ink); font-weight: 600; }
.chart .ink { fill: var(--ink); }
.chart .grid { stroke: var(--grid); stroke-width: 1; }
.chart .axis { stroke: var(--muted); stroke-width: 1; }
.chart .zero { stroke: var(--ink); stroke-width: 1.25; }
.chart .line { fill: none; stroke: var(--c); stroke-width: 2.25; stroke-linejoin: round; }
.chart .trace { fill: none; stroke: var(--c); stroke-width: 1; opacity: .4; }
.chart .band { fill: var(--c); stroke: none; opacity: .15; }
.chart .mark { fill: var(--c); stroke: var(--paper); stroke-width: 1.25; }
.chart .open { fill: var(--paper); stroke: var(--c); stroke-width: 2; }
.chart .bar { fill: var(--c); stroke: var(--paper); stroke-width: 1; }
.chart .ground { fill: var(--paper); }
.chart .pale .bar { fill-opacity: .42; }
.chart text.on { fill: var(--paper); font-weight: 600; } .chart .pale text.on { fill: var(--ink); }
.chart .dot { fill: var(--c); opacity: .75; }
.chart .link { fill: none; stroke: var(--muted); stroke-width: 1; opacity: .35; }
.chart .limit { stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 4 3; }
.chart .whisker { stroke: var(--c); stroke-width: 2; }
.chart .s0 { --c: var(--s0); } .chart .s1 { --c: var(--s1); } .chart .s2 { --c: var(--s2); }
.chart .s3 { --c: var(--s3); } .chart .s4 { --c: var(--s4); } .chart .s5 { --c: var(--s5); }
.chart .good { --c: var(--good); } .chart .bad { --c: var(--bad); }
.chart .even { --c: var(--muted); }
.chart .s1 .line, .chart .s5 .line { stroke-dasharray: 9 4; }
.chart .s3 .line { stroke-dasharray: 2 4; }
.chart .s4 .line { stroke-dasharray: 10 4 2 4; }
"""
)


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of a value, rounded to hundredths."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)


@dataclass(slots=True)
class Canvas:
    """Collects SVG elements."""

    width: int
    height: int
    parts: list[str] = field(default_factory=list)

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str) -> None:
        """Draws a straight line."""
        self.parts.append(f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" class="{css}"/>')

    def text(self, x: float, y: float, text: str, css: str = "", anchor: str = "start") -> None:
        """Writes a text; `anchor` is ``start``, ``middle`` or ``end``."""
        self.parts.append(
            f'<text x="{x}" y="{y}" text-anchor="{anchor}" class="{css}">{escape(text)}</text>'
        )

    def path(
        self, points: Sequence[tuple[float, float]], css: str, *, closed: bool = False
    ) -> None:
        """Draws straight lines from point to point."""
        steps = " L".join(f"{x} {y}" for x, y in points)
        self.parts.append(f'<path d="M{steps}{"Z" if closed else ""}" class="{css}"/>')

    def marker(self, x: float, y: float, shape: int, css: str, label: str = "") -> None:
        """Draws a circle, square, diamond or triangle; `label` is shown when pointed at."""
        r = 4.5
        outlines: dict[int, list[tuple[float, float]]] = {
            1: [(-r, -r), (r, -r), (r, r), (-r, r)],
            2: [(0, -6), (6, 0), (0, 6), (-6, 0)],
            3: [(0, -6), (5.5, 4.5), (-5.5, 4.5)],
        }
        corners = outlines.get(shape % 4)
        tip = f"<title>{escape(label)}</title>" if label else ""
        if corners is None:
            self.parts.append(f'<circle cx="{x}" cy="{y}" r="{r}" class="{css}">{tip}</circle>')
            return
        steps = " L".join(f"{round(x + dx, 2)} {round(y + dy, 2)}" for dx, dy in corners)
        self.parts.append(f'<path d="M{steps}Z" class="{css}">{tip}</path>')

    def bar(self, x: float, y: float, width: float, height: float, css: str, tip: str) -> None:
        """Draws a rectangle; `tip` is shown when pointed at."""
        self.parts.append(
            f'<rect x="{round(x, 2)}" y="{round(y, 2)}" width="{round(width, 2)}" '
            f'height="{round(height, 2)}" class="{css}"><title>{escape(tip)}</title></rect>'
        )

    def group(self, css: str) -> None:
        """Begins a group, e.g. of a colour."""
        self.parts.append(f'<g class="{css}">')

    def end_group(self) -> None:
        """Ends the group."""
        self.parts.append("</g>")

    def render(self, id: str, title: str, desc: str) -> Markup:
        """The chart with its title and description; `id` is unique in the page."""
        head = (
            f'<svg class="chart" role="img" viewBox="0 0 {self.width} {self.height}" '
            f'aria-labelledby="{escape(id)}-title {escape(id)}-desc">'
            f'<title id="{escape(id)}-title">{escape(title)}</title>'
            f'<desc id="{escape(id)}-desc">{escape(desc)}</desc>'
        )
        return Markup("\n".join([head, *self.parts, "</svg>"]))  # every part is escaped above


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers that lie in [low, high]; steps are 1, 2, 2.5 or 5 × 10^k."""
    if not low < high:
        return [low]
    rough = (high - low) / max(1, count)
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(s * magnitude for s in (1, 2, 2.5, 5, 10) if s * magnitude >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) + 0.0 for i in range(first, last + 1)]


def format_tick(value: float) -> str:
    """A tick's number without superfluous digits: ``0``, ``−2.5``, ``20k``, ``1.5M``."""
    sign, size = "−" if value < 0 else "", abs(value)
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= unit:
            return f"{sign}{size / unit:.6g}{name}"
    return f"{sign}{size:.6g}"


def format_signed(value: float, decimals: int) -> str:
    """A number with its sign, a true minus, and no sign where it rounds to zero."""
    text = f"{abs(value):.{decimals}f}"
    if float(text) == 0:
        return text
    return ("−" if value < 0 else "+") + text


def legend_rows(names: Sequence[str], width: float) -> Iterator[list[tuple[int, float]]]:
    """Rows of (index, x offset) such that entries of estimated width fit side by side."""
    row: list[tuple[int, float]] = []
    used = 0.0
    for index, name in enumerate(names):
        wanted = 68 + 6.6 * len(name)
        if row and used + wanted > width:
            yield row
            row, used = [], 0.0
        row.append((index, used))
        used += wanted
    yield row


def padded(values: Sequence[float], share: float) -> tuple[float, float]:
    """Range of the values, widened by a share of itself; never empty."""
    low, high = min(values), max(values)
    if low == high:
        half = abs(low) / 2 or 0.5
        return low - half, high + half
    margin = (high - low) * share
    return low - margin, high + margin
