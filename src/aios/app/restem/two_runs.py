"""Two runs of ReST-EM beside each other: what their generators are worth on the same passages.

Takes two finished runs; gives a `RunComparison`. Compared are the generators of each round, and
the best of each run, on the held-out passages that both runs have: by how much training on a
generator's self-edits improves on the baseline. A difference is second − first, its interval that
of a paired bootstrap over passages, as in a run's own report (`aios.app.restem.generator_gain`).

Runs on different models, with another reward or another baseline measure different things, and
runs without a held-out passage in common cannot be paired: these have no differences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from markupsafe import Markup

from aios.app.charts.report_page import interval_words, tone_of
from aios.app.charts.svg import Series, line_chart
from aios.app.restem.generator_gain import (
    ACCURACY,
    METRICS,
    Gain,
    Unit,
    generator_name,
    mean_interval,
    paired_interval,
    unit_of,
)
from aios.app.restem.records import read_state
from aios.app.restem.report import FEW_PASSAGES
from aios.app.restem.tables import share
from aios.app.runs.beside import NAMES, NO_VALUE, Block, Row, RunComparison
from aios.app.runs.listing import RunEntry
from aios.core.errors import StorageError
from aios.core.files import read_json
from aios.core.restem import HeldOut, ReSTEMState, RoundReport

PLAN_FILE = "plan.json"

_MOST_ROUNDS = 50  # shown beside each other
_SAME = {
    "model": "They are on different models: a difference would be one of the models.",
    "restem.reward": "They measure different rewards, so their improvements are not in one unit.",
    "restem.baseline": "They measure improvements over different baselines.",
}


@dataclass(frozen=True, slots=True)
class _Side:
    """A run as it is compared."""

    state: ReSTEMState
    plan: Mapping[str, Any]

    def held_out(self, number: int) -> HeldOut | None:
        """A round's generator on held-out passages; None where that is not known."""
        rounds = self.state.rounds
        return rounds[number].held_out if number < len(rounds) else None


def compare_restem(runs: tuple[RunEntry, RunEntry]) -> RunComparison:
    """Compares two finished runs of ReST-EM.

    Raises:
        StorageError: A state or a plan cannot be read.
    """
    first, second = (_Side(read_state(run.path).state, _plan(run.path)) for run in runs)
    unit = unit_of(first.plan.get("restem.reward"))
    shared = _shared(first, second)
    problem = _incomparable(first, second, shared)
    blocks = []
    best = first.state.best, second.state.best
    blocks.append(
        Block(
            "Best generator",
            f"{generator_name(best[0])} of the first run, {generator_name(best[1])} of the second",
            tuple(_rows(first, second, best, shared, unit, paired=not problem)),
            None if problem else _held_out_chart((first, second), unit),
        )
    )
    for number in range(min(len(first.state.rounds), len(second.state.rounds), _MOST_ROUNDS)):
        rows = [*_rows(first, second, (number, number), shared, unit, paired=not problem)]
        if number:
            rows += _counts(first.state.rounds[number], second.state.rounds[number], unit)
        name = f"Round {number}" if number else "Untrained generator"
        blocks.append(Block(name, "", tuple(rows)))
    lengths = [len(side.state.rounds) for side in (first, second)]
    return RunComparison(
        runs,
        problem,
        basis="" if problem else _basis(shared, first, second),
        blocks=tuple(blocks),
        only=tuple(_more_rounds(lengths)),
    )


def _plan(path: Path) -> Mapping[str, Any]:
    """What a run's results follow from; empty where it is not kept."""
    found = read_json(path / PLAN_FILE, default={})
    if not isinstance(found, dict):
        raise StorageError(f"{path / PLAN_FILE} is corrupt: not a JSON object")
    return found


def _shared(first: _Side, second: _Side) -> list[str]:
    """The held-out passages that both runs examined their untrained generators on."""
    ours, theirs = first.held_out(0), second.held_out(0)
    if ours is None or theirs is None:
        return []
    return [passage for passage in ours.passages if passage in theirs.passages]


def _incomparable(first: _Side, second: _Side, shared: Sequence[str]) -> str:
    for name, why in _SAME.items():
        if first.plan.get(name) != second.plan.get(name):
            return why
    if not shared:
        return "They have no held-out passage in common, so nothing can be paired."
    return ""


