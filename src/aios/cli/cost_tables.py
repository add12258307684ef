"""Work, time and memory of a job that is planned, as tables and as a document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aios.app.costs.forecast import Forecast
    from aios.core.restem_workload import Span
    from aios.core.training_costs import TrainingEstimate
    from aios.core.training_work import TrainingWork


def forecast_document(forecast: Forecast) -> dict[str, Any]:
    """A forecast for programs: ``work``, ``estimate`` and ``memory``; null what is not known."""
    work, found = forecast.work, forecast.estimate
    counted = None
    if work is not None:
        counted = {
            "self_edits": work.written,
            "trainings": work.trainings,
            "trained_tokens": work.trained,
            "scored_tokens": work.scored,
            "answered_questions": work.answered,
            "arms": work.arms,
        }
    return {
        "work": counted,
        "estimate": {
            "seconds": None if found is None else found.seconds,
            "parts": {} if found is None else found.parts,
            "arms": {} if found is None else found.arms,
            "basis": forecast.basis,
            "reason": forecast.reason,
            "damaged": forecast.damaged,
        },
        "memory": {
            "peak_bytes": forecast.peak_bytes,
            "at_least": forecast.at_least,
            "free_bytes": forecast.free_bytes,
            "fits": forecast.fits,
        },
    }


def write_forecast(forecast: Forecast) -> None:
    """Prints the work by arm, and time and memory; a warning where the memory is too small."""
    from aios.cli.rendering import write_facts, write_line
    from aios.core.estimates import describe_range

    found = forecast.estimate
    if forecast.work is not None:
        _write_arms(forecast.work, found)
        write_line()
    parts = {} if found is None else found.parts
    write_facts(
        [
            ("estimated time", _time(forecast)),
            *(
                (f"  {part}", describe_range(span.low, span.high))
                for part, span in parts.items()
                if span.high
            ),
            ("peak memory", _memory(forecast)),
            ("left out", f"{forecast.damaged} damaged costs.json" if forecast.damaged else ""),
        ]
    )
    if forecast.fits is False:
        write_line(
            "warning: that is more memory than is free. Close other programs, or lower "
            "training.batch_size or data.max_passage_tokens."
        )
    write_line()


def _time(forecast: Forecast) -> str:
    if forecast.estimate is None:
        return f"not known: {forecast.reason}"
    return f"{forecast.time}, from {forecast.basis}"


def _memory(forecast: Forecast) -> str:
    from aios.cli.text import format_bytes

    if forecast.peak_bytes is None:
        return ""
    free = "" if forecast.free_bytes is None else f"; {format_bytes(forecast.free_bytes)} is free"
    about = "at least" if forecast.at_least else "about"
    return f"{about} {format_bytes(forecast.peak_bytes)}{free}"


def _write_arms(work: TrainingWork, found: TrainingEstimate | None) -> None:
    from aios.cli.rendering import write_table
    from aios.core.estimates import describe_range

    named = any(arm.name for arm in work.arms)
    columns = ["arm"] * named + ["times", "trained", "scored", "answered"]
    rows = []
    for arm in work.arms:
        counts = [_count(arm.trained), _count(arm.scored), f"{arm.answered:,}"]
        cells = [arm.name] * named + [f"{arm.times:,}", *counts]
        if found is not None:
            took = found.arms[arm.name]
            cells.append(describe_range(took.low, took.high))
        rows.append(cells)
    if found is not None:
        columns.append("time each")
    title = "Tokens and questions of each training"
    write_table(columns, rows, title=title, numeric=tuple(range(int(named), 4 + named)))


def _count(span: Span) -> str:
    low, high = f"{span.low:,.0f}", f"{span.high:,.0f}"
    return low if low == high else f"{low} to {high}"
