"""Where a ReST-EM run stands, told from its record of events as far as it is written.

Takes the lines of ``events.jsonl`` one at a time, as they come; keeps counts, the running round's
candidates and a window of recent times, so that its memory does not grow with the record. Rates
are over that window, not since the start: they follow the machine. Times are those in the record
(Unix seconds). Nothing in a line is trusted: one that is no event, or has a value of a wrong type,
is counted and left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aios.app.runs.checked_values import count_of, number_of, text_of
from aios.app.runs.event_lines import EventLines
from aios.app.runs.pace import OpenStage, Pace

STAGES = ("write", "try", "fit", "held-out")  # of a round, in order; round 0 has only the last

MAX_CANDIDATES = 200_000  # of a round
MAX_OPEN_STAGES = 64
_MOST_MEMORY_POINTS = 600

_ROUND_STAGE = re.compile(r"round (?P<round>\d{1,6}): (?P<part>write|try|fit|held-out)")


class MemoryHistory:
    """Resident memory in the course of a run: a point a heartbeat, thinned where there are many.

    Attributes:
        points: Unix seconds and bytes, in the order in which they were written.
    """

    def __init__(self) -> None:
        self.points: list[tuple[float, float]] = []
        self._every, self._seen = 1, 0

    def note(self, time: float, rss: float) -> None:
        """Notes a heartbeat."""
        if self._seen % self._every == 0:
            self.points.append((time, rss))
        self._seen += 1
        if len(self.points) > _MOST_MEMORY_POINTS:
            self.points, self._every = self.points[::2], 2 * self._every


@dataclass(slots=True)
class Spent:
    """Trials of candidates, and the passages that they were for."""

    trials: int = 0
    passages: int = 0

    @property
    def per_passage(self) -> float | None:
        """Mean trials a passage; None without any."""
        return self.trials / self.passages if self.passages else None


@dataclass(frozen=True, slots=True)
class Ended:
    """What a run said when it ended: status, one line for people, and when."""

    status: str
    summary: str
    time: float


@dataclass(slots=True)
class RunProgress:
    """What the events so far come to; `lines` takes them in.

    Attributes:
        started: When the run began; None before its first event.
        ended: How the run ended; None where it has not, or was resumed.
        round: The round that is going on, or the last one.
        round_done: Whether that round is finished.
        done: Stages of that round that are finished, by name without the round.
        totals: How many passages its stages have, likewise.
        open: Stages that go on, in the order in which they began.
        candidates: Of that round, by held-out or not, passage, strategy and index: trials that
            gave a number, and improvement. One that is announced again counts once.
        before: What earlier rounds spent, by held-out or not.
        trial_pace: Trials in the stage that goes on.
        failures: Failures recorded in the whole run.
        last_failure: The last of them.
        rss: Resident memory of the process, bytes; None if not known.
        peak_rss: The most of it.
        memory: The course of it over the whole run.
        lines: What takes in lines of the record; it knows the time of the last event, and how many
            lines are none.
    """

    started: float | None = None
    ended: Ended | None = None
    round: int | None = None
    round_done: bool = False
    done: set[str] = field(default_factory=set)
    totals: dict[str, float] = field(default_factory=dict)
    open: dict[str, OpenStage] = field(default_factory=dict)
    candidates: dict[tuple[bool, str, str, int], tuple[int, float | None]] = field(
        default_factory=dict
    )
    before: dict[bool, Spent] = field(default_factory=lambda: {False: Spent(), True: Spent()})
    trial_pace: Pace | None = None
    failures: int = 0
    last_failure: str = ""
    rss: float | None = None
    peak_rss: float | None = None
    memory: MemoryHistory = field(default_factory=MemoryHistory)
    lines: EventLines = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Says which events count."""
        self.lines = EventLines(
            {
                "RunStarted": self._run_started,
                "RunFinished": self._run_finished,
                "StageStarted": self._stage_started,
                "StageProgress": self._stage_progress,
                "StageFinished": self._stage_finished,
                "CandidateTried": self._candidate_tried,
                "RoundFinished": self._round_finished,
                "WorkFailed": self._work_failed,
                "Heartbeat": self._heartbeat,
            }
        )

    def current(self) -> tuple[str, OpenStage | None, OpenStage | None]:
        """The round's stage that goes on: its name there, itself, and a stage inside or alone."""
        name, outer, inner = "", None, None
        for stage in self.open.values():
            match = _ROUND_STAGE.fullmatch(stage.name)
            if match is not None:
                name, outer, inner = match["part"], stage, None
            else:
                inner = stage
        return name, outer, inner

    def spent(self, held_out: bool) -> Spent:
        """What the round has spent on passages of a sort so far."""
        of_sort = {
            key: trials for key, (trials, _) in self.candidates.items() if key[0] is held_out
        }
        return Spent(sum(of_sort.values()), len({key[1] for key in of_sort}))

    def improvements(self, held_out: bool) -> tuple[float, ...]:
        """Improvement of each of the round's candidates that has one, as they were tried."""
        return tuple(
            improvement
            for key, (_, improvement) in self.candidates.items()
            if key[0] is held_out and improvement is not None
        )

    # ------------------------------------------------------------ taking events in

    def _run_started(self, record: Mapping[str, Any], time: float) -> None:
        self.started = time if self.started is None else self.started
        self.ended = self.trial_pace = self.rss = self.peak_rss = None
        self.open.clear()

    def _run_finished(self, record: Mapping[str, Any], time: float) -> None:
        self.ended = Ended(text_of(record, "status"), text_of(record, "summary"), time)
        self.open.clear()

    def _stage_started(self, record: Mapping[str, Any], time: float) -> None:
        name, unit = text_of(record, "stage"), text_of(record, "unit")
        total = number_of(record, "total")
        match = _ROUND_STAGE.fullmatch(name)
        if match is not None:  # stages of rounds follow one another: any other is over
            self._enter(int(match["round"]))
            self.open.clear()
            self.done.discard(match["part"])
            self.totals[match["part"]] = max(0.0, total)
            self.trial_pace = Pace(time)
        self.open.pop(name, None)
        if len(self.open) >= MAX_OPEN_STAGES:
            self.open.pop(next(iter(self.open)))
        self.open[name] = OpenStage(name, max(0.0, total), unit, Pace(time))

    def _stage_progress(self, record: Mapping[str, Any], time: float) -> None:
        stage = self.open.get(record["stage"])
        if stage is not None:
            stage.pace.note(time, number_of(record, "done"))
            stage.note = text_of(record, "note")

    def _stage_finished(self, record: Mapping[str, Any], time: float) -> None:
        name = text_of(record, "stage")
        self.open.pop(name, None)
        match = _ROUND_STAGE.fullmatch(name)
        if match is not None and int(match["round"]) == self.round:
            self.done.add(match["part"])

    def _candidate_tried(self, record: Mapping[str, Any], time: float) -> None:
        number, trials = count_of(record, "round"), count_of(record, "trials")
        key = (
            record["held_out"] is True,
            text_of(record, "passage_id"),
            text_of(record, "strategy"),
            count_of(record, "index"),
        )
        improvement = None
        if record["improvement"] is not None:
            improvement = number_of(record, "improvement")
        if self.round is not None and number < self.round:
            return
        self._enter(number)
        known = self.candidates.get(key)
        if known is None and len(self.candidates) >= MAX_CANDIDATES:
            return
        self.candidates[key] = (trials, improvement)
        if self.trial_pace is None:
            self.trial_pace = Pace(time)
        new = trials - (known[0] if known else 0)
        self.trial_pace.note(time, self.trial_pace.count + new)

    def _round_finished(self, record: Mapping[str, Any], time: float) -> None:
        self._enter(count_of(record, "number"))
        self.open.clear()
        self.round_done = True

    def _work_failed(self, record: Mapping[str, Any], time: float) -> None:
        self.last_failure = " ".join(text_of(record, key) for key in ("boundary", "subject"))
        self.last_failure += f": {text_of(record, 'error')}"
        self.failures += 1

    def _heartbeat(self, record: Mapping[str, Any], time: float) -> None:
        self.rss = number_of(record, "rss_bytes") or None
        self.peak_rss = number_of(record, "peak_rss_bytes") or None
        if self.rss:
            self.memory.note(time, self.rss)

    def _enter(self, number: int) -> None:
        """Begins a round, where it is another one."""
        if number == self.round:
            return
        for held_out, spent in self.before.items():
            now = self.spent(held_out)
            spent.trials += now.trials
            spent.passages += now.passages
        self.round, self.round_done = number, False
        self.candidates.clear()
        self.done.clear()
        self.totals.clear()
