"""What a person should see first: what runs, what finished, what needs attention.

Takes jobs and quick looks at the machine; gives short lists. Jobs that ended badly need attention
until they are resumed or removed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from aios.app.jobs.progress import Progress, ProgressReader
from aios.app.jobs.records import Job
from aios.app.jobs.results import Results, Trouble, trouble_of
from aios.app.jobs.store import JobStore
from aios.app.machine.doctor import Check, check_quickly
from aios.core.config.schemas import Config
from aios.core.errors import AIOSError

MOST_RUNNING = 10
MOST_FINISHED = 6
MOST_TROUBLED = 6
CHECK_SECONDS = 20.0  # for which a look at the machine counts
_LOG_BYTES = 16_384


@dataclass(frozen=True, slots=True)
class Running:
    """A job that goes on, and how far it is; None where nothing is known of that yet."""

    job: Job
    progress: Progress | None


@dataclass(frozen=True, slots=True)
class Finished:
    """A job that is done, and what it came to."""

    job: Job
    result: str


@dataclass(frozen=True, slots=True)
class Troubled:
    """A job that did not end well, and why."""

    job: Job
    trouble: Trouble


@dataclass(frozen=True, slots=True)
class Overview:
    """What a person should see first.

    Attributes:
        running: Jobs that go on or wait, those that run first.
        finished: The last that are done.
        troubled: The last that need attention.
        more_troubled: How many more there are of these.
        checks: What is wrong with the machine.
    """

    running: tuple[Running, ...]
    finished: tuple[Finished, ...]
    troubled: tuple[Troubled, ...]
    more_troubled: int
    checks: tuple[Check, ...]


class MachineChecks:
    """What is wrong with the machine; looked at again when the last look is old."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._seen: tuple[float, Config, tuple[Check, ...]] | None = None

    def problems(self, config: Config) -> tuple[Check, ...]:
        """Checks that are not ok."""
        with self._guard:
            seen = self._seen
            if seen and seen[1] is config and time.monotonic() - seen[0] < CHECK_SECONDS:
                return seen[2]
            found = tuple(check for check in check_quickly(config) if check.status != "ok")
            self._seen = (time.monotonic(), config, found)
            return found


def overview(
    store: JobStore,
    jobs: Sequence[Job],
    reader: ProgressReader,
    results: Results,
    checks: Sequence[Check] = (),
) -> Overview:
    """Sorts the jobs into what runs, what finished and what needs attention.

    Args:
        store: The jobs' store.
        jobs: Its jobs, the newest first.
        reader: Tells how far they are.
        results: Tells what they came to.
        checks: What is wrong with the machine.
    """
    live = sorted((job for job in jobs if job.live), key=lambda job: job.state == "waiting")
    done = sorted(
        (job for job in jobs if job.state == "done"),
        key=lambda job: job.ended or job.created,
        reverse=True,
    )
    bad = [job for job in jobs if job.state in ("failed", "killed", "stopped")]
    troubled = []
    for job in bad[:MOST_TROUBLED]:
        trouble = trouble_of(job, _log(store, job))
        if trouble is not None:
            troubled.append(Troubled(job, trouble))
    return Overview(
        tuple(Running(job, look(reader, job)) for job in live[:MOST_RUNNING]),
        tuple(Finished(job, results.line(job, _log(store, job))) for job in done[:MOST_FINISHED]),
        tuple(troubled),
        len(bad) - len(troubled),
        tuple(checks),
    )


def look(reader: ProgressReader, job: Job) -> Progress | None:
    """How far a job is; None where that cannot be told."""
    try:
        return reader.look(job)
    except AIOSError:
        return None


def _log(store: JobStore, job: Job) -> str:
    try:
        return store.log_tail(job.id, _LOG_BYTES)
    except AIOSError:  # removed meanwhile
        return ""
