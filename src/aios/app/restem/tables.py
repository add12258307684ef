"""The tables of the report of ReST-EM: outcomes, reliability, gain, strategies, cost.

Takes the state of a run and the candidates of its rounds; gives rows of text, a dash where a
number is not known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from aios.app.charts.report_page import NO_BREAK, Cell, Table, interval_words, seconds_words
from aios.app.restem.charts import STAGES, Candidates, better, stage_names
from aios.app.restem.generator_gain import (
    ACCURACY,
    Gain,
    Unit,
    generator_name,
    mean_interval,
    totals,
)
from aios.core.evaluation.statistics import FloatArray, Ratio, paired_bootstrap
from aios.core.restem import ReSTEMState, RoundReport, TriedPassage
from aios.core.seal.reliability import Reliability
from aios.core.seal.reliability import report as measure_reliability

DASH = "–"

_SAME = 1e-6


def tables(
    state: ReSTEMState,
    candidates: Candidates,
    compared: Sequence[Gain],
    unit: Unit,
    estimate: object,
) -> dict[str, Table | None]:
    """The tables by name; None where there is nothing to put in.

    Args:
        state: The rounds that are done.
        candidates: Tried passages by round, where they are known.
        compared: Rounds against the untrained generator.
        unit: How improvements are written.
        estimate: What the run was estimated to cost; see `render_restem_report`.
    """
    rounds = [report for report in state.rounds if report.number]
    return {
        "outcomes": _outcomes(rounds, candidates, unit),
        "reliability": _reliability(rounds, candidates, unit),
        "held_out": _held_out(state, compared, unit),
        "strategies": _strategies(rounds, unit),
        "diversity": _diversity(rounds),
        "learning": _learning(rounds),
        "cost": _cost(state),
        "estimate": _estimate(estimate),
    }


def share(part: float, whole: float) -> str:
    """``41 %``; a dash for a share of nothing."""
    return f"{100 * part / whole:.0f}{NO_BREAK}%" if whole else DASH


def _outcomes(rounds: Sequence[RoundReport], candidates: Candidates, unit: Unit) -> Table | None:
    rows = [
        (
            f"round {report.number}",
            f"{report.passages:,}",
            f"{report.asked:,}",
            f"{report.filtered:,}",
            f"{report.failed:,}",
            f"{report.tried:,}",
            _count(better(report), report.asked),
            (
                _count(report.rewarded, report.asked),
                _rewarded_interval(report, candidates.get(report.number, ())),
            ),
            f"{report.kept:,}",
            unit.signed(report.improvement),
            ACCURACY.signed(report.accuracy_gain),
        )
        for report in rounds
    ]
    columns = (
        "Round", "Passages", "Candidates asked for", "Filtered", "Failed", "Tried",
        "Better than baseline", "Rewarded", "Kept", "Mean improvement",
        "Accuracy gain",
    )  # fmt: skip
    return Table("Outcome of the candidates by round", columns, rows) if rows else None


def _count(part: int, whole: int) -> str:
    return f"{part:,} ({share(part, whole)})"


def _rewarded_interval(report: RoundReport, passages: Sequence[TriedPassage]) -> str:
    """Of the share rewarded, passages resampled; empty where the candidates are not known."""
    asked = [passage for passage in passages if passage.asked > 0]
    rewarded = [sum(one.rewarded for one in passage.candidates) for passage in asked]
    known = (sum(rewarded), sum(passage.asked for passage in asked))
    if len(asked) < 2 or known != (report.rewarded, report.asked):
        return ""
    ratio = Ratio(rewarded, [passage.asked for passage in asked])
    found = paired_bootstrap(ratio, ratio, [passage.passage_id for passage in asked], _treatment)
    return f"{100 * found.low:.0f} to {100 * found.high:.0f}{NO_BREAK}%"


def _treatment(treatment: FloatArray, control: FloatArray) -> FloatArray:
    return np.asarray(treatment)


def _reliability(rounds: Sequence[RoundReport], candidates: Candidates, unit: Unit) -> Table | None:
    rows = []
    for report in rounds:
        if not report.reliability and report.icc is None and report.noise is None:
            continue
        found = _measured(report, candidates.get(report.number, ()))
        rows.append(
            (
                f"round {report.number}",
                DASH if report.icc is None else f"{report.icc:.2f}".replace("-", "−"),
                unit.size(report.noise),
                unit.size(report.threshold),
                DASH if found is None else share(found.correct_picks or 0, 1),
                DASH if found is None else share(found.chance_picks or 0, 1),
            )
        )
    columns = (
        "Round", "ICC", "Noise", "Threshold", "Correct picks", "By chance",
    )  # fmt: skip
    if not rows:
        return None
    return Table("Reliability of the reward by round", columns, rows)


def _measured(report: RoundReport, passages: Sequence[TriedPassage]) -> Reliability | None:
    """The reliability from the candidates' repeats, if it is the one that the round recorded."""
    repeats = {
        passage.passage_id: {
            one.edit.index: [value for value in one.improvements if math.isfinite(value)]
            for one in passage.candidates
        }
        for passage in passages
    }
    if report.icc is None or not any(v for passage in repeats.values() for v in passage.values()):
        return None
    found = measure_reliability(repeats)
    icc = found.within.icc
    return found if icc is not None and abs(icc - report.icc) < _SAME else None


