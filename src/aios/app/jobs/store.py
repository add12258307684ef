"""Starts jobs, tells how they stand, stops them and goes on with them.

Takes requests; gives jobs. All state is on disk, so any number of viewers, and one that comes
after a restart, see the same. A job's process is found by its lock, never by a number that
another process may have by now.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from aios.app.jobs.child import ENDED, INTERRUPTED, LOCK, LOG, STARTED, STOP
from aios.app.jobs.finished import has_finished
from aios.app.jobs.own_program import command_of
from aios.app.jobs.records import Job, JobRequest, JobState, Kind, from_document, to_document
from aios.core.config.loader import dump, without_settings
from aios.core.config.schemas import Config
from aios.core.errors import AIOSError, StorageError, UsageError
from aios.core.files import (
    atomic_write_json,
    atomic_write_text,
    confined,
    guarded,
    read_json,
    require_id,
    valid_id,
)

_MOST_JOBS = 10_000  # folders looked at
_TRIES = 25
_NO_WORDS = re.compile(r"[^A-Za-z0-9]+")

# Processes that were started here and not reaped yet: this process's, whichever store began them.
_children: list[subprocess.Popen[bytes]] = []
_children_guard = threading.Lock()


class JobStore:
    """The jobs below a folder of artifacts.

    Args:
        artifacts: The folder; it need not be there yet.
    """

    def __init__(self, artifacts: Path) -> None:
        self.artifacts = artifacts
        self.root = artifacts / "jobs"

    # ------------------------------------------------------------ looking

    def list(self) -> list[Job]:
        """All jobs, the newest first; folders that hold none are left out.

        Raises:
            StorageError: The folder cannot be read.
        """
        _reap()
        found: list[Job] = []
        with guarded("read", self.root):
            try:
                names = sorted(os.listdir(self.root), reverse=True)[:_MOST_JOBS]
            except FileNotFoundError:
                return []
        for name in names:
            if valid_id(name):
                try:
                    found.append(self._read(name))
                except AIOSError:
                    continue
        return sorted(found, key=lambda job: job.created, reverse=True)

    def get(self, job_id: str) -> Job:
        """One job.

        Raises:
            UsageError: There is none of that id.
            StorageError: Its record is corrupt.
        """
        _reap()
        return self._read(require_id(job_id, "job id"))

    def log_tail(self, job_id: str, max_bytes: int = 65_536) -> str:
        """The end of what a job's command has said; whole lines.

        Raises:
            UsageError: There is no such job.
            StorageError: It cannot be read.
        """
        file = self.get(job_id).path / LOG
        with guarded("read", file):
            try:
                with open(file, "rb") as handle:
                    size = handle.seek(0, os.SEEK_END)
                    handle.seek(max(0, size - max_bytes))
                    data = handle.read(max_bytes)
            except FileNotFoundError:
                return ""
        if size > max_bytes:
            data = data.partition(b"\n")[2]
        return data.decode("utf-8", "replace")

    # ------------------------------------------------------------ acting

    def new_id(self, kind: Kind, title: str) -> str:
        """An id that no job has, from the kind, the title and the time."""
        words = _NO_WORDS.sub("-", title.rpartition(".")[0] or title).strip("-").lower()[:40]
        stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
        return "-".join(filter(None, (kind, words, stamp, secrets.token_hex(2))))

    def start(
        self, request: JobRequest, config: Config, *, job_id: str | None = None, wait: bool = True
    ) -> Job:
        """Begins a job.

        Args:
            request: What it does.
            config: The settings that it runs with; kept in its folder.
            job_id: Its id, by `new_id`; made up where it is not given.
            wait: Whether it waits until no other job runs.

        Raises:
            UsageError: There is such a job already.
            StorageError: Its folder cannot be written, or no process can be started.
        """
        job_id = require_id(job_id or self.new_id(request.kind, request.title), "job id")
        path = self.root / job_id
        with guarded("make", path):
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                raise UsageError(f"there is a job {job_id} already") from None
        try:
            atomic_write_text(path / "config.yaml", dump(config))
            atomic_write_json(path / "job.json", to_document(request, datetime.now(timezone.utc)))
            self._launch(path, request.arguments, wait=wait)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
        return self.get(job_id)

    def resume(self, job_id: str, *, wait: bool = True) -> Job:
        """Goes on with a job that was stopped, was killed or failed.

        Raises:
            UsageError: There is no such job, it goes on, is done, or cannot be gone on with.
            StorageError: Its folder cannot be written, or no process can be started.
        """
        job = self.get(job_id)
        if job.live:
            raise UsageError(f"{job_id} goes on already")
        if not job.can_resume:
            raise UsageError(f"{job_id} cannot be gone on with", "Start a new one.")
        run = job.request.run
        begun = run is None or (run / "run.json").exists()  # else it was stopped while it waited
        arguments = job.request.resume if begun else job.request.arguments
        self._launch(job.path, arguments, wait=wait, attempts=job.attempts + 1)
        return self.get(job_id)

    def stop(self, job_id: str, *, at_once: bool = False) -> Job:
        """Asks a job to stop; what it has finished is kept.

        Args:
            job_id: The job.
            at_once: Kill its processes, where it does not listen. What was finished is kept
                even so; work in hand is lost.

        Raises:
            UsageError: There is no such job, or it has ended.
            StorageError: The request cannot be written.
        """
        job = self.get(job_id)
        if not job.live:
            raise UsageError(f"{job_id} has ended already")
        atomic_write_text(job.path / STOP, "asked to stop\n")
        leader = _leader(job.path)
        if leader is not None and _held(job.path):
            try:
                os.killpg(leader, signal.SIGKILL if at_once else signal.SIGINT)
            except ProcessLookupError:
                pass
            except PermissionError as error:
                raise StorageError(f"cannot stop {job_id}: {error.strerror}") from error
        return self.get(job_id)

    def delete(self, job_id: str) -> None:
        """Removes what is known of a job that has ended; what it has written stays.

        Raises:
            UsageError: There is no such job, or it goes on.
            StorageError: It cannot be removed.
        """
        job = self.get(job_id)
        if job.live:
            raise UsageError(f"{job_id} goes on", "Stop it first.")
        with guarded("remove", job.path):
            shutil.rmtree(job.path)

    def wait(self, job_id: str, timeout: float) -> Job:
        """Waits until a job has ended, or the time is over; gives how it stands."""
        end = time.monotonic() + timeout
        while (job := self.get(job_id)).live and time.monotonic() < end:
            time.sleep(0.05)
        return job

    # ------------------------------------------------------------ inside

    def _launch(
        self, path: Path, arguments: Sequence[str], *, wait: bool, attempts: int = 1
    ) -> None:
        """Starts the process of a job, in a session of its own.

        Raises:
            StorageError: Another process has the job, or none can be started.
        """
        command = [*arguments, "--config", str(path / "config.yaml")]
        with guarded("open", path / LOCK):
            lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not _take(lock):
                raise StorageError(f"{path.name} is run by another process already")
            for name in (STOP, ENDED, STARTED):  # of the attempt before
                (path / name).unlink(missing_ok=True)
            atomic_write_json(path / "attempts.json", {"attempts": attempts})
            given = [str(path), str(lock), "wait" if wait else "now", *command]
            child = subprocess.Popen(
                command_of("aios.app.jobs.child", given),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=without_settings(os.environ),  # they are in the job's config, which is weaker
                pass_fds=(lock,),
                start_new_session=True,
            )
        except OSError as error:
            raise StorageError(f"cannot start a process: {error.strerror}") from error
        finally:
            os.close(lock)  # the child has it
        with _children_guard:
            _children.append(child)
        try:
            atomic_write_json(path / "process.json", {"pid": child.pid})
        except StorageError:  # nobody could stop it: it must not go on unseen
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            raise

    def _read(self, job_id: str) -> Job:
        path = confined(self.root, job_id)
        held = _held(path)  # first: what a process writes before its end is seen, then
        document = read_json(path / "job.json", default=None)
        if not isinstance(document, dict):
            raise UsageError(f"there is no job {job_id}", "It may have been deleted.")
        request, created = from_document(document, path / "job.json")
        started = _time(_document(path / STARTED).get("started"))
        end = _document(path / ENDED)
        code = end.get("exit_code")
        attempts = _document(path / "attempts.json").get("attempts")
        return Job(
            id=job_id,
            path=path,
            request=request,
            state=_state(path, request, held=held, started=started, code=code),
            created=created,
            started=started,
            ended=_time(end.get("ended")),
            exit_code=code if isinstance(code, int) else None,
            attempts=attempts if isinstance(attempts, int) else 1,
        )


def _reap() -> None:
    """Takes note of processes that ended, so that the system may forget them."""
    with _children_guard:
        _children[:] = [child for child in _children if child.poll() is None]


def _state(
    path: Path, request: JobRequest, *, held: bool, started: datetime | None, code: Any
) -> JobState:
    if isinstance(code, int):
        if code == 0:
            return "done"
        # Python itself, asked to stop before the command listens, ends with another status.
        asked = code == INTERRUPTED or (path / STOP).exists()
        return "stopped" if asked else "failed"
    if not held:
        if started is not None and has_finished(request, started):
            return "done"
        return "stopped" if (path / STOP).exists() else "killed"
    if (path / STOP).exists():
        return "stopping"
    return "waiting" if started is None else "running"


def _held(path: Path) -> bool:
    """Whether a process has a job's lock; asked without being in its way."""
    try:
        lock = os.open(path / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _take(lock: int) -> bool:
    """Takes a job's lock; who only asks whether it is held has it for a moment."""
    for _ in range(_TRIES):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
        else:
            return True
    return False


def _leader(path: Path) -> int | None:
    """The leader of a job's processes."""
    pid = _document(path / "process.json").get("pid")
    return pid if isinstance(pid, int) and pid > 1 else None


def _document(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path, default=None)
    except StorageError:
        return {}
    return found if isinstance(found, dict) else {}


def _time(text: object) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
