"""Charts as inline SVG: lines with bands, forest plots and dot plots.

Takes plain numbers and labels; gives `Markup` that can stand in a page without scripts. Colours
come from CSS variables (`svg_canvas.CSS`), and a series differs from the others by dash pattern
and marker too, for readers who do not tell its colour apart and for print. Every chart has a title
and a description for screen readers. All text is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from aios.app.charts.canvas import (
    CSS,
    STYLES,
    WIDTH,
    Axis,
    Canvas,
    format_signed,
    format_tick,
    legend_rows,
    nice_ticks,
    padded,
)

__all__ = [
    "CSS",
    "Dot",
    "ForestRow",
    "Series",
    "dot_plot",
    "forest_plot",
    "format_signed",
    "format_tick",
    "line_chart",
    "nice_ticks",
]


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
        mark_note: What a mark is; shown when one points at it.
    """

    name: str
    style: int
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()
    traces: Sequence[Sequence[tuple[float, float]]] = ()
    marks: Sequence[tuple[float, float]] = ()
    mark_note: str = "best checkpoint"


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


def line_chart(
    series: Sequence[Series],
    *,
    id: str,
    title: str,
    desc: str,
    x_label: str,
    y_label: str,
    x_ticks: Sequence[float] | None = None,
) -> Markup:
    """Draws lines with their bands, traces and marks.

    Args:
        series: At least one with at least one point.
        id: Unique in the page.
        title: For screen readers.
        desc: What the chart shows, for screen readers.
        x_label: Name and unit of x.
        y_label: Name and unit of y.
        x_ticks: Ticks of x; round numbers in its range if None.
    """
    rows = list(legend_rows([s.name for s in series], WIDTH - 70))
    top, bottom, left, right = 22 * len(rows) + 22, 46, 54, 18
    canvas = Canvas(WIDTH, top + 290 + bottom)
    points = [p for s in series for line in (s.points, *s.traces) for p in line]
    points += [(x, y) for s in series for x, *ys in s.band for y in ys]
    x_axis = Axis(*padded([x for x, _ in points], 0), left, WIDTH - right)
    y_axis = Axis(*padded([y for _, y in points], 0.06), top + 290, top)
    for number, row in enumerate(rows):
        for index, offset in row:
            _legend_entry(canvas, series[index], left + offset, 14 + 22 * number)
    canvas.text(left - 44, top - 9, y_label)
    for tick in nice_ticks(y_axis.low, y_axis.high):
        canvas.line(left, y_axis(tick), WIDTH - right, y_axis(tick), "grid")
        canvas.text(left - 8, y_axis(tick) + 4, format_tick(tick), anchor="end")
    for tick in nice_ticks(x_axis.low, x_axis.high, 6) if x_ticks is None else x_ticks:
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
    canvas = Canvas(WIDTH, height + 46)
    ends = [v for r in rows for v in (r.value, r.low, r.high) if v is not None]
    axis = Axis(*padded([*ends, 0.0], 0.06), left, WIDTH - right)
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
    canvas = Canvas(WIDTH, top + height + 30)
    ordered = sorted(dots, key=lambda dot: dot.value)
    y_axis = Axis(*padded([0.0, *(d.value for d in ordered)], 0.06), top + height, top)
    x_axis = Axis(-1, len(ordered), left, WIDTH - 18)
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


def _draw_series(canvas: Canvas, series: Series, x_axis: Axis, y_axis: Axis) -> None:
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
        canvas.marker(x, y, series.style, "mark", f"{series.name}: {series.mark_note}")
    canvas.end_group()


def _legend_entry(canvas: Canvas, series: Series, x: float, y: float) -> None:
    canvas.group(f"s{series.style % STYLES}")
    canvas.path([(x, y - 4), (x + 40, y - 4)], "line")
    canvas.marker(x + 20, y - 4, series.style, "mark")
    canvas.end_group()
    canvas.text(x + 47, y, series.name, "ink")
