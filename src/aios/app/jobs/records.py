"""What is known of a job: what it was asked, and how it stands.

A job is one command of the program, run by a process of its own, which outlives whoever started
it. Its folder ``<artifacts>/jobs/<id>`` holds ``job.json`` (what was asked; never changed),
``config.yaml`` (the settings it runs with), ``log.txt`` (what the command says), ``started.json``
and ``ended.json`` (written by the process that runs it) and ``stop`` (asked to stop).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

from aios.core.errors import StorageError

VERSION = 1

JobState: TypeAlias = Literal[
    "waiting", "running", "stopping", "done", "failed", "stopped", "killed"
]
Kind: TypeAlias = Literal[
    "generate", "ab-test", "train-expert", "forget", "restem", "compare", "pull"
]


@dataclass(frozen=True, slots=True)
class JobRequest:
    """What a job is asked to do.

    Attributes:
        kind: What sort of job it is.
        title: For people, e.g. the name of the file.
        arguments: The command, without the program's name and without ``--config``.
        output: The folder or file that it writes, below the artifacts or anywhere.
        run: The run directory that its events are in; None where it has none.
        resume: The arguments that go on with it when it was stopped or killed.
        input: The file of passages; None where it has none.
    """

    kind: Kind
    title: str
    arguments: tuple[str, ...]
    output: Path
    run: Path | None
    resume: tuple[str, ...]
    input: Path | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it stands.

    Attributes:
        id: Its id, the folder's name.
        path: Its folder.
        request: What it was asked.
        state: ``waiting`` for other jobs to end; ``killed``: its process is gone, has not said how
            it ended, and its command has left nothing that tells of a good end. Only waiting,
            running and stopping jobs have a process.
        created: When it was asked for.
        started: When its command began last; None while it waits.
        ended: When it ended; None while it goes on, or where its process was killed.
        exit_code: Of the command; None while it goes on, or where its process was killed.
        attempts: How often it was started, 1 or more.
    """

    id: str
    path: Path
    request: JobRequest
    state: JobState
    created: datetime
    started: datetime | None
    ended: datetime | None
    exit_code: int | None
    attempts: int

    @property
    def live(self) -> bool:
        """Whether it has a process."""
        return self.state in ("waiting", "running", "stopping")

    @property
    def can_resume(self) -> bool:
        """Whether it can be gone on with."""
        return self.state in ("stopped", "killed", "failed") and bool(self.request.resume)


def to_document(request: JobRequest, created: datetime) -> dict[str, Any]:
    """The content of ``job.json``."""
    return {
        "version": VERSION,
        "kind": request.kind,
        "title": request.title,
        "created": created.isoformat(timespec="milliseconds"),
        "arguments": list(request.arguments),
        "resume": list(request.resume),
        "output": str(request.output),
        "run": None if request.run is None else str(request.run),
        "input": None if request.input is None else str(request.input),
    }


def from_document(document: Mapping[str, Any], where: Path) -> tuple[JobRequest, datetime]:
    """What ``job.json`` holds.

    Raises:
        StorageError: It is not as `to_document` writes it.
    """
    try:
        if document["version"] != VERSION:
            raise ValueError("another version")
        request = JobRequest(
            kind=document["kind"],
            title=str(document["title"]),
            arguments=tuple(map(str, document["arguments"])),
            output=Path(document["output"]),
            run=None if document["run"] is None else Path(document["run"]),
            resume=tuple(map(str, document["resume"])),
            input=None if document["input"] is None else Path(document["input"]),
        )
        return request, datetime.fromisoformat(document["created"])
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(f"{where} is corrupt: {error}", "Delete the job's folder.") from error
