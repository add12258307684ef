"""Plots made of text: bars, histograms, sparklines, and columns that line up.

Takes numbers, gives lines; writes nothing. Where the terminal's encoding has no block characters
(`can_write_blocks`) the same plots are made of ASCII. Values that are not finite, or beyond 1e300,
are left out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

_EIGHTHS = "▏▎▍▌▋▊▉█"
_LEVELS = "▁▂▃▄▅▆▇█"
_ASCII_LEVELS = "_.-=+*#@"
_BLOCKS = _EIGHTHS + _LEVELS + "─←…"

_OUTLIER = 3.0  # interquartile ranges beyond the quartiles, from which on values share a row
_LEAST_FOR_OUTLIERS = 8
_LARGEST = 1e300
_ROUNDING = 1e-9  # of a row: values on an edge belong to the row below it


def can_write_blocks(encoding: str | None) -> bool:
    """Whether a stream's encoding has the characters that the plots use."""
    try:
        _BLOCKS.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def bar(share: float, width: int, *, blocks: bool = True) -> str:
    """A bar of a share of `width` characters; one of more than nothing is never empty.

    Args:
        share: From 0 to 1; less and more are taken as these.
        width: Characters of a full bar.
        blocks: Whether eighths of a character can be drawn.
    """
    if not share > 0:
        return ""
    length = min(1.0, share) * width
    if not blocks:
        return "#" * max(1, round(length))
    full, eighths = divmod(max(1, round(length * 8)), 8)
    return "█" * full + (_EIGHTHS[eighths - 1] if eighths else "")


def sparkline(values: Sequence[float], *, blocks: bool = True) -> str:
    """A character a value, from the lowest to the highest; all in the middle if they are equal."""
    finite = [value for value in values if abs(value) <= _LARGEST]
    if not finite:
        return ""
    levels = _LEVELS if blocks else _ASCII_LEVELS
    low, high = min(finite), max(finite)
    if not high > low:
        return levels[3] * len(finite)
    return "".join(levels[min(7, int((value - low) / (high - low) * 8))] for value in finite)


def histogram(
    values: Sequence[float],
    *,
    marks: Sequence[tuple[float, str]] = (),
    rows: int = 12,
    width: int = 40,
    blocks: bool = True,
) -> list[str]:
    """How values are spread: a line a range, from low to high, with a bar and a count.

    Ranges have round ends, are equally wide, and hold their upper end but not their lower one; so
    what stands above the line of a mark exceeds it. Values far outside the bulk (three
    interquartile ranges beyond the quartiles) are counted in one open range at each end.

    Args:
        values: Numbers.
        marks: Values that are marked, with their names; a line between two ranges, or an arrow
            behind the range that holds it. They are always within the ranges.
        rows: About how many ranges; there may be up to two more, and the open ones.
        width: Characters of the longest bar.
        blocks: Whether block characters can be written.

    Returns:
        The lines; none without a value.
    """
    finite = [float(value) for value in values if abs(value) <= _LARGEST]
    if not finite:
        return []
    shown = [(float(at), name) for at, name in marks if abs(at) <= _LARGEST]
    spread = _counted(finite, [at for at, _ in shown], rows)
    step, edges = spread.step, spread.edges
    most = max([*spread.counts.values(), spread.below, spread.above])
    to, dash, arrow = ("…", "─", "←") if blocks else ("..", "-", "<-")
    wide = max(map(len, edges))
    digits = len(str(most))

    def line(label: str, count: int, note: str = "") -> str:
        drawn = bar(count / most, width, blocks=blocks) if count else ""
        return f"{label}  {drawn:<{width}}  {count:>{digits}}{note}".rstrip()

    label_width = 2 * wide + len(to) + 2
    below, above = f"below {edges[0]}", f"above {edges[-1]}"
    lines = [line(f"{below:>{label_width}}", spread.below)] if spread.below else []
    for index, (low, high) in enumerate(pairwise(edges), spread.first):
        here = [(at, name) for at, name in shown if _row(at, step) == index]
        inner = [name for at, name in here if not _on_edge(at, step)]
        note = f"  {arrow} {', '.join(inner)}" if inner else ""
        lines.append(line(f"{low:>{wide}} {to} {high:>{wide}}", spread.counts[index], note))
        ends = [name for at, name in here if _on_edge(at, step)]
        if ends:
            lines.append(f"{'':>{label_width}}  {dash * (width // 2)} {', '.join(ends)}")
    if spread.above:
        lines.append(line(f"{above:>{label_width}}", spread.above))
    return lines


