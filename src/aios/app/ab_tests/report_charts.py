"""What the report draws: comparisons, learning curves and changes per question.

Takes the document of an A/B experiment (`aios.core.evaluation.document`); gives charts as inline
SVG and the rows of the tables that go with them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from markupsafe import Markup

from aios.app.charts.report_page import signed
from aios.app.charts.svg import (
    Dot,
    ForestRow,
    Series,
    dot_plot,
    forest_plot,
    format_signed,
    line_chart,
)

Curve = list[tuple[float, float]]
Document = Mapping[str, Any]

ARM_LABELS = {
    "base": "the model as it is",
    "passage": "trained on the passages",
    "passage+edits": "trained on the passages and self-edits of them",
    "passage+other-edits": "trained on the passages and self-edits of other passages",
    "in-context": "not trained, the passage in the prompt",
}
_STYLES = {name: number for number, name in enumerate(ARM_LABELS)}
_VERDICTS = {"better": "good", "worse": "bad"}
_ACCURACIES = {"exact_match": "exact match", "f1": "token F1", "contains_answer": "contains answer"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """An arm on one question: mean loss over seeds, how many seeds are right, one prediction."""

    loss: float
    right: int
    seeds: int
    prediction: str


@dataclass(frozen=True, slots=True)
class QuestionChange:
    """A question in the main pair of arms; `change` is treatment − control (nats per token)."""

    passage: str
    question: str
    answer: str
    change: float
    control: Outcome
    treatment: Outcome


@dataclass(frozen=True, slots=True)
class CategoryRow:
    """Mean loss of the questions of a category, one value an arm in the document's order."""

    name: str
    n: int
    losses: tuple[float, ...]


def labels_of(document: Document) -> dict[str, str]:
    """What each arm of the document is, in a few words."""
    return {name: ARM_LABELS.get(name, "") for name in document["arms"]}


def question_changes(document: Document, names: Mapping[str, str]) -> list[QuestionChange]:
    """The questions of the main pair, the most improved first; empty without a main pair.

    Args:
        document: The experiment's document.
        names: Titles of passages by id; others are shown by their id.
    """
    main = document["comparison"]
    if main is None:
        return []
    treatment = _outcomes(document["arms"][main["treatment"]])
    control = _outcomes(document["arms"][main["control"]])
    changes = [
        QuestionChange(
            passage=names.get(question["passage_id"], question["passage_id"]),
            question=question["question"],
            answer=question["answers"][0] if question["answers"] else "",
            change=treatment[probe].loss - control[probe].loss,
            control=control[probe],
            treatment=treatment[probe],
        )
        for probe, question in document["questions"].items()
    ]
    return sorted(changes, key=lambda change: change.change)


def category_losses(document: Document) -> list[CategoryRow]:
    """Loss per answer token by category of question; empty with fewer than two categories."""
    probes: defaultdict[str, list[str]] = defaultdict(list)
    for probe, question in document["questions"].items():
        probes[question["category"]].append(probe)
    if len(probes) < 2:
        return []
    pooled = [_pooled(arm) for arm in document["arms"].values()]
    return [
        CategoryRow(
            name=category or "other",
            n=len(group),
            losses=tuple(
                sum(arm[p][0] for p in group) / sum(arm[p][1] for p in group) for arm in pooled
            ),
        )
        for category, group in sorted(probes.items())
    ]


def charts(
    document: Document, changes: Sequence[QuestionChange], printable: Callable[[str], str]
) -> dict[str, Markup | None]:
    """The charts by name; None where there is nothing to draw.

    Args:
        document: The experiment's document.
        changes: What `question_changes` gave.
        printable: Makes a text that is not ours fit to be shown.
    """
    return {
        "losses": _loss_forest(document),
        "accuracies": _accuracy_forest(document),
        "curves": learning_curves(document),
        "questions": _question_dots(changes, printable),
    }


def _loss_forest(document: Document) -> Markup | None:
    losses = [c for c in document["comparisons"] if c["metric"] == "validation_loss"]
    trained = [c for c in losses if c["treatment"] != "in-context"]  # a ceiling dwarfs the rest
    rows = [
        _forest_row(c, f"{c['treatment']} vs {c['control']}", document, "relative_change")
        for c in trained or losses
    ]
    if not rows:
        return None
    return forest_plot(
        rows,
        id="losses",
        title="Relative change of the validation loss",
        desc="; ".join(f"{row.label}: {format_signed(row.value, 1)} percent" for row in rows),
        x_label="change of the validation loss, relative to the second arm",
        better_left=True,
        unit="%",
    )


def _accuracy_forest(document: Document) -> Markup | None:
    main = document["comparison"]
    wanted = [
        c
        for c in document["comparisons"]
        if main
        and c["metric"] in _ACCURACIES
        and c["treatment"] == main["treatment"]
        and c["control"] in (main["control"], "passage+other-edits")
    ]
    if not wanted:
        return None
    rows = [
        _forest_row(c, f"{_ACCURACIES[c['metric']]} vs {c['control']}", document, "change")
        for c in wanted
    ]
    return forest_plot(
        rows,
        id="accuracies",
        title=f"Change of accuracy of {wanted[0]['treatment']}",
        desc="; ".join(f"{row.label}: {format_signed(row.value, 1)} points" for row in rows),
        x_label=f"change of {wanted[0]['treatment']}, percentage points",
        better_left=False,
        unit="pp",
    )


