"""How far a job is, told from the record of its run as far as it is written.

Takes a job; gives what goes on in it: stages with their pace and the time that is left, what was
said, what failed, and the losses of its trainings. Each look reads only what is new of the record,
and at most so much; memory is bounded however long the record is. Nothing in a record is trusted:
a line that is no event, or has a value of a wrong type, is counted and left out.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from aios.app.jobs.records import Job
from aios.app.runs.checked_values import number_of, number_or_none, text_of
from aios.app.runs.event_lines import EventLines
from aios.app.runs.growing_lines import NewLines
from aios.app.runs.pace import OpenStage, Pace
from aios.core.errors import AIOSError
from aios.core.files import read_json

EVENTS = "events.jsonl"
LINES_A_LOOK = 200_000
MOST_OPEN = 32
MOST_FINISHED = 12
MOST_SAID = 8
MOST_FAILURES = 5
MOST_TRAININGS = 6
MOST_POINTS = 240
_MOST_READERS = 64
_MOST_RUNS = 200  # folders of which it is asked whose they are


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of the work.

    Attributes:
        name: Its name.
        done: Units that are done.
        total: All units; 0 where that is not known.
        unit: What is counted.
        note: What it said last.
        rate: Units a second, over its recent events; None before it can be told.
        seconds_left: Until it ends at that pace; None if it cannot be told.
        seconds: What it took; None while it goes on.
    """

    name: str
    done: float
    total: float
    unit: str
    note: str
    rate: float | None = None
    seconds_left: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Said:
    """Something that a person should know; `warning` where it is one."""

    text: str
    warning: bool


@dataclass(frozen=True, slots=True)
class Point:
    """Losses at a point of a training, in nats a token."""

    tokens: int
    train_loss: float | None
    validation_loss: float | None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is.

    Attributes:
        stages: Stages that go on, the outermost first.
        finished: The last of those that ended, in their order.
        finished_count: How many ended in all.
        said: The last notices.
        failures: How many failures were recorded.
        last_failures: The last of them.
        curves: Losses of the last trainings, by their name.
        memory_bytes: Of its process at its last sign of life; None if not known.
        updated: When its last event was written, Unix seconds; None before the first.
        behind: Whether there is more to read than was read in this look.
        broken: Lines that are no events.
    """

    stages: tuple[Stage, ...]
    finished: tuple[Stage, ...]
    finished_count: int
    said: tuple[Said, ...]
    failures: int
    last_failures: tuple[str, ...]
    curves: Mapping[str, tuple[Point, ...]]
    memory_bytes: float | None
    updated: float | None
    behind: bool
    broken: int

    @property
    def seconds_left(self) -> float | None:
        """Until the outermost stage ends that tells; None if none does."""
        return next((s.seconds_left for s in self.stages if s.seconds_left is not None), None)


@dataclass(slots=True)
class Record:
    """What the events of a run come to so far; `lines` takes them in."""

    open: dict[str, OpenStage] = field(default_factory=dict)
    finished: deque[Stage] = field(default_factory=lambda: deque(maxlen=MOST_FINISHED))
    finished_count: int = 0
    said: deque[Said] = field(default_factory=lambda: deque(maxlen=MOST_SAID))
    failures: int = 0
    last_failures: deque[str] = field(default_factory=lambda: deque(maxlen=MOST_FAILURES))
    curves: OrderedDict[str, list[Point]] = field(default_factory=OrderedDict)
    memory: float | None = None
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
                "Evaluated": self._evaluated,
                "WorkFailed": self._work_failed,
                "Notice": self._notice,
                "Heartbeat": self._heartbeat,
            }
        )

    def _run_started(self, record: Mapping[str, Any], time: float) -> None:
        self.open.clear()
        self.memory = None

    def _run_finished(self, record: Mapping[str, Any], time: float) -> None:
        self.open.clear()

    def _stage_started(self, record: Mapping[str, Any], time: float) -> None:
        name = text_of(record, "stage")
        self.open.pop(name, None)
        if len(self.open) >= MOST_OPEN:
            self.open.pop(next(iter(self.open)))
        total = max(0.0, number_of(record, "total"))
        self.open[name] = OpenStage(name, total, text_of(record, "unit"), Pace(time))

    def _stage_progress(self, record: Mapping[str, Any], time: float) -> None:
        stage = self.open.get(record["stage"])
        if stage is not None:
            stage.pace.note(time, number_of(record, "done"))
            stage.note = text_of(record, "note")

    def _stage_finished(self, record: Mapping[str, Any], time: float) -> None:
        name = text_of(record, "stage")
        stage = self.open.pop(name, None)
        seconds, summary = number_of(record, "seconds"), text_of(record, "summary")
        done = stage.pace.count if stage else 0
        total, unit = (stage.total, stage.unit) if stage else (0.0, "")
        self.finished_count += 1
        self.finished.append(Stage(name, done, total, unit, summary, seconds=seconds))

    def _evaluated(self, record: Mapping[str, Any], time: float) -> None:
        point = Point(
            int(number_of(record, "tokens")),
            number_or_none(record, "train_loss"),
            number_or_none(record, "validation_loss"),
        )
        name = text_of(record, "training")
        points = self.curves.pop(name, [])  # the latest comes last
        if points and point.tokens <= points[-1].tokens:  # it was begun anew, or gone on with
            points = [old for old in points if old.tokens < point.tokens]
        if len(points) >= MOST_POINTS:
            points = points[::2]
        self.curves[name] = [*points, point]
        while len(self.curves) > MOST_TRAININGS:
            self.curves.popitem(last=False)

    def _work_failed(self, record: Mapping[str, Any], time: float) -> None:
        words = " ".join(text_of(record, key) for key in ("boundary", "subject"))
        self.last_failures.append(f"{words}: {text_of(record, 'error')}")
        self.failures += 1

    def _notice(self, record: Mapping[str, Any], time: float) -> None:
        self.said.append(Said(text_of(record, "message"), record.get("level") == "warning"))

    def _heartbeat(self, record: Mapping[str, Any], time: float) -> None:
        self.memory = number_of(record, "rss_bytes") or None


class _Follower:
    """Reads the record of one run, each time only what is new."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.guard = threading.Lock()
        self._lines = NewLines(run / EVENTS)
        self._record = Record()

    def look(self, *, live: bool, now: float) -> Progress:
        """How far it is now.

        Raises:
            StorageError: The record cannot be read.
        """
        if self._lines.replaced():
            self._record = Record()
        count = 0
        for line in islice(self._lines, LINES_A_LOOK):
            self._record.lines.add(line)
            count += 1
        return _progress(self._record, live=live, now=now, behind=count == LINES_A_LOOK)


