"""What people and programs see of a ReST-EM run: its status, its rounds, its candidates.

Takes a `RunStatus` or the candidates of rounds; gives lines of text, rows of tables, or a JSON
document. Improvements are over the baseline, in the unit of the run's reward (nats an answer token
where that is the loss).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from statistics import stdev
from typing import TYPE_CHECKING, Any

from aios.cli.rendering import to_json
from aios.cli.text import NOTHING, format_bytes, format_count, format_duration, format_percent
from aios.cli.text_plots import columns, histogram, sparkline

if TYPE_CHECKING:
    from aios.app.restem.records import RoundRewards
    from aios.app.restem.status import RunStatus
    from aios.core.restem import RoundReport, Tried

STATES = {
    "running": "running",
    "stopping": "running, and asked to stop after the work in hand",
    "done": "done",
    "failed": "failed",
    "interrupted": "interrupted; what it has done is kept",
    "stale": "killed: no process works on it, and it has not said that it ended",
}
ROUND_HEADINGS = (
    "round",
    "rewarded",
    "share",
    "kept",
    "improvement",
    "held-out",
    "gain",
    "time",
    "",
)
CANDIDATE_HEADINGS = (
    "passage",
    "strategy",
    "#",
    "repeats",
    "improvement",
    "rewarded",
    "kept",
    "accuracy",
    "the edit begins",
)
_FIRST_WORDS = 48  # characters of an edit
_LEAST_FOR_SPARKLINE = 3


# ------------------------------------------------------------ status


def status_lines(status: RunStatus, now: datetime, *, blocks: bool) -> list[str]:
    """The whole status as lines.

    Args:
        status: Of the run.
        now: The time that ages are told from.
        blocks: Whether block characters can be written.
    """
    facts = [(name, value) for name, value in _facts(status, now) if value]
    width = max(len(name) for name, _ in facts)
    lines = [f"{name:<{width}}  {value}" for name, value in facts]
    lines += _round_lines(status, blocks=blocks)
    lines += _distribution_lines(status, blocks=blocks)
    return lines


def stage_text(status: RunStatus) -> str:
    """Where it stands in one line: round, stage, count, rate, time left, note."""
    parts = []
    if status.round is not None:
        of = f" of {status.rounds}" if status.rounds is not None and status.round else ""
        parts.append(f"round {status.round}{of}")
    if status.stage:
        parts.append(f"{status.stage} ({status.detail})" if status.detail else status.stage)
    count = format_count(status.done)
    if status.total:
        count += f"/{format_count(status.total)}"
    facts = [f"{count} {status.unit}".rstrip()] if status.total or status.done else []
    if status.rate is not None:
        facts.append(f"{_rate(status.rate)} {status.unit or 'units'}/min")
    if status.eta_stage is not None:
        facts.append(f"{format_duration(status.eta_stage)} left")
    if status.note:
        facts.append(status.note)
    head = ", ".join(parts)
    return f"{head}: {', '.join(facts)}" if head and facts else head or ", ".join(facts)


def round_text(report: RoundReport, first: RoundReport) -> str:
    """A finished round in one line; `first` is round 0."""
    cells = dict(zip(ROUND_HEADINGS, _round_cells(report, first), strict=True))
    facts = [f"rewarded {cells['rewarded']}"] if report.tried else []
    facts += [f"{name} {cells[name]}" for name in ("kept", "improvement") if report.tried]
    facts += [f"{name} {cells[name]}" for name in ("held-out", "gain") if cells[name] != NOTHING]
    return f"round {report.number} done: {', '.join(facts) or 'nothing was tried'}"


def status_document(status: RunStatus) -> dict[str, Any]:
    """The status as JSON types; the rounds that are done stand under ``rounds_done``."""
    document: dict[str, Any] = {}
    for one in fields(status):
        value = getattr(status, one.name)
        if isinstance(value, datetime):
            value = value.isoformat(timespec="seconds")
        if one.name != "record":
            document[one.name] = to_json(value)
    record = status.record
    document["rounds_done"] = [
        {**to_json(report), "held_out_mean": report.held_out.mean if report.held_out else None}
        for report in record.rounds
    ]
    return {**document, "best": record.best, "stopped": record.stopped, "shares": record.shares}


def _facts(status: RunStatus, now: datetime) -> Iterator[tuple[str, str]]:
    live = status.live
    yield "run", status.id
    yield "state", STATES[status.state] + (f": {status.summary}" if status.summary else "")
    yield "stage" if live else "stood at", stage_text(status)
    if status.candidates or status.trials_left:
        parts = [f"{status.trials_done:,} done for {status.candidates:,} candidates"]
        if status.trials_left is not None:
            parts.append(f"about {status.trials_left:,} left in the round")
        if status.trial_rate is not None:
            parts.append(f"{_rate(status.trial_rate)} a minute")
        yield "trials", ", ".join(parts)
    if status.eta_run is not None:
        yield "time left", f"about {format_duration(status.eta_run)} if all rounds are run"
    yield "no more rounds", status.record.stopped
    if status.rss_bytes and live:
        yield (
            "memory",
            f"{format_bytes(status.rss_bytes)}, at most {format_bytes(status.peak_rss_bytes)}",
        )
    elif status.peak_rss_bytes:
        yield "memory", f"at most {format_bytes(status.peak_rss_bytes)}"
    if status.failures:
        yield "failures", f"{status.failures:,}, the last: {status.last_failure}"
    yield "started", _ago(status.started, now)
    yield "last event", _ago(status.updated, now)
    yield "broken lines", f"{status.broken_lines:,} in events.jsonl" if status.broken_lines else ""
    if status.state not in ("done", "running"):
        yield "go on with", status.resume


def _ago(time: datetime | None, now: datetime) -> str:
    if time is None:
        return ""
    shown = time.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return f"{shown} ({format_duration(max(0.0, (now - time).total_seconds()))} ago)"


def _round_lines(status: RunStatus, *, blocks: bool) -> list[str]:
    """A line a finished round, and how the held-out passages went."""
    reports = status.record.rounds
    if not reports:
        return []
    rows: list[tuple[str, ...]] = [ROUND_HEADINGS]
    for report in reports:
        cells = _round_cells(report, reports[0])
        best = len(reports) > 1 and report.number == status.record.best
        rows.append((*cells[:-1], "best" if best else ""))
    lines = ["", *columns(rows, right=range(8))]
    means = [report.held_out.mean for report in reports if report.held_out is not None]
    if len(means) >= _LEAST_FOR_SPARKLINE:
        lines.append(f"held-out by round  {sparkline(means, blocks=blocks)}")
    return lines


def _round_cells(report: RoundReport, first: RoundReport) -> tuple[str, ...]:
    """Cells under `ROUND_HEADINGS`; the gain is over the untrained generator's."""
    held_out = report.held_out.mean if report.held_out is not None else None
    before = first.held_out.mean if first.held_out is not None and report is not first else None
    gain = held_out - before if held_out is not None and before is not None else None
    share = report.rewarded / report.tried if report.tried else None
    return (
        str(report.number),
        f"{report.rewarded:,}/{report.tried:,}" if report.tried else NOTHING,
        format_percent(share, 0),
        f"{report.kept:,}" if report.tried else NOTHING,
        signed(report.improvement),
        signed(held_out),
        signed(gain),
        format_duration(sum(report.seconds.values())),
        "",
    )


