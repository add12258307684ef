"""The report of an A/B experiment: one HTML page that needs nothing but itself.

Takes the document that is saved as ``metrics.json`` (`aios.core.evaluation.document`), the
self-edits that were kept and dropped, and the set-up; gives the page as text. It holds its own
style and charts (inline SVG), and reads well in light and dark, on narrow screens and in print.
How it is kept safe stands in `aios.app.charts.report_page`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aios.app.ab_tests import report_charts
from aios.app.ab_tests.report_charts import QuestionChange, labels_of
from aios.app.charts import svg
from aios.app.charts.report_page import (
    NO_BREAK,
    bytes_words,
    check_log_link,
    environment,
    interval_words,
    percent,
    points,
    printable,
    seconds_words,
    setup_row,
    tone_of,
)
from aios.core.types import Drop, Passage, SelfEdit

LISTED_QUESTIONS = 6
LISTED_EDITS = 6
LISTED_ITEMS = 4
LISTED_DROPS = 3

_SECTIONS = (
    ("arms", "Arms"),
    ("comparisons", "Comparisons"),
    ("curves", "Learning curves"),
    ("questions", "Questions"),
    ("edits", "Self-edits"),
    ("setup", "Set-up"),
    ("reading", "How to read this"),
)
METRIC_NAMES = {
    "validation_loss": "Validation loss",
    "perplexity": "Perplexity",
    "exact_match": "Exact match",
    "f1": "Token F1",
    "contains_answer": "Contains answer",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """A number in the table of arms, with notes under it (its spread over seeds)."""

    value: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ArmRow:
    """An arm in the table: name, meaning, number of seeds, cells in the order of the columns."""

    name: str
    meaning: str
    seeds: int
    main: bool
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class KeptEdit:
    """A self-edit as it is shown, with the passage that it was written from if that is known."""

    passage: str
    source: str
    strategy: str
    items: tuple[str, ...]
    more: int


@dataclass(frozen=True, slots=True)
class DropGroup:
    """What was dropped for one reason: how often, and a few examples."""

    reason: str
    count: int
    share: str
    examples: tuple[Drop, ...]


def render_report(
    document: Mapping[str, Any],
    *,
    title: str,
    edits_kept: Sequence[SelfEdit],
    edits_dropped: Sequence[Drop],
    run_info: Mapping[str, Any],
    log_link: str | None = None,
    passages: Sequence[Passage] = (),
) -> str:
    """Renders the report as one HTML page.

    Args:
        document: What `metrics_document` gave, as it is or read back from JSON.
        title: Heading of the page.
        edits_kept: Self-edits that were trained on; a few are shown.
        edits_dropped: What the quality filter left out; all are counted, a few shown by reason.
        run_info: The exact set-up, in the order in which it is to be shown: text, numbers,
            sequences of them, or one more level of mapping. A value under ``command`` is shown
            as a command line.
        log_link: Link to the event log, relative to the page.
        passages: The passages, for their titles and to show what an edit was written from.

    Returns:
        The page; encodes as UTF-8.

    Raises:
        ValueError: `log_link` is not relative.
    """
    check_log_link(log_link)
    names = {passage.id: passage.title or passage.id for passage in passages}
    changes = report_charts.question_changes(document, names)
    template = environment().get_template("report.html.j2")
    return template.render(
        title=title,
        sections=_SECTIONS,
        **summary(document),
        charts=report_charts.charts(document, changes, printable),
        chart_css=svg.CSS,
        setup=[setup_row(name, value) for name, value in run_info.items()],
        log_link=log_link,
        names=names,
        **_question_context(changes),
        **_edit_context(edits_kept, edits_dropped, passages),
    )


def summary(document: Mapping[str, Any]) -> dict[str, Any]:
    """What the report says before its charts, by the names that its template has for it.

    Returns:
        ``verdict``, ``tone``, ``main`` (the main comparison), ``labels`` of the arms, ``tiles``,
        ``columns`` and ``arms`` of the table, and ``categories`` of questions.
    """
    return {
        "verdict": document["verdict"],
        "tone": tone_of(document["comparison"]),
        "main": document["comparison"],
        "labels": labels_of(document),
        "tiles": _tiles(document),
        "columns": COLUMNS,
        "arms": _arm_rows(document),
        "categories": report_charts.category_losses(document),
    }


def _tiles(document: Mapping[str, Any]) -> list[dict[str, str]]:
    """The main pair's change of each metric, for the boxes under the verdict."""
    main = document["comparison"]
    if main is None:
        return []
    tiles = []
    for row in document["comparisons"]:
        if (row["treatment"], row["control"]) != (main["treatment"], main["control"]):
            continue
        relative = row["scale"] == "relative"
        number = percent if relative else points
        test = row["mcnemar"]
        tiles.append(
            {
                "metric": METRIC_NAMES[row["metric"]],
                "change": number(row["relative_change"] if relative else row["change"]),
                "interval": interval_words(row["ci95"], number) if row["ci95"] else "",
                "ends": f"{metric_words(row['metric'], row['control_value'])} → "
                f"{metric_words(row['metric'], row['treatment_value'])}",
                "test": f"McNemar p = {_p_value(test['p_value'])}" if test else "",
                "tone": tone_of(row),
                "verdict": row["verdict"],
            }
        )
    return tiles


