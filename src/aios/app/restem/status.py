"""How a ReST-EM run stands, told from outside while another process works on it.

Takes a run directory of kind ``restem``; gives a `RunStatus`: state, round and stage, trials,
rates, time left, memory, the rounds that are done and the candidates of the running one. Only the
run's record of events, its state and its lock are read. A run that nobody holds and that has not
said that it ended was killed: it is ``stale``.

Time left: of a stage, at the pace of its recent events. Of the run, at what the stages of earlier
rounds took, so there is none before a round is done; a run that gains nothing more ends earlier.

What finds and stops runs is in `folders`, and what reads the trials' rewards in `records`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import fmean
from typing import Literal, TypeAlias

from aios.app.kept import Stamp, stamp_of
from aios.app.restem.folders import (
    held_since,
    restem_info,
    resume_command,
    stop_requested,
)
from aios.app.restem.progress import STAGES, RunProgress
from aios.app.restem.records import (
    STATE_FILE,
    SavedState,
    read_state,
)
from aios.app.runs.growing_lines import NewLines
from aios.app.runs.pace import OpenStage
from aios.core.config.loader import load_config
from aios.core.errors import ConfigError
from aios.core.restem import ReSTEMState, RoundReport

EVENTS_FILE = "events.jsonl"

State: TypeAlias = Literal["running", "stopping", "done", "failed", "interrupted", "stale"]

_ENDS: dict[str, State] = {"done": "done", "interrupted": "interrupted"}  # any other has failed
_TRIED = {False: "try", True: "held-out"}  # where candidates of held-out passages or not are tried
_REPORTED = {"write": "propose"}  # a stage's name among the seconds of a report


@dataclass(frozen=True, slots=True)
class RunStatus:
    """How a run stands.

    Attributes:
        id: The run.
        path: Its directory.
        state: ``stale``: no process works on it, and it has not said that it ended.
        summary: What it said when it ended.
        round: The round that goes on, or the last one; None before the first.
        rounds: How many rounds follow round 0 at most; None if not known.
        stage: Stage of the round that goes on (``write``, ``try``, ``fit``, ``held-out``), or
            another stage's name; empty between stages.
        detail: The stage inside it that `done` and `total` are of, where it has such (a training).
        done: Units done in that stage.
        total: Units of that stage; 0 if unknown.
        unit: What is counted.
        note: What the stage said last, e.g. how many trials of the passages in hand are done.
        candidates: Candidates of the round that have had their trials.
        trials_done: Their trials that gave a number; the baseline's are not among them.
        trials_left: Trials of candidates left in the round, at what a passage took so far; None
            if it cannot be told.
        rate: Units of the stage a minute, over its recent events; None if not known.
        trial_rate: Trials a minute, likewise.
        eta_stage: Seconds left of the stage; None if it cannot be told.
        eta_run: Seconds left of the run if all rounds are run, at what the stages of earlier
            rounds took; None before there is one. A run that gains nothing stops earlier.
        rss_bytes: Resident memory of the process at its last heartbeat; None if not known.
        peak_rss_bytes: The most it had.
        started: When it began.
        updated: When its last event was written.
        record: The rounds that are done.
        improvements: Of the candidates tried so far in the running round, over the baseline.
        held_out_improvements: Likewise on held-out passages.
        threshold: Margin of the reward where it is a fixed number; None under ``auto``.
        failures: Failures recorded since it began.
        last_failure: The last of them.
        broken_lines: Lines of the record that are no events.
        resume: The command line that goes on with it.
    """

    id: str
    path: Path
    state: State
    summary: str
    round: int | None
    rounds: int | None
    stage: str
    detail: str
    done: float
    total: float
    unit: str
    note: str
    candidates: int
    trials_done: int
    trials_left: int | None
    rate: float | None
    trial_rate: float | None
    eta_stage: float | None
    eta_run: float | None
    rss_bytes: float | None
    peak_rss_bytes: float | None
    started: datetime | None
    updated: datetime | None
    record: ReSTEMState
    improvements: tuple[float, ...]
    held_out_improvements: tuple[float, ...]
    threshold: float | None
    failures: int
    last_failure: str
    broken_lines: int
    resume: str

    @property
    def live(self) -> bool:
        """Whether a process works on it."""
        return self.state in ("running", "stopping")


class RunFollower:
    """Tells a run's status again and again; each time only what is new is read.

    Args:
        path: The run's directory.

    Raises:
        UsageError: There is no run, or it is of another kind.
        StorageError: Its ``run.json`` is corrupt.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.info = restem_info(path)
        self._lines = NewLines(path / EVENTS_FILE)
        self._progress = RunProgress()
        self._saved = SavedState()
        self._saved_mark: Stamp | None = None
        self._rounds, self._threshold = _plan(path)

    def status(self, now: float | None = None) -> RunStatus:
        """How the run stands now.

        Args:
            now: Unix seconds; the clock's by default.

        Raises:
            StorageError: The record or the state cannot be read.
        """
        held = held_since(self.path)  # first: what ends a run is written before it lets go
        if self._lines.replaced():
            self._progress = RunProgress()
        for line in self._lines:
            self._progress.lines.add(line)
        self._read_state()
        return self._status(held, time.time() if now is None else now)

    def memory(self) -> tuple[tuple[float, float], ...]:
        """Resident memory in the course of the run, as `status` has read it last.

        Returns:
            Unix seconds and bytes; evenly thinned where there are many.
        """
        return tuple(self._progress.memory.points)

    def _read_state(self) -> None:
        """Reads the state again where it has changed."""
        mark = stamp_of(self.path / STATE_FILE)
        if mark != self._saved_mark:
            self._saved = read_state(self.path)
            self._saved_mark = mark

    def _status(self, held: float | None, now: float) -> RunStatus:
        progress = self._progress
        state = self._state(held)
        live, running = state in ("running", "stopping"), not progress.round_done
        part, outer, inner = progress.current()
        counts = outer is not None and outer.total > 0 and part != "fit"
        shown = outer if inner is None or counts else inner
        pace = shown.pace if shown and live else None
        trial_pace = progress.trial_pace if live and part in _TRIED.values() else None
        stage_left = pace.seconds_to(shown.total, now) if pace and shown else None
        return RunStatus(
            id=self.path.name,
            path=self.path,
            state=state,
            summary=progress.ended.summary if progress.ended else "",
            round=progress.round,
            rounds=self._rounds,
            stage=part or (shown.name if shown else ""),
            detail=shown.name if shown and part and shown is inner else "",
            done=shown.pace.count if shown else 0,
            total=shown.total if shown else 0,
            unit=shown.unit if shown else "",
            note=shown.note if shown else "",
            candidates=len(progress.candidates) if running else 0,
            trials_done=sum(progress.spent(sort).trials for sort in (False, True))
            if running
            else 0,
            trials_left=self._trials_left() if running and state != "done" else None,
            rate=_per_minute(pace.rate if pace else None),
            trial_rate=_per_minute(trial_pace.rate if trial_pace else None),
            eta_stage=stage_left,
            eta_run=self._seconds_left(part, outer, stage_left, now) if live else None,
            rss_bytes=progress.rss,
            peak_rss_bytes=progress.peak_rss,
            started=_as_time(progress.started),
            updated=_as_time(progress.lines.updated),
            record=self._saved.state,
            improvements=progress.improvements(held_out=False) if running else (),
            held_out_improvements=progress.improvements(held_out=True) if running else (),
            threshold=self._threshold,
            failures=progress.failures,
            last_failure=progress.last_failure,
            broken_lines=progress.lines.broken + self._lines.too_long,
            resume=resume_command(self.info, self.path, self._saved.dataset),
        )

    def _state(self, held: float | None) -> State:
        ended = self._progress.ended
        told = None if ended is None else (ended.status, ended.time)
        return state_of(told, held, asked_to_stop=stop_requested(self.path))

    def _trials_left(self) -> int | None:
        """Trials that the round's passages left will take; None where nothing tells."""
        parts = [self._trials_left_of(held_out) for held_out in (False, True)]
        known = [part for part in parts if part is not None]
        return round(sum(known)) if known else None

    def _trials_left_of(self, held_out: bool) -> float | None:
        """Those of one sort of passages: passages left times what one took so far."""
        progress, stage = self._progress, _TRIED[held_out]
        if stage in progress.done:
            return 0.0
        planned = (self._saved.held_out if held_out else progress.totals.get("write")) or 0
        total = progress.totals.get(stage, planned)
        spent = progress.spent(held_out)
        each = spent.per_passage or progress.before[held_out].per_passage
        if not total or each is None:
            return None
        going_on = progress.open.get(f"round {progress.round}: {stage}")
        done = max(going_on.pace.count if going_on else 0, spent.passages)
        return max(0.0, total - done) * each

    def _seconds_left(
        self, part: str, stage: OpenStage | None, stage_left: float | None, now: float
    ) -> float | None:
        """Seconds to the end of the last round; None if no round tells what one takes."""
        number, rounds, saved = self._progress.round, self._rounds, self._saved.state
        if number is None or rounds is None or saved.stopped:
            return None
        usual = _usual_seconds(saved.rounds)
        ahead = self._stages_ahead(part) + STAGES * max(0, rounds - number)
        if ahead and not usual:
            return None
        seconds = sum(usual[one] for one in ahead)
        if stage is None:
            return seconds
        if stage_left is None and part in usual:
            stage_left = max(0.0, usual[part] - (now - stage.pace.start))
        return None if stage_left is None else seconds + stage_left

    def _stages_ahead(self, part: str) -> tuple[str, ...]:
        """Stages of the round after the one that goes on."""
        if self._progress.round_done:
            return ()
        own = STAGES if self._progress.round else STAGES[-1:]
        if part in own:
            return own[own.index(part) + 1 :]
        return tuple(stage for stage in own if stage not in self._progress.done)


