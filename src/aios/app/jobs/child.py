"""The process of a job: waits for its turn, runs the command, and writes down how it ended.

Started by `aios.app.jobs.store` in a session of its own; needs nothing of who started it. It holds
the job's lock, which the command inherits: as long as either lives, the job is held, and the
system lets go when both are gone, however they went. Jobs take turns on the slot's lock, so that
two of them do not slow each other; one that was told not to wait does not.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType

from aios.app.jobs.own_program import command_of
from aios.core.files import atomic_write_json

LOCK, SLOT = ".lock", ".slot"
STARTED, ENDED, STOP, LOG = "started.json", "ended.json", "stop", "log.txt"
INTERRUPTED = 130
_POLL_SECONDS = 0.2


def main() -> None:
    """Runs the job whose folder, lock and arguments are on the command line."""
    folder, lock, wait, *arguments = sys.argv[1:]
    sys.exit(run_job(Path(folder), int(lock), arguments, wait=wait == "wait"))


def run_job(folder: Path, lock: int, arguments: Sequence[str], *, wait: bool) -> int:
    """Runs a command to its end.

    Args:
        folder: The job's.
        lock: Descriptor of the job's lock, which is held.
        arguments: The command.
        wait: Whether it waits for other jobs to end.

    Returns:
        The command's exit code; of a signal, 128 and its number.
    """
    # Handlers of Python, not SIG_IGN, which the command would inherit.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave_it_to_the_command)
    slot = _take_turn(folder) if wait else None
    if wait and slot is None:
        return _end(folder, INTERRUPTED)
    atomic_write_json(folder / STARTED, {"pid": os.getpid(), "started": _now()})
    with open(folder / LOG, "ab") as log:
        command = subprocess.Popen(
            command_of("aios.__main__", arguments),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(lock,) if slot is None else (lock, slot),
        )
    if (folder / STOP).exists():  # asked between its turn and its start
        command.send_signal(signal.SIGINT)
    code = command.wait()
    return _end(folder, code if code >= 0 else 128 - code)


def _take_turn(folder: Path) -> int | None:
    """The slot's descriptor once it is this job's turn; None where it was asked to stop."""
    slot = os.open(folder.parent / SLOT, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    while not (folder / STOP).exists():
        try:
            fcntl.flock(slot, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_POLL_SECONDS)
        else:
            return slot
    os.close(slot)
    return None


def _end(folder: Path, code: int) -> int:
    atomic_write_json(folder / ENDED, {"exit_code": code, "ended": _now()})
    return code


def _leave_it_to_the_command(number: int, frame: FrameType | None) -> None:
    """A signal to the job's processes, which the command has got, too."""


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
