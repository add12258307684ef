"""Charts of the machine's load, and of a run's memory over its whole time.

Takes samples (`load`) and heartbeats; gives inline SVG. A time in which nobody looked is a
gap: lines are not drawn over it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from markupsafe import Markup

from aios.app.charts.canvas import Axis, Canvas, format_tick, nice_ticks
from aios.app.charts.report_page import NO_BREAK
from aios.app.charts.svg import Series, line_chart
from aios.app.machine.load import GAP_SECONDS, KEPT_SECONDS, LoadSample

_GIB = 2**30
_MINUTE, _HOUR = 60.0, 3600.0
_WIDTH, _HEIGHT = 420, 200
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class LoadChart:
    """A chart with its heading: what it shows, with the value now."""

    name: str
    now: str
    chart: Markup


def load_charts(samples: Sequence[LoadSample]) -> list[LoadChart]:
    """The charts of the last ten minutes; none without two samples."""
    if len(samples) < 2:
        return []
    total = samples[-1].memory_total_bytes / _GIB
    found = [
        _percent_chart("Processors", "cpu", samples, lambda one: one.cpu),
        _size_chart("Memory", "memory", samples, lambda one: one.memory_bytes, total),
    ]
    for number in range(max(len(sample.gpus) for sample in samples)):
        name, id = f"GPU {number}", f"gpu-{number}"
        there = [sample for sample in samples if number < len(sample.gpus)]
        room = there[-1].gpus[number].total_bytes / _GIB
        found.append(_percent_chart(name, id, there, partial(_gpu_busy, number)))
        found.append(
            _size_chart(
                f"Memory of {name}",
                f"{id}-memory",
                there,
                partial(_gpu_used, number),
                room,
            )
        )
    return found


def memory_chart(points: Sequence[Point]) -> Markup | None:
    """Resident memory of a run's process since it began; None before there are two points.

    Args:
        points: Unix seconds and bytes, as `RunFollower.memory` gives them.
    """
    if len(points) < 2 or points[-1][0] <= points[0][0]:
        return None
    span = points[-1][0] - points[0][0]
    size, unit = (_HOUR, "hours") if span >= 2 * _HOUR else (_MINUTE, "minutes")
    start = points[0][0]
    line = [((time - start) / size, rss / _GIB) for time, rss in points]
    most = max(rss for _, rss in line)
    return line_chart(
        [Series("memory of the run", 2, line)],
        id="run-memory",
        title="Memory of the run's process since it began",
        desc=f"{line[0][1]:.2f} GiB at the beginning, {most:.2f} at most, {line[-1][1]:.2f} last",
        x_label=f"{unit} since the run began",
        y_label="GiB",
    )


def _percent_chart(
    name: str, id: str, samples: Sequence[LoadSample], share: Callable[[LoadSample], float]
) -> LoadChart:
    points = [(sample.time, 100 * share(sample)) for sample in samples]
    now = f"{points[-1][1]:.0f}{NO_BREAK}%"
    return LoadChart(name, now, _draw(points, 100.0, "%", id, f"{name}: busy share", now))


def _size_chart(
    name: str,
    id: str,
    samples: Sequence[LoadSample],
    size: Callable[[LoadSample], float],
    total: float,
) -> LoadChart:
    points = [(sample.time, size(sample) / _GIB) for sample in samples]
    now = f"{points[-1][1]:.1f} of {total:.1f}{NO_BREAK}GiB"
    return LoadChart(name, now, _draw(points, total, "GiB", id, f"{name}: in use", now))


def _draw(points: Sequence[Point], top: float, unit: str, id: str, title: str, now: str) -> Markup:
    """A line over the last ten minutes from 0 to `top`, broken where nobody looked."""
    last = points[-1][0]
    canvas = Canvas(_WIDTH, _HEIGHT)
    x_axis = Axis(-KEPT_SECONDS / _MINUTE, 0.0, 44, _WIDTH - 12)
    y_axis = Axis(0.0, max(top, 1e-9), _HEIGHT - 40, 22)
    canvas.text(38, 12, unit, anchor="end")
    for tick in nice_ticks(0.0, max(top, 1e-9), 4):
        canvas.line(44, y_axis(tick), _WIDTH - 12, y_axis(tick), "grid")
        canvas.text(38, y_axis(tick) + 4, format_tick(tick), anchor="end")
    for minutes in (-10, -5, 0):
        canvas.text(x_axis(minutes), _HEIGHT - 22, format_tick(minutes), anchor="middle")
    canvas.text((_WIDTH + 32) / 2, _HEIGHT - 5, "minutes before now", anchor="middle")
    canvas.group("s2")
    line: list[Point] = []
    for place, (time, value) in enumerate(points):
        if place and time - points[place - 1][0] > GAP_SECONDS:
            _line(canvas, line)
            line = []
        line.append((x_axis((time - last) / _MINUTE), y_axis(min(value, top))))
    _line(canvas, line)
    canvas.end_group()
    return canvas.render(f"load-{id}", f"{title}, over the last ten minutes", f"{now} now")


def _gpu_busy(number: int, sample: LoadSample) -> float:
    return sample.gpus[number].busy


def _gpu_used(number: int, sample: LoadSample) -> float:
    return sample.gpus[number].used_bytes


def _line(canvas: Canvas, line: Sequence[Point]) -> None:
    if len(line) > 1:
        canvas.path(line, "line")
