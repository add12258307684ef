"""The report of a tuning of ReST-EM: one HTML page that needs nothing but itself.

Takes the content of ``tuning.json`` (`restem_tune_results.document_of`); gives the page as text:
which parameters matter, how the search went, every trial, and the settings to copy. It is made as
the other reports are (`aios.app.charts.report_page`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from markupsafe import Markup

from aios.app.charts import svg
from aios.app.charts.report_page import (
    Cell,
    Table,
    environment,
    interval_words,
    seconds_words,
    setup_row,
)
from aios.app.charts.rounds import BarRow, stacked_bars
from aios.app.charts.svg import Series, line_chart
from aios.app.restem.generator_gain import Unit
from aios.app.restem.tuning.space import NAMES

_SECTIONS = (
    ("importance", "Importance"),
    ("history", "History"),
    ("trials", "Trials"),
    ("settings", "Best settings"),
    ("setup", "Set-up"),
    ("reading", "How to read this"),
)
_MOST_TICKS = 12


def render_tuning(document: Mapping[str, Any], unit: Unit) -> str:
    """Renders the report as one HTML page.

    Args:
        document: The content of ``tuning.json``.
        unit: How values are written.

    Returns:
        The page; encodes as UTF-8.
    """
    best = document["best"]
    return (
        environment()
        .get_template("restem_tune.html.j2")
        .render(
            title="ReST-EM: tuning report",
            sections=_SECTIONS,
            verdict=document["verdict"],
            tone=_tone(best),
            notes=document["notes"],
            tiles=_tiles(document, unit),
            importance=_importance(document["importance"]),
            history=_history(document["trials"], document["untrained"], unit),
            chart_css=svg.CSS,
            choices=_choices(document["by_choice"], unit),
            trials=_trials(document["trials"], best, unit),
            confirmation=_confirmation(document["confirmation"], unit),
            settings=document["set"],
            complete=sum(trial["value"] is not None for trial in document["trials"]),
            setup=[
                setup_row("search space", _space(document["space"])),
                *(setup_row(name, value) for name, value in document["info"].items()),
            ],
            log_link="events.jsonl",
        )
    )


def _tone(best: Mapping[str, Any] | None) -> str:
    """Good where the best is surely better than the untrained generator, bad where worse."""
    ends = best["gain_ci95"] if best else None
    if ends is None:
        return "even"
    return "good" if ends[0] > 0 else "bad" if ends[1] < 0 else "even"


def _space(space: Mapping[str, Any]) -> dict[str, Any]:
    choices = {NAMES.get(name, name): values for name, values in space["choices"].items()}
    return {"name": space["name"], "why": space["why"], **choices}


def _tiles(document: Mapping[str, Any], unit: Unit) -> list[dict[str, Any]]:
    trials, best = document["trials"], document["best"]
    counts = {
        state: sum(trial["state"] == state for trial in trials)
        for state in ("complete", "pruned", "failed")
    }
    known = f"of {document['space']['size']:,} combinations"
    states = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    tiles = [_tile("Trials", f"{len(trials)}", known, states)]
    if best:
        gain = unit.signed(best["gain"])
        tiles.append(_tile("Best value", unit.signed(best["value"]), f"trial {best['number']}"))
        if best["gain"] is not None:
            ends = best["gain_ci95"]
            words = f"95 %: {interval_words(ends, unit.signed)}" if ends else ""
            tile = _tile("Over the untrained generator", gain, words)
            tiles.append({**tile, "tone": _tone(best)})
        count = document["not_told_from_best"]
        tiles.append(_tile("Not told from the best", f"{count}", "by these held-out passages"))
    run = sum(trial["trials"] for trial in trials)
    reused = sum(trial["reused"] for trial in trials)
    tiles.append(_tile("Trials of self-edits", f"{run - reused:,}", f"{reused:,} taken over"))
    tiles.append(_tile("Time", seconds_words(sum(trial["seconds"] for trial in trials))))
    return tiles


def _tile(name: str, number: str, *notes: str) -> dict[str, Any]:
    return {"name": name, "number": number, "notes": [n for n in notes if n], "tone": "even"}


def _importance(importance: Mapping[str, float]) -> Markup | None:
    if not importance:
        return None
    rows = [
        BarRow(NAMES.get(name, name), [100 * share])
        for name, share in sorted(importance.items(), key=lambda entry: -entry[1])
    ]
    first = rows[0].label
    return stacked_bars(
        ["importance"],
        rows,
        id="importance-chart",
        title="Importance of the parameters",
        desc=f"A bar for each of {len(rows)} parameters; {first} has the longest.",
        x_label="share of the importance",
        unit="%",
        colours=["s1"],
    )


def _history(
    trials: Sequence[Mapping[str, Any]], untrained: float | None, unit: Unit
) -> Markup | None:
    """Values in the order of the trials, with the best so far and the untrained generator."""
    points = [
        (float(trial["number"]), unit.factor * trial["value"])
        for trial in trials
        if trial["value"] is not None
    ]
    if not points:
        return None
    numbers = [number for number, _ in points]
    best = list(zip(numbers, accumulate((value for _, value in points), max), strict=True))
    series = [Series("best so far", 1, best, marks=points, mark_note="a trial")]
    if untrained is not None:
        level = unit.factor * untrained
        series.append(Series("untrained generator", 0, [(n, level) for n in numbers]))
    every = max(1, -(-len(numbers) // _MOST_TICKS))
    return line_chart(
        series,
        id="history-chart",
        title="Values of the trials",
        desc=f"The values of {len(points)} trials in their order, with the best so far as a line.",
        x_label="trial",
        y_label=unit.long,
        x_ticks=numbers[::every],
    )


def _choices(by_choice: Mapping[str, Sequence[Mapping[str, Any]]], unit: Unit) -> Table | None:
    rows = [
        (
            NAMES.get(name, name),
            _number(row["choice"]),
            str(row["trials"]),
            unit.signed(row["mean"]),
        )
        for name, rows_of in by_choice.items()
        for row in rows_of
    ]
    if not rows:
        return None
    return Table("Mean value by choice", ("Parameter", "Choice", "Trials", "Mean value"), rows)


def _trials(
    trials: Sequence[Mapping[str, Any]], best: Mapping[str, Any] | None, unit: Unit
) -> Table | None:
    """All trials, the best first, those without a value last."""
    if not trials:
        return None
    ordered = sorted(trials, key=lambda t: (t["value"] is None, -(t["value"] or 0.0), t["number"]))
    names = list(trials[0]["parameters"])
    rows: list[Sequence[Cell]] = []
    for trial in ordered:
        ends, behind = trial["behind_ci95"], trial["behind"]
        value = unit.signed(trial["value"]) if trial["value"] is not None else trial["state"]
        rows.append(
            (
                str(trial["number"]),
                *(_number(trial["parameters"][name]) for name in names),
                (value, trial["note"]),
                (unit.signed(None if behind is None else -behind), _other_way(ends, unit)),
                f"{trial['trials'] - trial['reused']:,}",
                f"{trial['reused']:,}",
                seconds_words(trial["seconds"]),
            )
        )
    heads = [name.capitalize() for name in (NAMES.get(n, n) for n in names)]
    columns = ("Trial", *heads, "Value", "Less the best", "Trials run", "Taken over", "Time")
    marked = {0} if best else set[int]()
    return Table("All trials", columns, rows, marked=frozenset(marked))


def _other_way(ends: Sequence[float] | None, unit: Unit) -> str:
    """The interval of a difference taken the other way round; empty without one."""
    return interval_words([-ends[1], -ends[0]], unit.signed) if ends else ""


def _confirmation(rows: Sequence[Mapping[str, Any]], unit: Unit) -> Table | None:
    if not rows:
        return None
    return Table(
        "Other seeds",
        ("Seed", "Best settings", "Present settings", "Difference"),
        [
            (
                str(row["seed"]),
                unit.signed(row["best"]),
                unit.signed(row["present"]),
                unit.signed(row["best"] - row["present"]),
            )
            for row in rows
        ],
    )


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
