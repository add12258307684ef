"""Charts as inline SVG: lines with bands, forest plots and dot plots.

Takes plain numbers and labels; gives `Markup` that can stand in a page without scripts. Colours
come from CSS variables (`CSS` has the rules; the page defines ``--ink``, ``--muted``, ``--grid``,
``--paper``, ``--good``, ``--bad`` and ``--s0`` … ``--s5``), and a series differs from the others by
dash pattern and marker too, for readers who do not tell its colour apart and for print. Every
chart has a title and a description for screen readers. All text is escaped.
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
class Series:
    """A line of a line chart.

    Attributes:
        name: For the legend.
        style: Which of the `STYLES` styles; larger numbers wrap around.
        points: The line, (x, y) in ascending x.
        band: (x, low, high) in ascending x; may be empty.
        traces: Thin single lines that the line is the mean of; may be empty.
        marks: Points to mark.
    """

    name: str
    style: int
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()
    traces: Sequence[Sequence[tuple[float, float]]] = ()
    marks: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True, slots=True)
class ForestRow:
    """An estimate with its interval; `strong` sets its label in bold.

    A row without `low` and `high` is drawn without whiskers. `verdict` is ``good``, ``bad`` or
    ``even`` and decides the colour; an ``even`` marker is hollow.
    """

    label: str
    value: float
    low: float | None
    high: float | None
    verdict: str
    strong: bool = False


@dataclass(frozen=True, slots=True)
class Dot:
    """A value with the text that is shown when one points at it."""

    value: float
    label: str


@dataclass(frozen=True, slots=True)
class _Axis:
    """Maps values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)


