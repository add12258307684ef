"""A ReST-EM run in a line: what a list of runs says of each.

Takes run directories; reads little of each: its set-up, its state, and the end of its record.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from aios.app.kept import Stamp, stamp_of
from aios.app.restem.folders import held_since, restem_info, stop_requested
from aios.app.restem.generator_gain import Gain, Unit, gains, main_gain, unit_of
from aios.app.restem.records import STATE_FILE, read_state
from aios.app.restem.run_results import PLAN_FILE, read_plan
from aios.app.restem.status import EVENTS_FILE, State, state_of
from aios.core.files import guarded

_TAIL_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What is said of a run, apart from whether somebody works on it.

    Attributes:
        created: When it began; None where its record does not tell.
        dataset: Name of the file of passages; empty where it is not known.
        rounds: Rounds that are done, the untrained one not counted.
        planned: Rounds that were asked for; None where not known.
        rewarded: Share of the last round's candidates that were rewarded; None without a round.
        gain: The best round's generator against the untrained one; None where not known.
        unit: How that is written.
    """

    created: datetime | None
    dataset: str
    rounds: int
    planned: int | None
    rewarded: float | None
    gain: Gain | None
    unit: Unit


def row_stamp(path: Path) -> Stamp:
    """Changes when what `read_facts` gives may have changed."""
    return stamp_of(*(path / name for name in ("run.json", STATE_FILE, PLAN_FILE)))


def read_facts(path: Path) -> RunFacts:
    """What is said of a run.

    Raises:
        UsageError: There is no run, or it is of another kind.
        StorageError: One of its files is corrupt or cannot be read.
    """
    info, plan, saved = restem_info(path), read_plan(path), read_state(path)
    rounds = [report for report in saved.state.rounds if report.number]
    planned = plan.get("seal.restem_iterations")
    unit = unit_of(plan.get("restem.reward"))
    created = None
    with suppress(ValueError):
        created = datetime.fromisoformat(str(info.get("created")))
    last = rounds[-1] if rounds else None
    return RunFacts(
        created=created,
        dataset=os.path.basename(saved.dataset),
        rounds=len(rounds),
        planned=planned if type(planned) is int else None,
        rewarded=last.rewarded / last.asked if last is not None and last.asked else None,
        gain=main_gain(saved.state, gains(saved.state, unit)),
        unit=unit,
    )


def run_state(path: Path) -> State:
    """How a run stands, by its lock and the end of its record.

    Raises:
        StorageError: One of them cannot be read.
    """
    held = held_since(path)  # first: what ends a run is written before it lets go
    ended = _last_end(path)
    return state_of(ended, held, asked_to_stop=stop_requested(path))


def _last_end(path: Path) -> tuple[str, float] | None:
    """Status and time of the event that ended the run; None where it goes on after it."""
    file = path / EVENTS_FILE
    with guarded("read", file):
        try:
            with open(file, "rb") as handle:
                size = handle.seek(0, os.SEEK_END)
                handle.seek(max(0, size - _TAIL_BYTES))
                lines = handle.read(_TAIL_BYTES).split(b"\n")
        except FileNotFoundError:
            return None
    for line in reversed(lines):
        if b'"RunStarted"' not in line and b'"RunFinished"' not in line:
            continue
        with suppress(ValueError, KeyError, TypeError, OverflowError, RecursionError):
            record = json.loads(line.decode("utf-8"))
            if record["type"] == "RunStarted":
                return None
            if record["type"] == "RunFinished":
                time = datetime.fromisoformat(record["time"]).timestamp()
                return str(record["status"]), time
    return None
