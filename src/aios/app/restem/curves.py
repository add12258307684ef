"""The training loss of one self-edit's trials as a small chart.

Takes the curves that a candidate keeps (`core.restem.Tried.losses`); gives inline SVG with the
first and the last loss written at its ends.
"""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from aios.app.charts.canvas import Axis, Canvas, padded

_WIDTH, _HEIGHT = 260, 84
_SIDE = 44  # for a number


def training_curve(losses: Sequence[Sequence[float]], id: str) -> Markup | None:
    """Draws a line for each trial, the first one strong; None where no curve was kept.

    Args:
        losses: Training loss of each trial in its course, evenly spaced.
        id: Unique in the page.
    """
    known = [curve for curve in losses if curve]
    if not known:
        return None
    first = known[0]
    canvas = Canvas(_WIDTH, _HEIGHT)
    y_axis = Axis(*padded([loss for curve in known for loss in curve], 0.08), _HEIGHT - 22, 8)
    x_axis = Axis(0.0, 1.0, _SIDE, _WIDTH - _SIDE)
    canvas.line(_SIDE, _HEIGHT - 20, _WIDTH - _SIDE, _HEIGHT - 20, "axis")
    canvas.group("s1")
    for curve in known[1:]:
        canvas.path(_pixels(curve, x_axis, y_axis), "trace")
    canvas.end_group()
    canvas.group("s2")  # a full line
    canvas.path(_pixels(first, x_axis, y_axis), "line")
    canvas.end_group()
    canvas.text(_SIDE - 5, y_axis(first[0]) + 4, f"{first[0]:.2f}", anchor="end")
    canvas.text(_WIDTH - _SIDE + 5, y_axis(first[-1]) + 4, f"{first[-1]:.2f}", "strong")
    canvas.text(_WIDTH / 2, _HEIGHT - 5, "training", anchor="middle")
    trials = "1 trial" if len(known) == 1 else f"{len(known)} trials, the first one strong"
    return canvas.render(
        id,
        "Training loss in the course of its trials",
        f"{trials}: from {first[0]:.3f} to {first[-1]:.3f} nats per token",
    )


def _pixels(curve: Sequence[float], x_axis: Axis, y_axis: Axis) -> list[tuple[float, float]]:
    last = max(1, len(curve) - 1)
    points = [(x_axis(place / last), y_axis(loss)) for place, loss in enumerate(curve)]
    return points if len(points) > 1 else [(x_axis(0.0), points[0][1]), (x_axis(1.0), points[0][1])]
