"""Jobs for tests: one that is done at once, one that fails at once, one that takes long."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from aios.app.jobs.child import SLOT
from aios.app.jobs.commands import generate_job
from aios.app.jobs.records import Job, JobRequest, JobState
from aios.app.jobs.store import JobStore


def quick(folder: Path) -> JobRequest:
    """Done in half a second."""
    arguments = ("config", "show")
    return JobRequest("generate", "quick", arguments, folder / "nothing", None, arguments)


def failing(folder: Path) -> JobRequest:
    """Its file is not there."""
    return generate_job(folder, "failing", folder / "missing.jsonl")


def passages(path: Path, count: int) -> Path:
    """A file of passages."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as out:
        for n in range(count):
            text = f"Mill number {n} at Orvane was built in {1700 + n % 300} by the river."
            out.write(json.dumps({"id": f"p{n}", "text": text}) + "\n")
    return path


def long(folder: Path, name: str = "long", count: int = 20_000) -> JobRequest:
    """Takes minutes, unless it is ended."""
    return generate_job(folder, name, passages(folder.parent / "long.jsonl", count))


def until(store: JobStore, job_id: str, *states: JobState, seconds: float = 20.0) -> Job:
    """The job once it is in one of these states."""
    end = time.monotonic() + seconds
    while (job := store.get(job_id)).state not in states:
        assert time.monotonic() < end, (job.state, store.log_tail(job_id))
        time.sleep(0.02)
    return job


def wrapper_of(job: Job) -> psutil.Process:
    """The process that runs a job's command."""
    return psutil.Process(json.loads((job.path / "process.json").read_text())["pid"])


def command_of(job: Job) -> psutil.Process:
    """The process of a job's command, once there is one."""
    end = time.monotonic() + 10
    while not (found := wrapper_of(job).children()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found[0]


@contextmanager
def slot_taken(store: JobStore) -> Iterator[None]:
    """While another job has its turn."""
    store.root.mkdir(parents=True, exist_ok=True)
    lock = os.open(store.root / SLOT, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(lock)
