"""Histograms in rows as inline SVG: how values are distributed, round by round.

Takes plain numbers and labels; gives `Markup` that can stand in a page without scripts. What
holds for `aios.app.charts.svg` holds here: colours from CSS variables, a title and a description
for screen readers, and all text escaped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, quantiles

from markupsafe import Markup

from aios.app.charts.canvas import (
    WIDTH,
    Axis,
    Canvas,
    format_signed,
    format_tick,
    nice_ticks,
    padded,
)

BINS = 28

_SIDES = ("even pale", "good")
_FAR = 4.0  # how many interquartile ranges beyond the quartiles a histogram reaches


@dataclass(frozen=True, slots=True)
class HistogramRow:
    """The values of a round.

    Attributes:
        label: Stands left of the bars.
        notes: Lines under the label.
        others: Values that do not count.
        counted: Values that count; with the others there is at least one.
        threshold: Is marked; None where there is none.
    """

    label: str
    notes: Sequence[str]
    others: Sequence[float]
    counted: Sequence[float]
    threshold: float | None

    @property
    def values(self) -> list[float]:
        """All values."""
        return [*self.others, *self.counted]


def histogram_rows(
    rows: Sequence[HistogramRow],
    *,
    id: str,
    title: str,
    desc: str,
    x_label: str,
    names: tuple[str, str],
    decimals: int,
) -> Markup:
    """Draws a histogram a row over a common axis, with zero, threshold and mean marked.

    Bars are shares of their row, so rows of different sizes compare. Values far out (more than
    four interquartile ranges from the quartiles of all) are counted at the ends of the axis.

    Args:
        rows: At least one.
        id: Unique in the page.
        title: For screen readers.
        desc: What the chart shows, for screen readers.
        x_label: Name and unit of the values.
        names: What values that do not count are, and those that do.
        decimals: Of the numbers in the tips.
    """
    step, top, left, right = 92, 40, 138, 20
    height = top + step * len(rows)
    canvas = Canvas(WIDTH, height + 44)
    low, high = _reach([value for row in rows for value in row.values])
    axis = Axis(low, high, left, WIDTH - right)
    counts = [_counts(row, low, high) for row in rows]
    most = max(
        (one + other) / len(row.values)
        for row, bins in zip(rows, counts, strict=True)
        for one, other in bins
    )
    _histogram_legend(canvas, names, left, any(row.threshold is not None for row in rows))
    for tick in nice_ticks(low, high, 7):
        canvas.line(axis(tick), top, axis(tick), height, "grid")
        canvas.text(axis(tick), height + 17, format_tick(tick), anchor="middle")
    for index, (row, bins) in enumerate(zip(rows, counts, strict=True)):
        floor = top + step * (index + 1)
        _histogram_row(canvas, row, bins, axis, Axis(0, most, floor, floor - step + 22), decimals)
    canvas.line(axis(0), top, axis(0), height, "zero")
    canvas.text((left + WIDTH - right) / 2, height + 37, x_label, anchor="middle")
    return canvas.render(id, title, desc)


def _reach(values: Sequence[float]) -> tuple[float, float]:
    """Range of a histogram's axis: zero and all values but those far out."""
    low, high = min(values), max(values)
    if len(values) > 3:
        first, _, third = quantiles(values, n=4)
        far = _FAR * (third - first)
        if far > 0:
            low, high = max(low, first - far), min(high, third + far)
    return padded([low, high, 0.0], 0.02)


def _counts(row: HistogramRow, low: float, high: float) -> list[tuple[int, int]]:
    """For each bin how many values do not count, and how many do."""

    def binned(values: Sequence[float]) -> Counter[int]:
        places = (int((value - low) / (high - low) * BINS) for value in values)
        return Counter(min(BINS - 1, max(0, place)) for place in places)

    others, counted = binned(row.others), binned(row.counted)
    return [(others[index], counted[index]) for index in range(BINS)]


def _histogram_legend(
    canvas: Canvas, names: tuple[str, str], left: float, has_threshold: bool
) -> None:
    x = left
    for css, name in zip(_SIDES, names, strict=True):
        canvas.group(css)
        canvas.bar(x, 6, 14, 14, "bar", name)
        canvas.end_group()
        canvas.text(x + 20, 17, name, "ink")
        x += 50 + 6.6 * len(name)
    if has_threshold:
        canvas.line(x, 4, x, 22, "limit")
        canvas.text(x + 10, 17, "threshold", "ink")
        x += 96
    canvas.group("s1")
    canvas.marker(x, 13, 2, "mark")
    canvas.end_group()
    canvas.text(x + 12, 17, "mean", "ink")


def _histogram_row(
    canvas: Canvas,
    row: HistogramRow,
    bins: Sequence[tuple[int, int]],
    axis: Axis,
    tall: Axis,
    decimals: int,
) -> None:
    floor, n = tall.start, len(row.values)
    canvas.text(4, tall.end + 12, row.label, "strong")
    for number, note in enumerate(row.notes):
        canvas.text(4, tall.end + 29 + 16 * number, note)
    width = (axis.high - axis.low) / BINS
    for index, (under, over) in enumerate(bins):
        start = axis.low + width * index
        ends = " to ".join(format_signed(end, decimals) for end in (start, start + width))
        bottom = 0
        for css, count in zip(_SIDES, (under, over), strict=True):
            if count:
                y = tall((bottom + count) / n)
                canvas.group(css)
                tip = f"{count} of {n}: {ends}"
                canvas.bar(
                    axis(start),
                    y,
                    axis(start + width) - axis(start),
                    tall(bottom / n) - y,
                    "bar",
                    tip,
                )
                canvas.end_group()
                bottom += count
    canvas.line(axis.start, floor, axis.end, floor, "axis")
    if row.threshold is not None and axis.low <= row.threshold <= axis.high:
        canvas.line(axis(row.threshold), tall.end - 6, axis(row.threshold), floor, "limit")
    for far, x, anchor in _far_out(row, axis):
        canvas.text(x, floor - 6, far, anchor=anchor)
    mean = fmean(row.values)
    canvas.group("s1")
    place = axis(min(axis.high, max(axis.low, mean)))
    canvas.marker(place, floor, 2, "mark", f"mean {format_signed(mean, decimals)}")
    canvas.end_group()


def _far_out(row: HistogramRow, axis: Axis) -> Iterator[tuple[str, float, str]]:
    """How many values lie beyond either end of the axis: text, place and anchor."""
    below = sum(value < axis.low for value in row.values)
    above = sum(value > axis.high for value in row.values)
    if below:
        yield f"← {below} further", axis.start + 28, "start"
    if above:
        yield f"{above} further →", axis.end - 28, "end"
