"""How an A/B experiment stands, told from its record of events while another process works on it.

Takes the directory of a run of kind ``ab-test``; gives an `ABStatus`: the arms and seeds that are
done and to do, the evaluations so far, and the time left. Each look reads only what was written
since the last one. Nothing in the record is trusted: a line that is no event is left out.

Time left: the trainings and examinations to come at what those of the same arm took so far, or
else those of other trained arms. Before there is one, it is told from how far the first training
has come, and not at all before a tenth of that.
"""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from aios.app.runs.checked_values import number_of, number_or_none, text_of
from aios.app.runs.event_lines import EventLines
from aios.app.runs.growing_lines import NewLines
from aios.core.config.loader import load_config
from aios.core.errors import ConfigError
from aios.core.evaluation.ab_test import UNTRAINED

EVENTS_FILE = "events.jsonl"
TRAIN = "train "

_UNIT_NOTE = re.compile(r"(?P<arm>[\w+-]{1,64}), seed (?P<seed>\d{1,6})")
_TRAINING = re.compile(r"(?P<arm>[\w+-]{1,64})\.(?P<seed>\d{1,6})")
_MOST_POINTS = 2000  # evaluations kept of a training
_MOST_UNITS = 1000
_MOST_NOTICES = 20
_LEAST_SHARE = 0.1  # of a training, before its time tells anything

Key = tuple[str, int]  # arm and seed


def planned_arms(arms: Sequence[str], seeds: int) -> Iterator[Key]:
    """What is run, in order: one seed of all arms after the other; what trains nothing, once."""
    for number in range(seeds):
        for arm in arms:
            if number == 0 or arm not in UNTRAINED:
                yield arm, number


@dataclass(frozen=True, slots=True)
class UnitStatus:
    """An arm with one seed.

    Attributes:
        arm: Its name.
        seed: From 0.
        state: Whether it is done, going on, or to come.
        tokens: Trained on so far.
        total: Tokens that it is trained on; 0 where it is not known, or it trains nothing.
        loss: Validation loss of its last evaluation; None before one.
        seconds: What it took; None before its end.
    """

    arm: str
    seed: int
    state: Literal["waiting", "running", "done"]
    tokens: float
    total: float
    loss: float | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class ABStatus:
    """How an experiment stands.

    Attributes:
        stage: What goes on: ``self-edits``, ``arms`` or another stage; empty between stages.
        done: Units of that stage that are done.
        total: Its units; 0 if not known.
        unit: What is counted.
        units: The arms and seeds in the order in which they are run.
        curves: The arms with what there is of their learning curves, as in ``metrics.json``.
        seconds_left: Of the whole experiment; None where it cannot be told.
        started: When it began first; None before its first event.
        updated: When its last event was written.
        ended: What it said when it ended, e.g. why it failed; empty while it goes on.
        notices: What it has told last, the newest last.
        failures: Failures that were recorded.
    """

    stage: str
    done: float
    total: float
    unit: str
    units: tuple[UnitStatus, ...]
    curves: Mapping[str, Any]
    seconds_left: float | None
    started: datetime | None
    updated: datetime | None
    ended: str
    notices: tuple[str, ...]
    failures: int

    @property
    def units_done(self) -> int:
        """How many arms and seeds are done."""
        return sum(unit.state == "done" for unit in self.units)


@dataclass(slots=True)
class _Unit:
    """What is known of an arm with one seed."""

    done: bool = False
    tokens: float = 0
    total: float = 0
    seconds: float | None = None
    points: list[dict[str, Any]] = field(default_factory=list)


@dataclass(slots=True)
class _Progress:
    """What the events so far come to."""

    units: dict[Key, _Unit] = field(default_factory=dict)
    stage: str = ""
    done: float = 0
    total: float = 0
    unit: str = ""
    since: float = 0  # when the arm and seed in hand began
    in_arms: bool = False
    started: float | None = None
    ended: str = ""
    failures: int = 0
    notices: list[str] = field(default_factory=list)
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
                "Notice": self._notice,
                "WorkFailed": self._work_failed,
            }
        )

    def _run_started(self, record: Mapping[str, Any], time: float) -> None:
        self.started = time if self.started is None else self.started
        self.ended, self.stage, self.in_arms = "", "", False

    def _run_finished(self, record: Mapping[str, Any], time: float) -> None:
        self.ended, self.stage, self.in_arms = text_of(record, "summary"), "", False

    def _stage_started(self, record: Mapping[str, Any], time: float) -> None:
        name = text_of(record, "stage")
        training = _training(name)
        if training is not None:
            unit = self._unit(training)
            unit.total, unit.tokens = number_of(record, "total"), 0.0
            return
        self.stage, self.done, self.total = name, 0.0, number_of(record, "total")
        self.unit = text_of(record, "unit")
        if name == "arms":
            self.since, self.in_arms = time, True

    def _stage_progress(self, record: Mapping[str, Any], time: float) -> None:
        name, done = record["stage"], number_of(record, "done")
        training = _training(name)
        if training is not None:
            self._unit(training).tokens = done
        elif name == self.stage:
            self.done = done
            found = _UNIT_NOTE.fullmatch(text_of(record, "note")) if name == "arms" else None
            if found is not None:
                self._finish((found["arm"], int(found["seed"])), time)

    def _finish(self, key: Key, time: float) -> None:
        unit = self._unit(key)
        if not unit.done:  # one that was done before a resume took its time then
            unit.done, unit.seconds = True, max(0.0, time - self.since)
        self.since = time

    def _stage_finished(self, record: Mapping[str, Any], time: float) -> None:
        if record["stage"] == self.stage:
            self.stage = ""

    def _evaluated(self, record: Mapping[str, Any], time: float) -> None:
        key = _training(f"{TRAIN}{record['training']}")
        if key is None:
            return
        step, tokens = int(number_of(record, "step")), number_of(record, "tokens")
        loss = number_or_none(record, "validation_loss")
        unit = self._unit(key)
        # A training that is begun again after a kill evaluates some steps again.
        unit.points = [p for p in unit.points if p["step"] < step and p["tokens"] < tokens]
        if len(unit.points) < _MOST_POINTS:
            unit.points.append({"step": step, "tokens": tokens, "validation_loss": loss})

    def _notice(self, record: Mapping[str, Any], time: float) -> None:
        self.notices = [*self.notices, text_of(record, "message")][-_MOST_NOTICES:]

    def _work_failed(self, record: Mapping[str, Any], time: float) -> None:
        self.failures += 1

    def _unit(self, key: Key) -> _Unit:
        if key not in self.units and len(self.units) >= _MOST_UNITS:
            raise ValueError("more arms and seeds than any experiment has")
        return self.units.setdefault(key, _Unit())


