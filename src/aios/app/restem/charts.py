"""What the report of ReST-EM draws: rewards, held-out passages, strategies, diversity, time.

Takes the state of a run and the candidates of its rounds; gives charts as inline SVG, None where
there is nothing to draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from markupsafe import Markup

from aios.app.charts.histogram import HistogramRow, histogram_rows
from aios.app.charts.report_page import NO_BREAK, percent, seconds_words
from aios.app.charts.rounds import BarRow, StripColumn, StripPoint, paired_strips, stacked_bars
from aios.app.charts.svg import Series, line_chart
from aios.app.restem.generator_gain import Unit, generator_name, mean_interval
from aios.core.restem import Diversity, HeldOut, ReSTEMState, RoundReport, TriedPassage

Candidates = Mapping[int, Sequence[TriedPassage]]

STAGES = {
    "propose": "writing",
    "try": "trials",
    "fit": "training the generator",
    "held-out": "held-out passages",
}
DIVERSITY: dict[str, Callable[[Diversity], float]] = {
    "distinct words": lambda one: one.distinct_1,
    "distinct word pairs": lambda one: one.distinct_2,
    "near duplicates": lambda one: one.near_duplicates,
    "copied from the passage": lambda one: one.copied,
}
_OUTCOMES = {
    "rewarded": "good",
    "better, not rewarded": "good pale",
    "not better": "even pale",
    "no result": "bad",
}


def charts(
    state: ReSTEMState,
    candidates: Candidates,
    names: Mapping[str, str],
    unit: Unit,
    printable: Callable[[str], str],
) -> dict[str, Markup | None]:
    """The charts by name; None where there is nothing to draw.

    Args:
        state: The rounds that are done.
        candidates: Tried passages by round, where they are known.
        names: Titles of passages by id.
        unit: How improvements are written.
        printable: Makes a text that is not ours fit to be shown.
    """
    rounds = [report for report in state.rounds if report.number]
    return {
        "rewards": _rewards(rounds, candidates, unit),
        "outcomes": _outcomes(rounds),
        "held_out": _held_out(state, names, unit, printable),
        "strategies": _strategies(state, rounds, printable),
        "diversity": _diversity(rounds),
        "seconds": _seconds(state.rounds, printable),
    }


def stage_names(rounds: Sequence[RoundReport]) -> list[str]:
    """The stages that took time, in their order, unknown ones last."""
    seen = dict.fromkeys(stage for report in rounds for stage in report.seconds)
    return [*(s for s in STAGES if s in seen), *(s for s in seen if s not in STAGES)]


def better(report: RoundReport) -> int:
    """Candidates that are better than their baseline at all."""
    return sum(value > 0 for value in report.improvements)


def _rewards(rounds: Sequence[RoundReport], candidates: Candidates, unit: Unit) -> Markup | None:
    rows = []
    for report in rounds:
        others, rewarded = _split(report, candidates.get(report.number, ()))
        values = [*others, *rewarded]
        if not values:
            continue
        mean = unit.factor * fmean(values)
        rows.append(
            HistogramRow(
                label=f"round {report.number}",
                notes=(
                    f"{len(values)} candidate{'' if len(values) == 1 else 's'}",
                    f"{len(rewarded)} rewarded",
                    f"mean {unit.number(mean / unit.factor)}",
                ),
                others=[unit.factor * value for value in others],
                counted=[unit.factor * value for value in rewarded],
                threshold=None if report.threshold is None else unit.factor * report.threshold,
            )
        )
    if not rows:
        return None
    return histogram_rows(
        rows,
        id="rewards",
        title="Improvement of each candidate over its baseline, by round",
        desc="; ".join(f"{row.label}: {', '.join(row.notes)}" for row in rows),
        x_label=f"improvement over the baseline ({unit.long}); to the right is better",
        names=("not rewarded", "rewarded"),
        decimals=unit.decimals,
    )


def round_so_far(values: Sequence[float], threshold: float | None, unit: Unit) -> Markup:
    """The improvements of the candidates that were tried so far in a round.

    Args:
        values: At least one.
        threshold: What is rewarded, where that is known before the round's end.
        unit: How improvements are written.
    """
    mean = f"mean {unit.number(fmean(values))}"
    known = threshold is not None
    below = [unit.factor * value for value in values if threshold is None or value <= threshold]
    above = [unit.factor * value for value in values if threshold is not None and value > threshold]
    row = HistogramRow(
        label="so far",
        notes=(f"{len(values)} tried", f"{sum(value > 0 for value in values)} better", mean),
        others=below,
        counted=above,
        threshold=unit.factor * threshold if threshold is not None else None,
    )
    return histogram_rows(
        [row],
        id="so-far",
        title="Improvement of the candidates of this round so far",
        desc=", ".join(row.notes),
        x_label=f"improvement over the baseline ({unit.long}); to the right is better",
        names=("not rewarded", "rewarded") if known else ("not judged yet", "rewarded"),
        decimals=unit.decimals,
    )


def _split(
    report: RoundReport, passages: Sequence[TriedPassage]
) -> tuple[list[float], list[float]]:
    """Improvements of a round: of candidates that are not rewarded, and of those that are.

    From the candidates where they are known; else told apart by the round's threshold.
    """
    tried = [one for passage in passages for one in passage.candidates]
    pairs = [
        (one.improvement, one.rewarded)
        for one in tried
        if one.improvement is not None and math.isfinite(one.improvement)
    ]
    if not pairs:
        limit = report.threshold
        pairs = [
            (value, limit is not None and value > limit)
            for value in report.improvements
            if math.isfinite(value)
        ]
    return [v for v, above in pairs if not above], [v for v, above in pairs if above]


def _outcomes(rounds: Sequence[RoundReport]) -> Markup | None:
    rows = []
    for report in rounds:
        if not report.asked:
            continue
        # Rewarded under a threshold below zero, a candidate need not be better.
        between = max(0, better(report) - report.rewarded)
        rest = max(0, report.tried - report.rewarded - between)
        counts = (report.rewarded, between, rest, max(0, report.asked - report.tried))
        rows.append(
            BarRow(
                f"round {report.number}",
                [100 * count / report.asked for count in counts],
                f"of {report.asked:,}",
            )
        )
    if not rows:
        return None
    return stacked_bars(
        list(_OUTCOMES),
        rows,
        id="outcomes",
        title="Share of the candidates that beat their baseline, by round",
        desc="; ".join(f"{row.label}: {row.values[0]:.0f} percent rewarded" for row in rows),
        x_label="share of the candidates asked for",
        unit="%",
        colours=list(_OUTCOMES.values()),
    )


def _held_out(
    state: ReSTEMState,
    names: Mapping[str, str],
    unit: Unit,
    printable: Callable[[str], str],
) -> Markup | None:
    def point(passage: str, value: float) -> StripPoint:
        label = f"{names.get(passage, passage)}: {unit.signed(value)}"
        return StripPoint(passage, unit.factor * value, printable(label))

    def column(report: RoundReport, held_out: HeldOut) -> StripColumn:
        low, high = mean_interval(held_out) or (None, None)
        return StripColumn(
            label=generator_name(report.number),
            note="best" if report.number == state.best else "",
            points=[point(*entry) for entry in held_out.passages.items()],
            mean=unit.factor * held_out.mean,
            low=None if low is None else unit.factor * low,
            high=None if high is None else unit.factor * high,
            style=1 if report.number else 0,
        )

    columns = [
        column(report, report.held_out)
        for report in state.rounds
        if report.held_out is not None and report.held_out.passages
    ]
    if not columns:
        return None
    return paired_strips(
        columns,
        id="held-out",
        title="Improvement over the baseline on held-out passages, by generator",
        desc="; ".join(f"{c.label}: mean {c.mean:.{unit.decimals}f}" for c in columns),
        y_label=f"improvement over the baseline ({unit.long})",
        decimals=unit.decimals,
    )


def _strategies(
    state: ReSTEMState, rounds: Sequence[RoundReport], printable: Callable[[str], str]
) -> Markup | None:
    shares = [
        (f"round {report.number}", {name: arm.share for name, arm in report.arms.items()})
        for report in rounds
        if report.arms
    ]
    if not shares:
        return None
    if state.shares:
        shares.append(("next", dict(state.shares)))
    names = list(dict.fromkeys(name for _, row in shares for name in row))
    return stacked_bars(
        [printable(name) for name in names],
        [BarRow(label, [100 * row.get(name, 0.0) for name in names]) for label, row in shares],
        id="strategies",
        title="Share of each strategy in the candidates, by round",
        desc="; ".join(
            f"{label}: " + ", ".join(f"{printable(n)} {100 * row[n]:.0f} percent" for n in row)
            for label, row in shares
        ),
        x_label="share of the candidates asked for",
        unit="%",
    )


def _diversity(rounds: Sequence[RoundReport]) -> Markup | None:
    known = [(report.number, report.diversity) for report in rounds if report.diversity]
    if len(known) < 2:
        return None
    series = []
    for style, (name, value) in enumerate(DIVERSITY.items()):
        line = [(float(number), 100 * value(one)) for number, one in known]
        series.append(Series(name, style, line, marks=line, mark_note="of a round"))
    return line_chart(
        series,
        id="diversity",
        title="Diversity of the self-edits by round",
        desc="; ".join(
            f"{one.name}: {one.points[0][1]:.0f} to {one.points[-1][1]:.0f} percent"
            for one in series
        ),
        x_label="round",
        y_label="%",
        x_ticks=[number for number, _ in known],
    )


def _seconds(rounds: Sequence[RoundReport], printable: Callable[[str], str]) -> Markup | None:
    stages = stage_names(rounds)
    timed = [report for report in rounds if sum(report.seconds.values()) > 0]
    if not timed:
        return None
    longest = max(sum(report.seconds.values()) for report in timed)
    size, unit = (3600, "h") if longest >= 7200 else (60, "min") if longest >= 120 else (1, "s")
    return stacked_bars(
        [printable(STAGES.get(stage, stage)) for stage in stages],
        [
            BarRow(
                f"round {report.number}" if report.number else "untrained",
                [max(0.0, report.seconds.get(stage, 0.0)) / size for stage in stages],
                seconds_words(sum(report.seconds.values())),
            )
            for report in timed
        ],
        id="seconds",
        title="Time by round and stage",
        desc="; ".join(
            f"round {report.number}: {sum(report.seconds.values()):.0f} seconds" for report in timed
        ),
        x_label=f"time ({unit})",
        unit=unit,
    )


def diversity_warnings(rounds: Sequence[RoundReport]) -> list[str]:
    """A line for each measure of diversity that lost more than a third since its first round.

    The measures are distinct words and word pairs, and the share of the candidates that nearly
    repeat no other. The round with the least is named.
    """
    measures: dict[str, Callable[[Diversity], float]] = {
        "The share of distinct words": lambda one: one.distinct_1,
        "The share of distinct word pairs": lambda one: one.distinct_2,
        "The share of candidates that repeat no other": lambda one: 1 - one.near_duplicates,
    }
    known = [(report.number, report.diversity) for report in rounds if report.diversity]
    warnings = []
    for name, value in measures.items():
        levels = [(value(one), number) for number, one in known]
        if len(levels) < 2 or levels[0][0] <= 0:
            continue
        (first, start), (least, where) = levels[0], min(levels[1:])
        if least < first * 2 / 3:
            warnings.append(
                f"{name} fell from {100 * first:.0f}{NO_BREAK}% in round {start} to "
                f"{100 * least:.0f}{NO_BREAK}% in round {where} ({percent(least / first - 1)}): "
                "the generator may be collapsing onto few texts."
            )
    return warnings