class ProgressReader:
    """Tells how far jobs are; what was read of a record is kept for the next look.

    For all threads of a server: readers of the same job take turns.
    """

    def __init__(self) -> None:
        self._followers: OrderedDict[Path, _Follower] = OrderedDict()
        self._guard = threading.Lock()

    def look(self, job: Job, *, now: float | None = None) -> Progress | None:
        """How far a job is; None where it has no record (yet).

        Raises:
            StorageError: The record cannot be read.
        """
        follower = self._follower(job)
        if follower is None:
            return None
        with follower.guard:
            return follower.look(live=job.live, now=time.time() if now is None else now)

    def events_of(self, job: Job) -> Path | None:
        """The record of a job's run; None where it has none (yet)."""
        follower = self._follower(job)
        return None if follower is None else follower.run / EVENTS

    def _follower(self, job: Job) -> _Follower | None:
        with self._guard:
            known = self._followers.get(job.path)
        if known is not None and not _begun_since(job, known.run):
            known = None
        if known is None:
            run = run_of(job)
            if run is None:
                return None
            known = _Follower(run)
        with self._guard:
            kept = self._followers.get(job.path)
            if kept is not None and kept.run == known.run:  # another thread was first
                known = kept
            self._followers[job.path] = known
            self._followers.move_to_end(job.path)
            while len(self._followers) > _MOST_READERS:
                self._followers.popitem(last=False)
        return known


def run_of(job: Job) -> Path | None:
    """The run directory of a job: the one it was given, or else the newest that it has begun.

    A generation makes up the name of its run; which one it is stands in the command line that the
    run keeps.
    """
    if job.request.run is not None:
        return job.request.run if (job.request.run / EVENTS).is_file() else None
    if job.started is None or job.request.kind != "generate":
        return None
    config = str(job.path / "config.yaml")
    runs = job.path.parents[1] / "runs"
    first = f"generate-{job.started:%Y%m%d-%H%M%S}"
    try:
        names = sorted(path.name for path in runs.glob("generate-*") if path.name >= first)
    except OSError:
        return None
    for name in reversed(names[:_MOST_RUNS]):
        try:
            info = read_json(runs / name / "run.json", default=None)
        except AIOSError:
            continue
        if isinstance(info, dict) and config in map(str, info.get("argv", ())):
            return runs / name if (runs / name / EVENTS).is_file() else None
    return None


def _begun_since(job: Job, run: Path) -> bool:
    """Whether a run that was found is of a job's latest start, where each start makes a new one."""
    if job.request.run is not None:
        return run == job.request.run
    return job.started is None or run.name >= f"generate-{job.started:%Y%m%d-%H%M%S}"


def _progress(record: Record, *, live: bool, now: float, behind: bool) -> Progress:
    return Progress(
        stages=tuple(_stage(stage, now) for stage in record.open.values()) if live else (),
        finished=tuple(record.finished),
        finished_count=record.finished_count,
        said=tuple(record.said),
        failures=record.failures,
        last_failures=tuple(record.last_failures),
        curves={name: tuple(points) for name, points in record.curves.items()},
        memory_bytes=record.memory if live else None,
        updated=record.lines.updated,
        behind=behind,
        broken=record.lines.broken,
    )


def _stage(stage: OpenStage, now: float) -> Stage:
    pace = stage.pace
    return Stage(
        stage.name,
        pace.count,
        stage.total,
        stage.unit,
        stage.note,
        pace.rate,
        pace.seconds_to(stage.total, now),
    )