class ABFollower:
    """Tells an experiment's status again and again; each time only what is new is read.

    Args:
        path: The run's directory.
    """

    def __init__(self, path: Path) -> None:
        self._lines = NewLines(path / EVENTS_FILE)
        self._planned = _planned(path)
        self._progress = _Progress()
        self._guard = threading.Lock()

    def status(self, *, live: bool, now: float | None = None) -> ABStatus:
        """How the experiment stands now.

        Args:
            live: Whether a process works on it; without one there is no time left to tell.
            now: Unix seconds; the clock's by default.

        Raises:
            StorageError: The record cannot be read.
        """
        with self._guard:
            if self._lines.replaced():
                self._progress = _Progress()
            for line in self._lines:
                self._progress.lines.add(line)
            return self._status(live, time.time() if now is None else now)

    def _status(self, live: bool, now: float) -> ABStatus:
        progress = self._progress
        keys = [*self._planned, *(key for key in progress.units if key not in self._planned)]
        units = {key: progress.units.get(key, _Unit()) for key in keys}
        current = next((key for key in keys if not units[key].done), None)
        if not (live and progress.in_arms):
            current = None
        curves: dict[str, Any] = {}
        for (arm, _), unit in units.items():
            run = {"curve": unit.points, "best_step": None}
            curves.setdefault(arm, {"runs": []})["runs"].append(run)
        return ABStatus(
            stage=progress.stage if live else "",
            done=progress.done,
            total=progress.total,
            unit=progress.unit,
            units=tuple(_unit_status(key, unit, key == current) for key, unit in units.items()),
            curves={"arms": curves},
            seconds_left=_seconds_left(units, current, progress.since, now),
            started=_time(progress.started),
            updated=_time(progress.lines.updated),
            ended=progress.ended,
            notices=tuple(progress.notices),
            failures=progress.failures,
        )


class Followers:
    """The followers of experiments that are looked at, the most recent ones."""

    def __init__(self, most: int = 32) -> None:
        self._most = most
        self._kept: OrderedDict[Path, ABFollower] = OrderedDict()
        self._guard = threading.Lock()

    def of(self, path: Path) -> ABFollower:
        """The follower of a run."""
        with self._guard:
            found = self._kept.pop(path, None) or ABFollower(path)
            self._kept[path] = found
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
            return found


# ------------------------------------------------------------ small parts


def _planned(path: Path) -> list[Key]:
    """The arms and seeds of the run's config; none where it cannot be read."""
    try:
        settings = load_config(config_file=path / "config.yaml", env={}).config.ab_test
    except ConfigError:  # of another version, or gone: the record names them as they come
        return []
    return list(planned_arms(settings.arms, settings.seeds))[:_MOST_UNITS]


def _unit_status(key: Key, unit: _Unit, current: bool) -> UnitStatus:
    losses = [p["validation_loss"] for p in unit.points if p["validation_loss"] is not None]
    return UnitStatus(
        arm=key[0],
        seed=key[1],
        state="done" if unit.done else "running" if current else "waiting",
        tokens=unit.tokens,
        total=unit.total,
        loss=losses[-1] if losses else None,
        seconds=unit.seconds,
    )


def _seconds_left(
    units: Mapping[Key, _Unit], current: Key | None, since: float, now: float
) -> float | None:
    if current is None:
        return None
    took: dict[str, list[float]] = {}
    for (arm, _), unit in units.items():
        if unit.seconds is not None:
            took.setdefault(arm, []).append(unit.seconds)
    trained = [seconds for arm, own in took.items() if arm not in UNTRAINED for seconds in own]
    if not trained:
        first = _whole_training(units[current], since, now)
        trained = [] if first is None else [first]
    if not trained:
        return None
    usual = fmean(trained)
    left = sum(fmean(took.get(arm, [usual])) for (arm, _), unit in units.items() if not unit.done)
    spent = min(max(0.0, now - since), fmean(took.get(current[0], [usual])))
    return max(0.0, left - spent)


def _whole_training(unit: _Unit, since: float, now: float) -> float | None:
    """What the training in hand will take at the pace so far; None where that tells nothing."""
    share = unit.tokens / unit.total if unit.total > 0 else 0.0
    return (now - since) / share if share >= _LEAST_SHARE and now > since else None


def _training(stage: object) -> Key | None:
    if not isinstance(stage, str) or not stage.startswith(TRAIN):
        return None
    found = _TRAINING.fullmatch(stage.removeprefix(TRAIN))
    return None if found is None else (found["arm"], int(found["seed"]))


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc)
