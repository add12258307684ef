"""The losses of a job's trainings as a chart: validation loss by tokens, a line a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from aios.app.charts.svg import Series, line_chart
from aios.app.jobs.progress import Point

_LONGEST_NAME = 40


def loss_chart(curves: Mapping[str, Sequence[Point]]) -> Markup | None:
    """Draws the trainings that have two evaluations or more; None where there is none.

    The validation loss is shown, or where none was measured the training loss, which the name of
    the line then says.
    """
    series = []
    for number, (name, points) in enumerate(curves.items()):
        validated = [(float(p.tokens), p.validation_loss) for p in points]
        line = [(x, y) for x, y in validated if y is not None]
        label = name
        if len(line) < 2:
            line = [(float(p.tokens), p.train_loss) for p in points if p.train_loss is not None]
            label = f"{name} (training loss)"
        if len(line) > 1:
            short = label if len(label) <= _LONGEST_NAME else f"{label[: _LONGEST_NAME - 1]}…"
            series.append(Series(short, number, line))
    if not series:
        return None
    ends = "; ".join(
        f"{one.name}: from {one.points[0][1]:.2f} to {one.points[-1][1]:.2f}" for one in series
    )
    return line_chart(
        series,
        id="losses",
        title="Losses of the last trainings",
        desc=ends,
        x_label="tokens trained on",
        y_label="loss, nats a token",
    )