def state_of(ended: tuple[str, float] | None, held: float | None, *, asked_to_stop: bool) -> State:
    """How a run stands.

    Args:
        ended: What it said when it ended, and when; None where it has not.
        held: When the process that works on it took its lock; None if nobody has it.
        asked_to_stop: Whether it was asked to.
    """
    if ended is not None and (held is None or held <= ended[1]):
        return _ENDS.get(ended[0], "failed")
    if held is None:
        return "stale"
    return "stopping" if asked_to_stop else "running"


def run_status(path: Path) -> RunStatus:
    """How a run stands now; to ask more than once use a `RunFollower`.

    Raises:
        UsageError: There is no run, or it is of another kind.
        StorageError: One of its files is corrupt or cannot be read.
    """
    return RunFollower(path).status()


# ------------------------------------------------------------ small parts


def _plan(path: Path) -> tuple[int | None, float | None]:
    """Rounds after round 0, and the threshold if it is a number; None where not known."""
    try:
        config = load_config(config_file=path / "config.yaml", env={}).config
    except ConfigError:  # of another version, or gone: the run's status can be told without
        return None, None
    threshold = config.restem.threshold
    return config.seal.restem_iterations, None if threshold == "auto" else threshold


def _usual_seconds(reports: Sequence[RoundReport]) -> dict[str, float]:
    """What each stage took on average; empty before a round that had all of them is done."""
    full = [report for report in reports if report.number >= 1 and report.seconds]
    if not full:
        return {}
    seconds: dict[str, float] = {}
    for stage in STAGES:
        name = _REPORTED.get(stage, stage)
        seconds[stage] = fmean(max(0.0, report.seconds.get(name, 0.0)) for report in full)
    return seconds


def _per_minute(rate: float | None) -> float | None:
    return None if rate is None else 60 * rate


def _as_time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc)
