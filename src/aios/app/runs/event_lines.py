"""Events of a run that another process writes, taken in line by line and read with suspicion.

Takes the lines of a run's record one at a time, as they come; hands the events that are asked for
to whoever counts them. Most lines of a long record are of other events: they are known by their
head, and not parsed. A line that is no event, or has a value of a wrong type, is counted and left
out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, TypeAlias

Take: TypeAlias = Callable[[Mapping[str, Any], float], None]

_HEAD = re.compile(rb'\{"time":"([^"\\]{1,40})","type":"([A-Za-z]{1,40})"')
_LAST_TIME = 253_402_300_800  # the year 10000


class EventLines:
    """Hands the events of a record on.

    Args:
        take: By type of event, what takes it in: called with the record and its time (Unix
            seconds). It raises KeyError, TypeError or ValueError where a value is of no use.

    Attributes:
        broken: Lines that were no events.
    """

    def __init__(self, take: Mapping[str, Take]) -> None:
        self._take = take
        self._latest = b""
        self.broken = 0

    @property
    def updated(self) -> float | None:
        """Time of the last event, Unix seconds; None before the first."""
        try:
            return _seconds(self._latest.decode("ascii")) if self._latest else None
        except ValueError:
            return None

    def add(self, line: bytes) -> None:
        """Takes in a line; one that is no event is counted in `broken`."""
        head = _HEAD.match(line)
        if head is not None and head[2].decode() not in self._take:
            self._latest = head[1]
            return
        if not line.strip():  # what closes a line that was cut short
            return
        try:
            record = json.loads(line.decode("utf-8"))
            time = _seconds(record["time"])
            take = self._take.get(record["type"])
            if take is not None:
                take(record, time)
            self._latest = record["time"].encode("ascii")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self.broken += 1


def _seconds(time: str) -> float:
    """Unix seconds of an ISO 8601 time.

    Raises:
        ValueError: It is none, or not of our days.
    """
    try:
        seconds = datetime.fromisoformat(time).timestamp()
    except OverflowError as error:
        raise ValueError(str(error)) from error
    if not 0 <= seconds < _LAST_TIME:
        raise ValueError(f"{time} is no time of a run")
    return seconds