COLUMNS = (
    "Validation loss",
    "Perplexity",
    "Exact match",
    "Token F1",
    "Contains answer",
    "Retention loss",
    "Training time",
    "Tokens trained on",
    "Peak memory",
)


def _arm_rows(document: Mapping[str, Any]) -> list[ArmRow]:
    main, labels = document["comparison"], labels_of(document)
    return [
        ArmRow(
            name=name,
            meaning=labels[name],
            seeds=len(arm["runs"]),
            main=bool(main and main["treatment"] == name),
            cells=(
                *(_metric_cell(metric, arm["summary"][metric]) for metric in METRIC_NAMES),
                _retention_cell(arm["retention"]),
                Cell(seconds_words(arm["train_seconds"]["mean"])),
                Cell(f"{arm['tokens']['mean']:,.0f}" if arm["tokens"]["mean"] else "–"),
                Cell(bytes_words(arm["peak_memory_bytes"])),
            ),
        )
        for name, arm in document["arms"].items()
    ]


def metric_words(metric: str, value: float) -> str:
    """A value of a metric as the report writes it."""
    if metric == "validation_loss":
        return f"{value:.3f}"
    if metric == "perplexity":
        return f"{value:.1f}" if value < 1e4 else f"{value:.2g}"
    return f"{value:.1%}".replace("%", f"{NO_BREAK}%")


def _metric_cell(metric: str, spread: Mapping[str, Any]) -> Cell:
    if spread["sd"] is None:
        return Cell(metric_words(metric, spread["mean"]))
    ends = metric_words(metric, spread["min"]), metric_words(metric, spread["max"])
    return Cell(
        metric_words(metric, spread["mean"]),
        (f"± {metric_words(metric, spread['sd'])}", f"{ends[0]} to {ends[1]}"),
    )


def _retention_cell(retention: Mapping[str, Any] | None) -> Cell:
    if retention is None:
        return Cell("–")
    change = retention["relative_change_vs_base"]
    notes = (f"{percent(change)} on base",) if change else ()
    return Cell(f"{retention['loss']['mean']:.3f}", notes)


def _question_context(changes: Sequence[QuestionChange]) -> dict[str, Any]:
    improved = [change for change in changes if change.change < 0]
    worsened = [change for change in reversed(changes) if change.change > 0]
    return {
        "changes": changes,
        "groups": [
            ("Most improved", improved[:LISTED_QUESTIONS]),
            ("Most worsened", worsened[:LISTED_QUESTIONS]),
        ],
        "improved": len(improved),
        "worsened": len(worsened),
    }


def _edit_context(
    kept: Sequence[SelfEdit], dropped: Sequence[Drop], passages: Sequence[Passage]
) -> dict[str, Any]:
    return {
        "kept": _kept(kept, {passage.id: passage for passage in passages}),
        "kept_count": len(kept),
        "strategies": sorted(Counter(edit.strategy for edit in kept).items()),
        "kept_items": sum(len(edit.items) for edit in kept),
        "drops": _drop_groups(dropped),
        "dropped_count": len(dropped),
    }


def _kept(edits: Sequence[SelfEdit], passages: Mapping[str, Passage]) -> list[KeptEdit]:
    """A few edits: each the first of the strategy, then of the passage, shown least so far."""
    rest, used = list(edits), Counter[tuple[str, str]]()
    shown: list[KeptEdit] = []
    while rest and len(shown) < LISTED_EDITS:
        edit = min(rest, key=lambda e: (used["strategy", e.strategy], used["id", e.passage_id]))
        rest.remove(edit)
        used.update([("strategy", edit.strategy), ("id", edit.passage_id)])
        passage = passages.get(edit.passage_id)
        shown.append(
            KeptEdit(
                passage=passage.title or passage.id if passage else edit.passage_id,
                source=passage.text if passage else "",
                strategy=edit.strategy,
                items=edit.items[:LISTED_ITEMS],
                more=max(0, len(edit.items) - LISTED_ITEMS),
            )
        )
    return shown


def _drop_groups(drops: Sequence[Drop]) -> list[DropGroup]:
    """Drops by reason, the most frequent first."""
    by_reason: defaultdict[str, list[Drop]] = defaultdict(list)
    for drop in drops:
        by_reason[drop.reason].append(drop)
    ordered = sorted(by_reason.items(), key=lambda entry: (-len(entry[1]), entry[0]))
    return [
        DropGroup(
            reason.replace("_", " "),
            len(group),
            f"{len(group) / len(drops):.0%}".replace("%", f"{NO_BREAK}%"),
            tuple(group[:LISTED_DROPS]),
        )
        for reason, group in ordered
    ]


def _p_value(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else f"{p:.1e}"