def _held_out(state: ReSTEMState, compared: Sequence[Gain], unit: Unit) -> Table | None:
    by_round = {(gain.treatment, gain.metric): gain for gain in compared}
    rows: list[tuple[Cell, ...]] = []
    marked: set[int] = set()
    for report in state.rounds:
        held_out = report.held_out
        if held_out is None or not held_out.passages:
            continue
        name = generator_name(report.number)
        gain = by_round.get((name, "improvement"))
        if report.number == state.best:
            marked.add(len(rows))
        rows.append(
            (
                name,
                f"{len(held_out.passages):,}",
                share(held_out.rewarded, 1),
                (unit.signed(held_out.mean), _ends(mean_interval(held_out), unit)),
                _change(gain, unit),
                _change(by_round.get((name, "accuracy_gain")), ACCURACY),
                gain.verdict if gain else DASH,
            )
        )
    columns = (
        "Generator", "Passages", "Rewarded", "Mean improvement", "Change from untrained",
        "Change in accuracy", "Verdict",
    )  # fmt: skip
    if not rows:
        return None
    return Table("Held-out passages by generator", columns, rows, frozenset({6}), frozenset(marked))


def _change(gain: Gain | None, unit: Unit) -> tuple[str, str]:
    return (unit.signed(gain.change), _ends(gain.ci95, unit)) if gain else (DASH, "")


def _ends(ends: tuple[float, float] | None, unit: Unit) -> str:
    return "" if ends is None else interval_words(ends, unit.signed)


def _strategies(rounds: Sequence[RoundReport], unit: Unit) -> Table | None:
    rows = [
        (
            name,
            f"{report.number}",
            share(arm.share, 1),
            f"{arm.asked:,}",
            f"{arm.tried:,}",
            _count(arm.rewarded, arm.tried),
            unit.signed(arm.improvement),
            f"{arm.tokens:,.0f}",
            unit.size(arm.value),
            share(arm.next_share, 1),
        )
        for report in rounds
        for name, arm in report.arms.items()
    ]
    columns = (
        "Strategy", "Round", "Share", "Asked for", "Tried", "Rewarded (of tried)",
        "Mean improvement", "Tokens each", "Paid per 1000 tokens", "Next share",
    )  # fmt: skip
    return Table("What each strategy paid", columns, rows) if rows else None