def _distribution_lines(status: RunStatus, *, blocks: bool) -> list[str]:
    """How the improvements of the running round are spread, or those of the last one."""
    reports = status.record.rounds
    values, what = status.improvements, f"round {status.round} so far"
    threshold = status.threshold
    known = [report for report in reports if report.threshold is not None]
    of = ""
    if not values and status.held_out_improvements:
        values, what = status.held_out_improvements, f"{what}, held-out passages"
    elif not values:
        last = next((report for report in reversed(reports) if report.improvements), None)
        if last is None:
            return []
        values, what, threshold = last.improvements, f"round {last.number}", last.threshold
    if threshold is None and known:
        threshold, of = known[-1].threshold, f" of round {known[-1].number}"
    marks = [(0.0, "0, the baseline")]
    if threshold is not None:
        marks.append((threshold, f"threshold {threshold:.3g}{of}"))
    better = sum(value > 0 for value in values)
    title = f"Improvement over the baseline, {what}: {_counted(len(values), 'candidate')}"
    rows = max(5, min(12, 2 * math.isqrt(len(values))))
    plot = histogram(values, marks=marks, rows=rows, blocks=blocks)
    return ["", f"{title}, {better:,} above 0", *plot]


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _rate(per_minute: float) -> str:
    return f"{per_minute:,.{0 if per_minute >= 100 else 1 if per_minute >= 1 else 2}f}"


