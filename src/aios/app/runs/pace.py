"""How fast the stages of a run go on, and how long they will take at that pace.

Takes counts with the times at which they were reached. Rates are over recent counts, not since the
start: they follow the machine.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

_WINDOW = 256  # notes that a rate is over
_LEAST_SECONDS = 0.5  # a rate over less says nothing; nor does a count so soon after a start


class Pace:
    """How fast a count grows.

    Args:
        start: When it was 0.
    """

    def __init__(self, start: float) -> None:
        self.start = start
        self._notes: deque[tuple[float, float]] = deque([(start, 0.0)], maxlen=_WINDOW)

    def note(self, time: float, count: float) -> None:
        """Notes a count; one right after the start is what a resumed stage had before.

        Notes that stay have some time between them, so that the window is not filled by a burst.
        """
        notes = self._notes
        if count == notes[-1][1]:
            return
        if len(notes) == 1 and time - self.start < _LEAST_SECONDS:
            notes[0] = (time, count)
        elif len(notes) > 1 and notes[-1][0] - notes[-2][0] < _LEAST_SECONDS:
            notes[-1] = (time, count)
        else:
            notes.append((time, count))

    @property
    def count(self) -> float:
        """The count noted last."""
        return self._notes[-1][1]

    @property
    def rate(self) -> float | None:
        """Units a second over the recent notes; None before there is something to tell by."""
        (first, before), (last, after) = self._notes[0], self._notes[-1]
        seconds, work = last - first, after - before
        return work / seconds if seconds >= _LEAST_SECONDS and work > 0 else None

    def seconds_to(self, total: float, now: float) -> float | None:
        """Seconds until the count is `total`; None if it cannot be told."""
        rate = self.rate
        if rate is None or total <= 0:
            return None
        return max(0.0, (total - self.count) / rate - max(0.0, now - self._notes[-1][0]))


@dataclass(slots=True)
class OpenStage:
    """A stage that is going on."""

    name: str
    total: float
    unit: str
    pace: Pace
    note: str = ""