@dataclass(slots=True)
class _Canvas:
    """Collects SVG elements."""

    width: int
    height: int
    parts: list[str] = field(default_factory=list)

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str) -> None:
        self.parts.append(f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" class="{css}"/>')

    def text(self, x: float, y: float, text: str, css: str = "", anchor: str = "start") -> None:
        self.parts.append(
            f'<text x="{x}" y="{y}" text-anchor="{anchor}" class="{css}">{escape(text)}</text>'
        )

    def path(
        self, points: Sequence[tuple[float, float]], css: str, *, closed: bool = False
    ) -> None:
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

    def group(self, css: str) -> None:
        self.parts.append(f'<g class="{css}">')

    def end_group(self) -> None:
        self.parts.append("</g>")

    def render(self, id: str, title: str, desc: str) -> Markup:
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


def line_chart(
    series: Sequence[Series], *, id: str, title: str, desc: str, x_label: str, y_label: str
) -> Markup:
    """Draws lines with their bands, traces and marks.

    Args:
        series: At least one with at least one point.
        id: Unique in the page.
        title: For screen readers.
        desc: What the chart shows, for screen readers.
        x_label: Name and unit of x.
        y_label: Name and unit of y.
    """
    rows = list(_legend_rows([s.name for s in series], WIDTH - 70))
    top, bottom, left, right = 22 * len(rows) + 22, 46, 54, 18
    canvas = _Canvas(WIDTH, top + 290 + bottom)
    points = [p for s in series for line in (s.points, *s.traces) for p in line]
    points += [(x, y) for s in series for x, *ys in s.band for y in ys]
    x_axis = _Axis(*_padded([x for x, _ in points], 0), left, WIDTH - right)
    y_axis = _Axis(*_padded([y for _, y in points], 0.06), top + 290, top)
    for number, row in enumerate(rows):
        for index, offset in row:
            _legend_entry(canvas, series[index], left + offset, 14 + 22 * number)
    canvas.text(left - 44, top - 9, y_label)
    for tick in nice_ticks(y_axis.low, y_axis.high):
        canvas.line(left, y_axis(tick), WIDTH - right, y_axis(tick), "grid")
        canvas.text(left - 8, y_axis(tick) + 4, format_tick(tick), anchor="end")
    for tick in nice_ticks(x_axis.low, x_axis.high, 6):
        canvas.line(x_axis(tick), top + 290, x_axis(tick), top + 295, "axis")
        canvas.text(x_axis(tick), top + 310, format_tick(tick), anchor="middle")
    canvas.line(left, top + 290, WIDTH - right, top + 290, "axis")
    canvas.text((left + WIDTH - right) / 2, top + 330, x_label, anchor="middle")
    for one in series:
        _draw_series(canvas, one, x_axis, y_axis)
    return canvas.render(id, title, desc)


def forest_plot(
    rows: Sequence[ForestRow],
    *,
    id: str,
    title: str,
    desc: str,
    x_label: str,
    better_left: bool,
    unit: str,
) -> Markup:
    """Draws estimates with intervals around a zero line, best read from the top.

    Args:
        rows: At least one, in `unit`.
        id: Unique in the page.
        title: For screen readers.
        desc: What the chart shows, for screen readers.
        x_label: Name and unit of the change.
        better_left: Whether a negative change is an improvement.
        unit: Written after estimates and ticks, e.g. ``%``.
    """
    step, top, left, right = 30, 34, 262, 180
    height = top + step * len(rows)
    canvas = _Canvas(WIDTH, height + 46)
    ends = [v for r in rows for v in (r.value, r.low, r.high) if v is not None]
    axis = _Axis(*_padded([*ends, 0.0], 0.06), left, WIDTH - right)
    for tick in nice_ticks(axis.low, axis.high, 4):
        canvas.line(axis(tick), top - 8, axis(tick), height, "grid")
        canvas.text(axis(tick), height + 17, f"{format_tick(tick)} {unit}", anchor="middle")
    canvas.line(axis(0), top - 8, axis(0), height, "zero")
    canvas.text((left + WIDTH - right) / 2, height + 37, x_label, anchor="middle")
    sides = ("← better", "worse →") if better_left else ("← worse", "better →")
    canvas.text(left, 14, sides[0])
    canvas.text(WIDTH - right, 14, sides[1], anchor="end")
    canvas.text(WIDTH - 4, 14, "change [95 % interval]", anchor="end")
    for index, row in enumerate(rows):
        y = top + step * index + step / 2 - 4
        canvas.text(4, y + 4, row.label, "strong" if row.strong else "ink")
        canvas.group(row.verdict)
        words = f"{format_signed(row.value, 1)} {unit}"
        if row.low is not None and row.high is not None:
            canvas.line(axis(row.low), y, axis(row.high), y, "whisker")
            for end in (row.low, row.high):
                canvas.line(axis(end), y - 4, axis(end), y + 4, "whisker")
            words += f" [{format_signed(row.low, 1)}, {format_signed(row.high, 1)}]"
        canvas.marker(axis(row.value), y, 0, "open" if row.verdict == "even" else "mark")
        canvas.end_group()
        canvas.text(WIDTH - 4, y + 4, words, "strong" if row.strong else "ink", "end")
    return canvas.render(id, title, desc)


def dot_plot(dots: Sequence[Dot], *, id: str, title: str, desc: str, y_label: str) -> Markup:
    """Draws values in ascending order around a zero line; falls are good, rises are bad.

    Args:
        dots: At least one.
        id: Unique in the page.
        title: For screen readers.
        desc: What the chart shows, for screen readers.
        y_label: Name and unit of the value.
    """
    top, left, height = 30, 54, 250
    canvas = _Canvas(WIDTH, top + height + 30)
    ordered = sorted(dots, key=lambda dot: dot.value)
    y_axis = _Axis(*_padded([0.0, *(d.value for d in ordered)], 0.06), top + height, top)
    x_axis = _Axis(-1, len(ordered), left, WIDTH - 18)
    canvas.text(left - 44, 14, y_label)
    for tick in nice_ticks(y_axis.low, y_axis.high):
        canvas.line(left, y_axis(tick), WIDTH - 18, y_axis(tick), "grid")
        canvas.text(left - 8, y_axis(tick) + 4, format_tick(tick), anchor="end")
    canvas.line(left, y_axis(0), WIDTH - 18, y_axis(0), "zero")
    for rank, dot in enumerate(ordered):
        side = "good" if dot.value < 0 else "bad" if dot.value > 0 else "even"
        shape = {"good": 0, "bad": 3, "even": 1}[side]
        canvas.group(side)
        canvas.marker(x_axis(rank), y_axis(dot.value), shape, "mark", dot.label)
        canvas.end_group()
    label = "questions, from the most improved to the most worsened"
    canvas.text((left + WIDTH - 18) / 2, top + height + 20, label, anchor="middle")
    return canvas.render(id, title, desc)


def _draw_series(canvas: _Canvas, series: Series, x_axis: _Axis, y_axis: _Axis) -> None:
    def pixels(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(x_axis(x), y_axis(y)) for x, y in points]

    canvas.group(f"s{series.style % STYLES}")
    if len(series.band) > 1:
        upper = [(x, high) for x, _, high in series.band]
        lower = [(x, low) for x, low, _ in reversed(series.band)]
        canvas.path(pixels([*upper, *lower]), "band", closed=True)
    for trace in series.traces:
        canvas.path(pixels(trace), "trace")
    canvas.path(pixels(series.points), "line")
    for x, y in pixels(series.marks):
        canvas.marker(x, y, series.style, "mark", f"{series.name}: best checkpoint")
    canvas.end_group()


def _legend_entry(canvas: _Canvas, series: Series, x: float, y: float) -> None:
    canvas.group(f"s{series.style % STYLES}")
    canvas.path([(x, y - 4), (x + 40, y - 4)], "line")
    canvas.marker(x + 20, y - 4, series.style, "mark")
    canvas.end_group()
    canvas.text(x + 47, y, series.name, "ink")


def _legend_rows(names: Sequence[str], width: float) -> Iterator[list[tuple[int, float]]]:
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


def _padded(values: Sequence[float], share: float) -> tuple[float, float]:
    """Range of the values, widened by a share of itself; never empty."""
    low, high = min(values), max(values)
    if low == high:
        half = abs(low) / 2 or 0.5
        return low - half, high + half
    margin = (high - low) * share
    return low - margin, high + margin