# ------------------------------------------------------------ candidates


@dataclass(frozen=True, slots=True)
class CandidateRow:
    """A candidate with where it stands."""

    round: int
    held_out: bool
    passage_id: str
    tried: Tried

    @property
    def standard_error(self) -> float | None:
        """Standard error of the mean improvement over the repeats; None for fewer than two."""
        values = self.tried.improvements
        return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def candidate_rows(
    rounds: Sequence[RoundRewards], *, passage: str | None = None
) -> list[CandidateRow]:
    """All candidates, or those of one passage, in order."""
    return [
        CandidateRow(one.number, held_out, of.passage_id, tried)
        for one in rounds
        for held_out, passages in ((False, one.tried), (True, one.held_out))
        for of in passages
        if passage in (None, of.passage_id)
        for tried in of.candidates
    ]


def ranked(rows: Sequence[CandidateRow], count: int, *, best: bool) -> list[CandidateRow]:
    """The candidates with the largest improvement, or the smallest; failed ones have none."""
    with_one = [(row.tried.improvement, row) for row in rows if row.tried.improvement is not None]
    with_one.sort(key=lambda pair: -pair[0] if best else pair[0])
    return [row for _, row in with_one[:count]]


def candidate_cells(row: CandidateRow) -> tuple[str, ...]:
    """Cells under `CANDIDATE_HEADINGS`."""
    tried, error = row.tried, row.standard_error
    improvement = signed(tried.improvement)
    if error is not None:
        improvement += f" ±{error:.3f}"
    words = " ".join(tried.edit.text[: 4 * _FIRST_WORDS].split())
    if not tried.improvements and tried.failures:
        words = f"failed: {tried.failures[-1].error}"
    return (
        row.passage_id + (" (held out)" if row.held_out else ""),
        tried.edit.strategy,
        str(tried.edit.index),
        str(len(tried.improvements)),
        improvement,
        NOTHING if tried.reward is None else "yes" if tried.rewarded else "no",
        "yes" if tried.kept else "",
        format_percent(tried.accuracy_gain, 0, sign=True),
        words if len(words) <= _FIRST_WORDS else f"{words[: _FIRST_WORDS - 1]}…",
    )


def candidate_document(row: CandidateRow) -> dict[str, Any]:
    """A candidate as JSON types, with all that is known of it."""
    return {
        "round": row.round,
        "held_out": row.held_out,
        "passage_id": row.passage_id,
        "strategy": row.tried.edit.strategy,
        "index": row.tried.edit.index,
        "repeats": len(row.tried.improvements),
        "improvement": row.tried.improvement,
        "standard_error": row.standard_error,
        "rewarded": row.tried.rewarded,
        **to_json(row.tried),
    }


def round_title(rewards: RoundRewards, rows: Sequence[CandidateRow]) -> str:
    """The line above a round's table."""
    passages = {(row.held_out, row.passage_id) for row in rows}
    rewarded = sum(row.tried.rewarded for row in rows)
    kept = sum(row.tried.kept for row in rows)
    broken = f", {_counted(rewards.broken, 'broken line')} left out" if rewards.broken else ""
    return (
        f"Round {rewards.number}: {_counted(len(rows), 'candidate')} of "
        f"{_counted(len(passages), 'passage')}, {rewarded:,} rewarded, {kept:,} kept{broken}"
    )


def signed(value: float | None) -> str:
    """A difference with its sign and three digits; a dash where there is none."""
    return NOTHING if value is None or not math.isfinite(value) else f"{value:+,.3f}"
