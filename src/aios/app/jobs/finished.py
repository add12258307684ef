"""Whether a command has finished, told from what it has left, where its job did not write it down.

The process of a job writes down how its command ended. Where that process alone was killed and the
command went on to its end, nobody has: then the command's own files say it.
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

from aios.app.jobs.records import JobRequest
from aios.core.files import parse_json

_EVENTS = "events.jsonl"
_TAIL_BYTES = 65_536


def has_finished(request: JobRequest, since: datetime) -> bool:
    """Whether the command of a job came to a good end; False where its files do not tell.

    Args:
        request: The job's.
        since: When its command began; what its run has said before is of another command.
    """
    if request.run is not None:
        return _is_done(request.run / _EVENTS, since)
    if request.kind == "generate":
        output = request.output  # its journal goes when all is written
        return output.is_file() and not output.with_name(f".{output.name}.journal").exists()
    return False


def _is_done(events: Path, since: datetime) -> bool:
    """Whether the last beginning or end in a record of events is a good end, later than `since`."""
    try:
        with open(events, "rb", opener=_without_waiting) as handle:
            size = handle.seek(0, os.SEEK_END)
            handle.seek(max(0, size - _TAIL_BYTES))
            lines = handle.read(_TAIL_BYTES).split(b"\n")
    except OSError:
        return False
    for line in reversed(lines):
        if b'"RunStarted"' not in line and b'"RunFinished"' not in line:
            continue
        try:
            record = parse_json(line)
            kind, time = record["type"], datetime.fromisoformat(record["time"])
            if kind in ("RunStarted", "RunFinished"):
                return bool(kind == "RunFinished" and record["status"] == "done" and time >= since)
        except (ValueError, KeyError, TypeError):
            continue
    return False


def _without_waiting(file: str, flags: int) -> int:
    return os.open(file, flags | os.O_NONBLOCK)  # a pipe that is in the way
