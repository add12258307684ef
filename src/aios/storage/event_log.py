"""The record of a run: events as JSON lines, written as they happen and readable while they do.

Takes events from ``emit`` and appends one line each, with its time, in a single write; gives them
back to whoever reads or follows the file, in this process or another. A line cut short by a crash
is closed when the log is opened again, and readers skip it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from aios.core.events import Event, RunFinished, decode, encode
from aios.core.files import LineAppender, encode_json, guarded, parse_json
from aios.core.protocols import Emit, ShouldStop, never

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of the file: its bytes without the newline, and where the next one starts."""

    data: bytes
    end: int
    whole: bool


class EventLog:
    """An ``events.jsonl`` that events are appended to."""

    def __init__(self, path: Path) -> None:
        """Opens the file, making it if missing, and closes a line that a crash cut short.

        Raises:
            StorageError: It cannot be opened.
        """
        self.path = path
        self._lines = LineAppender(path)

    def emit(self, event: Event) -> None:
        """Appends an event with the time, ``{"time": <ISO 8601 UTC>, "type": …, …}``.

        Raises:
            StorageError: The disk is full or not writable: without its record a run stops.
        """
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        self._lines.append(encode_json({"time": now, **encode(event)}))

    def close(self) -> None:
        """Closes the file."""
        self._lines.close()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _lines_from(path: Path, start: int) -> Iterator[_Line]:
    with guarded("read", path), open(path, "rb") as handle:
        handle.seek(start)
        end = start
        for data in handle:
            end += len(data)
            yield _Line(data.rstrip(b"\n"), end, data.endswith(b"\n"))


def _parse(line: _Line, path: Path) -> tuple[datetime, Event] | None:
    """The event of a line, or None for one that was cut short or that we do not know."""
    if not line.data.strip():
        return None
    try:
        record = parse_json(line.data)
        return datetime.fromisoformat(record["time"]), decode(record)
    except (ValueError, KeyError, TypeError) as error:
        if line.whole:
            _LOGGER.warning("%s: skipped a line that is no event (%s)", path, error)
        return None


def read_events(path: Path) -> Iterator[tuple[datetime, Event]]:
    """The events of a log so far, with their times (UTC), in order.

    A last line that was cut short is left out; other lines that are no events are left out with a
    warning in the program's log.

    Raises:
        StorageError: The file is missing or cannot be read.
    """
    for line in _lines_from(path, 0):
        found = _parse(line, path)
        if found is not None:
            yield found


def tail(
    path: Path, *, should_stop: ShouldStop = never, poll_seconds: float = 0.2
) -> Iterator[tuple[datetime, Event]]:
    """Follows a log: its events so far, then new ones as they are written.

    Ends after a `RunFinished` that is the last event so far (a resumed run goes on after one), or
    when `should_stop` says so. Waits for a file that does not exist yet.

    Args:
        path: The log, which another process may be writing.
        should_stop: Asked whenever there is nothing new to read.
        poll_seconds: Seconds between two looks at the file.

    Raises:
        StorageError: The file cannot be read.
    """
    position = 0
    finished = False
    while True:
        if path.exists():
            for line in _lines_from(path, position):
                if not line.whole:  # still being written
                    break
                position = line.end
                found = _parse(line, path)
                if found is not None:
                    finished = isinstance(found[1], RunFinished)
                    yield found
        if finished or should_stop():
            return
        time.sleep(poll_seconds)


class _Subscriber:
    """A display: its first error is logged, and from then on it gets no events."""

    def __init__(self, emit: Emit) -> None:
        self._emit: Emit | None = emit

    def __call__(self, event: Event) -> None:
        if self._emit is None:
            return
        try:
            self._emit(event)
        except Exception:  # whatever a display does wrong, the run goes on
            _LOGGER.exception("a display failed on %s and gets no more events", event)
            self._emit = None


def fan_out(record: Emit, *subscribers: Emit) -> Emit:
    """One `Emit` that records an event and then shows it, one event at a time.

    It may be called from several threads (a job and its watchdog, say): a lock puts their events
    in one order, the same in the record and in every display, so that neither needs a lock of its
    own. A display may itself emit.

    Args:
        record: The run's record (`EventLog.emit`); its errors propagate.
        *subscribers: Displays. One that raises is logged and dropped; the others go on.
    """
    displays = [_Subscriber(emit) for emit in subscribers]
    one_at_a_time = threading.RLock()

    def emit(event: Event) -> None:
        with one_at_a_time:
            record(event)
            for display in displays:
                display(event)

    return emit
