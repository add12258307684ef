"""Where a ReST-EM run stands, told from its record of events as far as it is written.

Takes the lines of ``events.jsonl`` one at a time, as they come; keeps counts, the running round's
candidates and a window of recent times, so that its memory does not grow with the record. Rates
are over that window, not since the start: they follow the machine. Times are those in the record
(Unix seconds). Nothing in a line is trusted: one that is no event, or has a value of a wrong type,
is counted and left out.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar

from aios.app.restem.records import is_number

STAGES = ("write", "try", "fit", "held-out")  # of a round, in order; round 0 has only the last

MAX_CANDIDATES = 200_000  # of a round
MAX_OPEN_STAGES = 64
_WINDOW = 256  # notes that a rate is over
_MOST_MEMORY_POINTS = 600
_LEAST_SECONDS = 0.5  # a rate over less says nothing; nor does a count so soon after a start
_MAX_TEXT = 400
_LAST_TIME = 253_402_300_800  # the year 10000

_ROUND_STAGE = re.compile(r"round (?P<round>\d{1,6}): (?P<part>write|try|fit|held-out)")
_HEAD = re.compile(rb'\{"time":"([^"\\]{1,40})","type":"([A-Za-z]{1,40})"')


class Pace:
    """How fast a count grows.

    Args:
        start: When it was 0.
    """

    def __init__(self, start: float) -> None:
        self.start = start
        self._notes: deque[tuple[float, float]] = deque([(start, 0.0)], maxlen=_WINDOW)

    def note(self, time: float, count: float) -> None:
        """Notes a count; one right after the start is what a resumed stage had before.

        Notes that stay have some time between them, so that the window is not filled by a burst.
        """
        notes = self._notes
        if count == notes[-1][1]:
            return
        if len(notes) == 1 and time - self.start < _LEAST_SECONDS:
            notes[0] = (time, count)
        elif len(notes) > 1 and notes[-1][0] - notes[-2][0] < _LEAST_SECONDS:
            notes[-1] = (time, count)
        else:
            notes.append((time, count))

    @property
    def count(self) -> float:
        """The count noted last."""
        return self._notes[-1][1]

    @property
    def rate(self) -> float | None:
        """Units a second over the recent notes; None before there is something to tell by."""
        (first, before), (last, after) = self._notes[0], self._notes[-1]
        seconds, work = last - first, after - before
        return work / seconds if seconds >= _LEAST_SECONDS and work > 0 else None

    def seconds_to(self, total: float, now: float) -> float | None:
        """Seconds until the count is `total`; None if it cannot be told."""
        rate = self.rate
        if rate is None or total <= 0:
            return None
        return max(0.0, (total - self.count) / rate - max(0.0, now - self._notes[-1][0]))


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
class OpenStage:
    """A stage that is going on."""

    name: str
    total: float
    unit: str
    pace: Pace
    note: str = ""


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
    """What the events so far come to; `add` takes them in.

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
        broken: Lines that are no events.
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
    broken: int = 0
    _latest: bytes = b""

    @property
    def updated(self) -> float | None:
        """Time of the last event; None before the first."""
        try:
            return _seconds(self._latest.decode("ascii")) if self._latest else None
        except ValueError:
            return None

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

    def add(self, line: bytes) -> None:
        """Takes in a line of the record; one that is no event is counted in `broken`."""
        head = _HEAD.match(line)
        if head is not None:
            if head[2].decode() not in self._TAKE:  # most of a long record; need not be parsed
                self._latest = head[1]
                return
        elif not line.strip():  # what closes a line that was cut short
            return
        try:
            record = json.loads(line.decode("utf-8"))
            time = _seconds(record["time"])
            take = self._TAKE.get(record["type"])
            if take is not None:
                take(self, record, time)
            self._latest = record["time"].encode("ascii")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self.broken += 1

    def _run_started(self, record: Mapping[str, Any], time: float) -> None:
        self.started = time if self.started is None else self.started
        self.ended = self.trial_pace = self.rss = self.peak_rss = None
        self.open.clear()

    def _run_finished(self, record: Mapping[str, Any], time: float) -> None:
        self.ended = Ended(_text(record, "status"), _text(record, "summary"), time)
        self.open.clear()

    def _stage_started(self, record: Mapping[str, Any], time: float) -> None:
        name, total, unit = _text(record, "stage"), _number(record, "total"), _text(record, "unit")
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
            stage.pace.note(time, _number(record, "done"))
            stage.note = _text(record, "note")

    def _stage_finished(self, record: Mapping[str, Any], time: float) -> None:
        name = _text(record, "stage")
        self.open.pop(name, None)
        match = _ROUND_STAGE.fullmatch(name)
        if match is not None and int(match["round"]) == self.round:
            self.done.add(match["part"])

    def _candidate_tried(self, record: Mapping[str, Any], time: float) -> None:
        number, trials = _count(record, "round"), _count(record, "trials")
        key = (
            record["held_out"] is True,
            _text(record, "passage_id"),
            _text(record, "strategy"),
            _count(record, "index"),
        )
        improvement = None
        if record["improvement"] is not None:
            improvement = _number(record, "improvement")
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
        self._enter(_count(record, "number"))
        self.open.clear()
        self.round_done = True

    def _work_failed(self, record: Mapping[str, Any], time: float) -> None:
        self.last_failure = " ".join(_text(record, key) for key in ("boundary", "subject"))
        self.last_failure += f": {_text(record, 'error')}"
        self.failures += 1

    def _heartbeat(self, record: Mapping[str, Any], time: float) -> None:
        self.rss = _number(record, "rss_bytes") or None
        self.peak_rss = _number(record, "peak_rss_bytes") or None
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

    _TAKE: ClassVar[dict[str, Callable[[RunProgress, Mapping[str, Any], float], None]]] = {
        "RunStarted": _run_started,
        "RunFinished": _run_finished,
        "StageStarted": _stage_started,
        "StageProgress": _stage_progress,
        "StageFinished": _stage_finished,
        "CandidateTried": _candidate_tried,
        "RoundFinished": _round_finished,
        "WorkFailed": _work_failed,
        "Heartbeat": _heartbeat,
    }


def _seconds(time: str) -> float:
    """Unix seconds of an ISO 8601 time.

    Raises:
        ValueError: It is none, or not of our days.
    """
    try:
        seconds = datetime.fromisoformat(time).timestamp()
    except OverflowError as error:
        raise ValueError(str(error)) from error
    if not 0 <= seconds < _LAST_TIME:
        raise ValueError(f"{time} is no time of a run")
    return seconds


def _text(record: Mapping[str, Any], key: str) -> str:
    value = record[key]
    if not isinstance(value, str):
        raise ValueError(f"{key} is no text")
    return value[:_MAX_TEXT]


def _number(record: Mapping[str, Any], key: str) -> float:
    value = record[key]
    if not is_number(value):
        raise ValueError(f"{key} is no number")
    return float(value)


def _count(record: Mapping[str, Any], key: str) -> int:
    value = record[key]
    if not isinstance(value, int) or not is_number(value) or value < 0:
        raise ValueError(f"{key} is no count")
    return int(value)