def _forest_row(
    comparison: Mapping[str, Any], label: str, document: Document, key: str
) -> ForestRow:
    main = document["comparison"]
    low, high = [100 * end for end in comparison["ci95"] or ()] or (None, None)
    same = all(comparison[k] == main[k] for k in ("treatment", "control")) if main else False
    return ForestRow(
        label=label,
        value=100 * comparison[key],
        low=low,
        high=high,
        verdict=_VERDICTS.get(comparison["verdict"], "even"),
        strong=same,
    )


def learning_curves(document: Document) -> Markup | None:
    """Validation loss by tokens: a line an arm, its band over seeds, best checkpoints marked.

    Args:
        document: Its ``arms`` with their ``runs`` are drawn, with what they have of a ``curve``;
            those of an experiment that goes on will do.
    """
    found = [
        curve_of(name, _STYLES.get(name, len(_STYLES)), arm["runs"])
        for name, arm in document["arms"].items()
    ]
    return draw_curves([one for one in found if one is not None], id="curves")


def draw_curves(series: Sequence[Series], *, id: str, of: str = "") -> Markup | None:
    """A chart of learning curves; None without any.

    Args:
        series: What `curve_of` gave.
        id: Unique in the page.
        of: What they are of, for screen readers.
    """
    if not series:
        return None
    ends = "; ".join(f"{s.name}: lowest {min(y for _, y in s.points):.2f}" for s in series)
    return line_chart(
        series,
        id=id,
        title=f"Learning curves{f' of {of}' if of else ''}",
        desc=f"Validation loss by tokens trained on. {ends}",
        x_label="tokens trained on",
        y_label="loss per answer token (nats)",
    )


def curve_of(name: str, style: int, runs: Sequence[Mapping[str, Any]]) -> Series | None:
    """The learning curve of an arm over its seeds; None where nothing was evaluated twice."""
    curves, marks = [], []
    for run in runs:
        points_of_run = [p for p in run["curve"] if p["validation_loss"] is not None]
        if len(points_of_run) > 1:
            curves.append([(p["tokens"], p["validation_loss"]) for p in points_of_run])
            marks += [
                (p["tokens"], p["validation_loss"])
                for p in points_of_run
                if p["step"] == run["best_step"]
            ]
    if not curves:
        return None
    mean, band = _mean_and_band(curves)
    return Series(name, style, mean, band, curves if len(curves) > 1 else [], marks)


def _mean_and_band(curves: Sequence[Curve]) -> tuple[Curve, list[tuple[float, float, float]]]:
    """Mean, least and greatest over curves, at every x of any of them that all of them reach.

    Seeds differ a little in the tokens of their evaluations; between those, lines are straight.
    """
    start, end = max(c[0][0] for c in curves), min(c[-1][0] for c in curves)
    grid = sorted({x for curve in curves for x, _ in curve if start <= x <= end})
    values = [[_at(curve, x) for curve in curves] for x in grid]
    mean = [(x, fmean(column)) for x, column in zip(grid, values, strict=True)]
    if len(curves) == 1:
        return mean, []
    return mean, [(x, min(col), max(col)) for x, col in zip(grid, values, strict=True)]


def _at(curve: Curve, x: float) -> float:
    """The curve's y at x within its range, by linear interpolation."""
    right = bisect_right(curve, x, key=lambda point: point[0])
    if right == len(curve):
        return curve[-1][1]
    (x0, y0), (x1, y1) = curve[right - 1], curve[right]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def _question_dots(
    changes: Sequence[QuestionChange], printable: Callable[[str], str]
) -> Markup | None:
    if not changes:
        return None
    improved = sum(change.change < 0 for change in changes)
    return dot_plot(
        [Dot(c.change, printable(f"{c.question} ({signed(c.change)})")) for c in changes],
        id="questions",
        title="Change of the loss of each question",
        desc=f"{improved} of {len(changes)} questions have a lower loss",
        y_label="change of loss per answer token (nats)",
    )


def _outcomes(arm: Mapping[str, Any]) -> dict[str, Outcome]:
    by_probe: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for run in arm["runs"]:
        for result in run["results"]:
            by_probe[result["probe_id"]].append(result)
    return {
        probe: Outcome(
            loss=fmean(r["loss"] for r in results),
            right=sum(r["exact"] for r in results),
            seeds=len(results),
            prediction=results[0]["prediction"],
        )
        for probe, results in by_probe.items()
    }


def _pooled(arm: Mapping[str, Any]) -> dict[str, tuple[float, int]]:
    """Negative log-likelihood and tokens of each question, summed over seeds."""
    sums: dict[str, tuple[float, int]] = {}
    for run in arm["runs"]:
        for result in run["results"]:
            nll, tokens = sums.get(result["probe_id"], (0.0, 0))
            sums[result["probe_id"]] = (nll - result["logprob"], tokens + result["tokens"])
    return sums