@dataclass(frozen=True, slots=True)
class _Spread:
    """Numbers counted in ranges of one width.

    Attributes:
        step: The width; range number i ends at (i + 1) × step.
        first: Number of the lowest range.
        edges: The ends of the ranges as text, one more than there are ranges.
        counts: How many numbers are in a range, by its number.
        below: How many are below all ranges.
        above: How many are above them.
    """

    step: float
    first: int
    edges: list[str]
    counts: Counter[int]
    below: int
    above: int


def _counted(values: list[float], marks: list[float], rows: int) -> _Spread:
    """Counts values in about `rows` ranges that hold their bulk and all marks."""
    inside = _bulk(values)
    step = _round_step([*inside, *marks], rows)
    needed = [_row(value, step) for value in (min(inside), max(inside), *marks)]
    first, last = min(needed), max(needed)
    low_end, high_end = (first + _ROUNDING) * step, (last + 1 + _ROUNDING) * step
    return _Spread(
        step,
        first,
        [_edge(index * step, step) for index in range(first, last + 2)],
        Counter(
            min(last, max(first, _row(value, step)))
            for value in values
            if low_end < value <= high_end
        ),
        below=sum(value <= low_end for value in values),
        above=sum(value > high_end for value in values),
    )


def columns(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """Rows of cells as lines, each column as wide as its widest cell.

    Args:
        rows: Cells; all rows have as many as the first.
        right: Indices of the columns that are aligned to the right.
    """
    if not rows:
        return []
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    return [
        "  ".join(
            f"{cell:>{width}}" if index in right else f"{cell:<{width}}"
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _bulk(values: Sequence[float]) -> list[float]:
    """The values without outliers; all where there are few, or half of them are equal."""
    if len(values) < _LEAST_FOR_OUTLIERS:
        return list(values)
    ordered = sorted(values)
    half = len(ordered) // 2
    lower, upper = median(ordered[:half]), median(ordered[-half:])
    reach = _OUTLIER * (upper - lower)
    if not reach > 0:
        return ordered
    return [value for value in ordered if lower - reach <= value <= upper + reach]


def _round_step(values: Sequence[float], rows: int) -> float:
    """A width of 1, 2 or 5 times a power of ten that divides the values into about `rows`."""
    low, high = min(values), max(values)
    size = max(abs(low), abs(high))
    span = high - low
    if span <= 1e-9 * size:  # all equal
        span = size / 10 if size > 1e-290 else 0.1
    wanted = max(span / max(1, rows), 1e-300)
    power = 10.0 ** math.floor(math.log10(wanted))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= wanted * 0.999)


def _row(value: float, step: float) -> int:
    """Index of the range ``(index · step, (index + 1) · step]`` that holds a value."""
    return math.ceil(value / step - _ROUNDING) - 1


def _on_edge(value: float, step: float) -> bool:
    return abs(value / step - round(value / step)) <= _ROUNDING


def _edge(value: float, step: float) -> str:
    """An end of a range, with as many digits as its neighbours differ in."""
    digits = max(0, -math.floor(math.log10(step) + _ROUNDING))
    if abs(value) < step / 2:
        value = 0.0
    return f"{value:.{digits}f}" if digits <= 6 and abs(value) < 1e9 else f"{value:.4g}"