def _diversity(rounds: Sequence[RoundReport]) -> Table | None:
    rows = [
        (
            f"round {report.number}",
            f"{one.distinct_1:.3f}",
            f"{one.distinct_2:.3f}",
            share(one.near_duplicates, 1),
            share(one.copied, 1),
        )
        for report in rounds
        if (one := report.diversity)
    ]
    columns = (
        "Round", "Distinct words (distinct-1)", "Distinct word pairs (distinct-2)",
        "Near duplicates", "Copied from the passage",
    )  # fmt: skip
    return Table("Diversity of the self-edits by round", columns, rows) if rows else None


def _learning(rounds: Sequence[RoundReport]) -> Table | None:
    rows = [
        (
            f"round {report.number}",
            *(_number(report.sft.get(name), ",.0f") for name in ("examples", "tokens", "steps")),
            _number(report.sft.get("loss_first"), ".3f"),
            _number(report.sft.get("loss_last"), ".3f"),
            seconds_words(report.sft.get("seconds", 0.0)),
        )
        for report in rounds
        if report.sft
    ]
    columns = ("Round", "Examples", "Tokens", "Steps", "First loss", "Last loss", "Time")
    return Table("Training of the generator by round", columns, rows) if rows else None


def _number(value: float | None, form: str) -> str:
    return DASH if value is None or not math.isfinite(value) else f"{value:{form}}"


def _cost(state: ReSTEMState) -> Table | None:
    stages = stage_names(state.rounds)

    def row(
        name: str, seconds: Mapping[str, float], counts: Mapping[str, float]
    ) -> tuple[str, ...]:
        return (
            name,
            *(seconds_words(seconds.get(stage, 0.0)) for stage in stages),
            seconds_words(sum(seconds.values())),
            *(f"{counts[name]:,.0f}" for name in ("trials", "failed_trials")),
            *(f"{counts[name]:,.0f}" for name in ("tokens", "train_tokens")),
        )

    if not state.rounds:
        return None
    rows = [
        row(
            f"round {report.number}" if report.number else "untrained",
            report.seconds,
            {
                "trials": report.trials,
                "failed_trials": report.failed_trials,
                "tokens": report.tokens,
                "train_tokens": report.train_tokens,
            },
        )
        for report in state.rounds
    ]
    whole = {s: sum(report.seconds.get(s, 0.0) for report in state.rounds) for s in stages}
    rows.append(row("all", whole, totals(state)))
    names = [STAGES.get(stage, stage) for stage in stages]
    columns = (
        "Round", *(name[:1].upper() + name[1:] for name in names), "All stages", "Trials run",
        "Failed trials", "Tokens written", "Tokens trained on",
    )  # fmt: skip
    return Table("Cost by round", columns, rows, marked=frozenset({len(rows) - 1}))


def _estimate(estimate: object) -> Table | None:
    if not isinstance(estimate, Sequence) or isinstance(estimate, str):
        return None
    rows = [row for one in estimate if (row := _estimate_row(one))]
    columns = ("Quantity", "Estimated", "Range", "Actual", "Actual / estimated")
    return Table("Estimate beside actual", columns, rows) if rows else None


def _estimate_row(one: object) -> tuple[str, ...] | None:
    """A row of a comparison as `core.restem_costs.Compared` has it; None if it is none."""
    if not isinstance(one, Mapping) or not isinstance(one.get("estimated"), Mapping):
        return None
    low, middle, high = (_finite(one["estimated"].get(end)) for end in ("low", "middle", "high"))
    actual = _finite(one.get("actual"))
    if middle is None or actual is None:
        return None
    is_time = one.get("unit") == "s"

    def words(value: float | None) -> str:
        if value is None:
            return DASH
        return seconds_words(value) if is_time else f"{value:,.0f}"

    name = str(one.get("name"))
    label = f"time: {STAGES.get(name, name)}" if is_time else name
    return (
        label,
        words(middle),
        DASH if low is None or high is None else f"{words(low)} to {words(high)}",
        words(actual),
        f"{actual / middle:.2f}" if middle > 0 else DASH,
    )


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None
