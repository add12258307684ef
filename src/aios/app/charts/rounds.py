"""Charts of rounds as inline SVG: paired strips and stacked bars.

Takes plain numbers and labels; gives `Markup` that can stand in a page without scripts. What
holds for `aios.app.charts.svg` holds here: colours from CSS variables, a title and a description
for screen readers, all text escaped, and no meaning that hangs on colour alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from aios.app.charts.canvas import (
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

MOST_LINKS = 60
LONGEST_NAME = 40


@dataclass(frozen=True, slots=True)
class StripPoint:
    """A value; points of the same `key` in neighbouring columns are linked."""

    key: str
    value: float
    label: str


@dataclass(frozen=True, slots=True)
class StripColumn:
    """Single values with their mean and its interval; without `low` and `high` no whiskers."""

    label: str
    note: str
    points: Sequence[StripPoint]
    mean: float
    low: float | None
    high: float | None
    style: int


@dataclass(frozen=True, slots=True)
class BarRow:
    """A bar: one value a name, none negative; `note` stands at its right."""

    label: str
    values: Sequence[float]
    note: str = ""


def paired_strips(
    columns: Sequence[StripColumn],
    *,
    id: str,
    title: str,
    desc: str,
    y_label: str,
    decimals: int,
) -> Markup:
    """Draws single values by column with mean and interval beside them, around a zero line.

    Points of one key stand at the same place in each column, and up to `MOST_LINKS` of them are
    linked from column to column.

    Args:
        columns: At least one, each with at least one point.
        id: Unique in the page.
        title: For screen readers.
        desc: What the chart shows, for screen readers.
        y_label: Name and unit of the values.
        decimals: Of the numbers beside the means.
    """
    top, left, right, height = 34, 58, 10, 270
    canvas = Canvas(WIDTH, top + height + 46)
    values = [point.value for column in columns for point in column.points]
    values += [end for c in columns for end in (c.mean, c.low, c.high) if end is not None]
    y_axis = Axis(*padded([0.0, *values], 0.06), top + height, top)
    width = (WIDTH - right - left) / len(columns)
    keys = sorted({point.key for column in columns for point in column.points})
    canvas.text(left - 48, 14, y_label)
    for tick in nice_ticks(y_axis.low, y_axis.high):
        canvas.line(left, y_axis(tick), WIDTH - right, y_axis(tick), "grid")
        canvas.text(left - 8, y_axis(tick) + 4, format_tick(tick), anchor="end")
    canvas.line(left, y_axis(0), WIDTH - right, y_axis(0), "zero")
    places = [_places(column, keys, left + width * n, width) for n, column in enumerate(columns)]
    if len(keys) <= MOST_LINKS:
        for one, other in pairwise(places):
            for key in sorted(set(one) & set(other)):
                ends = [(x, y_axis(value)) for x, value in (one[key], other[key])]
                canvas.path(ends, "link")
    for number, (column, place) in enumerate(zip(columns, places, strict=True)):
        _strip_column(canvas, column, place, y_axis, left + width * number, width, decimals)
        middle = left + width * (number + 0.5)
        canvas.text(middle, top + height + 20, column.label, "strong", "middle")
        canvas.text(middle, top + height + 37, column.note, anchor="middle")
    return canvas.render(id, title, desc)


def stacked_bars(
    names: Sequence[str],
    rows: Sequence[BarRow],
    *,
    id: str,
    title: str,
    desc: str,
    x_label: str,
    unit: str,
    colours: Sequence[str] | None = None,
) -> Markup:
    """Draws a stacked bar a row over a common axis from zero.

    Args:
        names: Of the parts, in the order of the rows' values.
        rows: At least one.
        id: Unique in the page.
        title: For screen readers.
        desc: What the chart shows, for screen readers.
        x_label: Name and unit of the values.
        unit: Written after numbers, e.g. ``%``.
        colours: CSS classes of the parts; the page's series colours if None.
    """
    shown = [_short(name) for name in names]
    legend = list(legend_rows(shown, WIDTH - 20))
    step, left = 36, 96
    right = max(30, 16 + max(7 * len(row.note) for row in rows))
    top = 14 + 22 * len(legend)
    height = top + step * len(rows)
    classes = [_colour(n) for n in range(len(names))] if colours is None else list(colours)
    canvas = Canvas(WIDTH, height + 46)
    for number, entries in enumerate(legend):
        for index, offset in entries:
            canvas.group(classes[index])
            canvas.bar(4 + offset, 4 + 22 * number, 14, 14, "bar", names[index])
            canvas.end_group()
            canvas.text(24 + offset, 15 + 22 * number, shown[index], "ink")
    axis = Axis(0, max(sum(row.values) for row in rows) or 1, left, WIDTH - right)
    for tick in nice_ticks(0, axis.high, 6):
        canvas.line(axis(tick), top, axis(tick), height, "grid")
        canvas.text(axis(tick), height + 17, f"{format_tick(tick)} {unit}", anchor="middle")
    for index, row in enumerate(rows):
        y = top + step * index + 6
        canvas.text(4, y + 17, _short(row.label), "ink")
        canvas.text(WIDTH - 4, y + 17, row.note, "ink", "end")
        if sum(row.values) > 0:  # a ground, lest the grid shows through paler parts
            canvas.bar(left, y, axis(sum(row.values)) - left, 24, "ground", row.label)
        _bar_row(canvas, row, [*zip(names, classes, strict=True)], axis, y, unit)
    canvas.line(left, top, left, height, "axis")
    canvas.text((left + WIDTH - right) / 2, height + 37, x_label, anchor="middle")
    return canvas.render(id, title, desc)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _colour(number: int) -> str:
    """Six colours, then the same ones paler."""
    return f"s{number % STYLES}" + (" pale" if number // STYLES % 2 else "")


def _places(
    column: StripColumn, keys: Sequence[str], start: float, width: float
) -> dict[str, tuple[float, float]]:
    """Where the points of a column stand: x in pixels and the value, by key."""
    spread = min(110.0, 0.4 * width)
    first = start + 0.32 * width - spread / 2
    gap = spread / max(1, len(keys) - 1)
    order = {key: number for number, key in enumerate(keys)}
    return {
        point.key: (round(first + gap * order[point.key], 2), point.value)
        for point in column.points
    }


def _strip_column(
    canvas: Canvas,
    column: StripColumn,
    places: dict[str, tuple[float, float]],
    y_axis: Axis,
    start: float,
    width: float,
    decimals: int,
) -> None:
    canvas.group(f"s{column.style % STYLES}")
    for point in column.points:
        canvas.marker(places[point.key][0], y_axis(point.value), 0, "dot", point.label)
    x = round(start + min(0.32 * width + 78, 0.62 * width), 2)
    if column.low is not None and column.high is not None:
        canvas.line(x, y_axis(column.low), x, y_axis(column.high), "whisker")
        for end in (column.low, column.high):
            canvas.line(x - 5, y_axis(end), x + 5, y_axis(end), "whisker")
    words = format_signed(column.mean, decimals)
    canvas.marker(x, y_axis(column.mean), 2, "mark", f"{column.label}: mean {words}")
    canvas.end_group()
    if width > 142:  # there is room for it
        canvas.text(x + 9, y_axis(column.mean) + 4, words, "strong")


def _bar_row(
    canvas: Canvas,
    row: BarRow,
    parts: Sequence[tuple[str, str]],
    axis: Axis,
    y: float,
    unit: str,
) -> None:
    done = 0.0
    for (name, css), value in zip(parts, row.values, strict=True):
        if value <= 0:
            continue
        x, end = axis(done), axis(done + value)
        words = f"{value:.0f} {unit}"
        canvas.group(css)
        canvas.bar(x, y, end - x, 24, "bar", f"{row.label}, {name}: {value:.1f} {unit}")
        if end - x > 8 + 7 * len(words):
            canvas.text(round((x + end) / 2, 2), y + 17, words, "on", "middle")
        canvas.end_group()
        done += value