def _rows(
    first: _Side,
    second: _Side,
    numbers: tuple[int, int],
    shared: Sequence[str],
    unit: Unit,
    *,
    paired: bool,
) -> list[Row]:
    """Improvement and accuracy of one generator of each run."""
    pair = first.held_out(numbers[0]), second.held_out(numbers[1])
    names = ("Improvement on the baseline", "Gain in accuracy")
    rows = []
    for metric, name in zip(METRICS, names, strict=True):
        of = unit if metric == METRICS[0] else ACCURACY
        values = [_values(held_out, metric) for held_out in pair]
        if not paired or pair[0] is None or pair[1] is None:
            words = [of.signed(fmean(own.values())) if own else NO_VALUE for own in values]
            rows.append(Row(name, *words))
            continue
        both = [p for p in shared if all(p in own for own in values)]
        if both:
            rows.append(_row(name, metric, [{p: v[p] for p in both} for v in values], of))
    return rows


def _row(name: str, metric: str, values: Sequence[Mapping[str, float]], unit: Unit) -> Row:
    before, after = values
    gain = Gain.between(
        (NAMES[1], NAMES[0]),
        metric,
        (fmean(after.values()), fmean(before.values())),
        paired_interval(after, before),
        unit,
        n=len(before),
    )
    return Row(
        name,
        unit.signed(gain.control_value),
        unit.signed(gain.treatment_value),
        change=unit.signed(gain.change),
        interval="" if gain.ci95 is None else interval_words(gain.ci95, unit.signed),
        verdict=gain.verdict,
        tone=tone_of(gain.to_dict()),
    )


def _values(held_out: HeldOut | None, metric: str) -> Mapping[str, float]:
    if held_out is None:
        return {}
    return held_out.passages if metric == METRICS[0] else held_out.accuracy


def _counts(first: RoundReport, second: RoundReport, unit: Unit) -> list[Row]:
    """What a round came to on the passages that are optimised on, which may be others."""
    both = (first, second)
    rewarded = [
        f"{share(one.rewarded, one.asked)} ({one.rewarded:,} of {one.asked:,})" if one.asked
        else NO_VALUE
        for one in both
    ]  # fmt: skip
    return [
        Row("Candidates rewarded", *rewarded),
        Row("Mean improvement of candidates", *(unit.signed(one.improvement) for one in both)),
        Row("Trials", *(f"{one.trials:,}" for one in both)),
    ]


def _held_out_chart(sides: tuple[_Side, _Side], unit: Unit) -> Markup | None:
    """Improvement on held-out passages by round, of both runs."""
    series = []
    for name, style, side in zip(NAMES, (1, 2), sides, strict=True):
        points, band = [], []
        for report in side.state.rounds:
            if report.held_out is None or not report.held_out.passages:
                continue
            points.append((float(report.number), unit.factor * report.held_out.mean))
            low, high = mean_interval(report.held_out) or (None, None)
            if low is not None and high is not None:
                band.append((float(report.number), unit.factor * low, unit.factor * high))
        if points:
            best = [point for point in points if point[0] == side.state.best]
            series.append(Series(name, style, points, band, marks=best, mark_note="best round"))
    if not series:
        return None
    last = int(max(x for one in series for x, _ in one.points))
    step = max(1, -(-last // 10))
    return line_chart(
        series,
        id="held-out-rounds",
        title="Improvement on held-out passages by round",
        desc="; ".join(f"{s.name}: {s.points[0][1]:.3f} to {s.points[-1][1]:.3f}" for s in series),
        x_label="round",
        y_label=f"improvement on the baseline ({unit.long})",
        x_ticks=[float(tick) for tick in range(0, last + 1, step)],
    )


def _basis(shared: Sequence[str], first: _Side, second: _Side) -> str:
    n = len(shared)
    text = f"Differences are paired by {n:,} held-out passage{'' if n == 1 else 's'} of both runs"
    if first.plan.get("dataset") != second.plan.get("dataset"):
        text += ", which are taken as the same by their ids: their files differ"
    if 1 < n < FEW_PASSAGES:
        text += "; with so few, the intervals are likely too narrow"
    return f"{text}."


def _more_rounds(lengths: Sequence[int]) -> list[str]:
    if lengths[0] == lengths[1]:
        return []
    longer = 0 if lengths[0] > lengths[1] else 1
    rounds = [max(0, length - 1) for length in lengths]
    return [f"The {NAMES[longer]} has more rounds ({rounds[0]} and {rounds[1]})."]
