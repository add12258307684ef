"""From events to the metrics of an experiment tracker, under standard names.

Takes events, live or from a record; gives numbers to a `Tracker`. The names: ``generate/…``
running totals by passages done, ``summary/…`` the figures at the end, ``train/<training>/…`` by
optimiser step, and ``process/…``, ``run/…`` and ``stages/…`` by seconds since the start.
"""

from __future__ import annotations

import contextlib
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from aios.core.events import (
    Evaluated,
    Event,
    GenerationMeasured,
    Heartbeat,
    PassageGenerated,
    RunFinished,
    StageFinished,
    Stalled,
    WorkFailed,
)
from aios.core.telemetry import GenerationTelemetry

INTERVAL_SECONDS = 5.0  # between two points of the running totals, however many passages
SLOWEST_SECONDS = 30.0  # a call that takes longer holds up the run: that tracker is dropped

_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_./-]+")  # all trackers take the other characters

Param = str | int | float | bool


class Tracker(Protocol):
    """What an adapter of a tracker's package does. Any of it may raise whatever that raises."""

    @property
    def place(self) -> str:
        """Where the figures are: a folder, a file or an address."""
        ...

    def log_params(self, params: Mapping[str, Param]) -> None:
        """Keeps the run's settings; called once, first."""
        ...

    def log_metrics(self, metrics: Mapping[str, float], step: int, when: float) -> None:
        """Keeps finite numbers by name, at a step and a time (Unix seconds).

        Steps rise among metrics of one prefix (all but the last part of the name), not overall.
        """
        ...

    def close(self, status: str) -> None:
        """Ends the run as ``done``, ``failed`` or ``interrupted``; nothing is called after."""
        ...


@dataclass(slots=True)
class TrackerSubscriber:
    """Turns events into a tracker's metrics.

    Attributes:
        name: The tracker's name.
        tracker: Its adapter.
        now: Unix seconds; the record's own times where a record is read.
        interval_seconds: Fewest seconds between two points of the running totals.
        values: Numbers given to the tracker so far.
        status: How the run ended; ``interrupted`` until that is known.
    """

    name: str
    tracker: Tracker
    now: Callable[[], float] = time.time
    interval_seconds: float = INTERVAL_SECONDS
    values: int = 0
    status: str = "interrupted"
    _started: float = -1.0
    _last: float = -math.inf
    _unsent: bool = False
    _passages: int = 0
    _failures: int = 0
    _stalls: int = 0
    _telemetry: GenerationTelemetry = field(init=False)

    def __post_init__(self) -> None:
        self._telemetry = GenerationTelemetry(lambda: self.now())

    def __call__(self, event: Event) -> None:
        """Takes one event. Raises whatever the tracker raises."""
        if self._started < 0:
            self._started = self.now()
        self._telemetry(event)
        if isinstance(event, PassageGenerated):
            self._passages += 1
            self._unsent = True
            if self.now() - self._last >= self.interval_seconds:
                self._totals()
        elif isinstance(event, Evaluated):
            self._evaluated(event)
        elif isinstance(event, StageFinished):
            self._totals()
            self._log(f"stages/{event.stage}", {"seconds": event.seconds}, self._elapsed())
        elif isinstance(event, GenerationMeasured):
            dropped = {f"dropped_{why}": count for why, count in event.dropped_by_reason.items()}
            self._log("summary", {**event.figures, **dropped}, self._passages)
        elif isinstance(event, Heartbeat):
            names = ("rss_bytes", "peak_rss_bytes", "idle_seconds")
            self._log("process", {name: getattr(event, name) for name in names}, self._elapsed())
        elif isinstance(event, WorkFailed):
            self._failures += 1
            self._log("run", {"failures": self._failures}, self._elapsed())
        elif isinstance(event, Stalled):
            self._stalls += 1
            self._log("run", {"stalls": self._stalls}, self._elapsed())
        elif isinstance(event, RunFinished):
            self._totals()
            self.status = event.status
            self._log("run", {"seconds": event.seconds}, self._elapsed())

    def close(self) -> None:
        """Ends the run in the tracker. Raises whatever the tracker raises."""
        with prints_to_stderr():
            self.tracker.close(self.status)

    def _totals(self) -> None:
        if not self._unsent:
            return
        self._last, self._unsent = self.now(), False
        summary = self._telemetry.summary()
        names = "passages kept dropped cached generated tokens retries failures".split()
        names += ["tokens_per_second", "hit_rate", "drop_rate"]
        self._log("generate", {name: getattr(summary, name) for name in names}, self._passages)

    def _evaluated(self, event: Evaluated) -> None:
        names = "train_loss validation_loss epoch tokens seconds".split()
        values = {name: getattr(event, name) for name in names}
        self._log(f"train/{event.training}", values, event.step)

    def _elapsed(self) -> int:
        return max(0, round(self.now() - self._started))

    def _log(self, prefix: str, values: Mapping[str, float | None], step: int) -> None:
        prefix = metric_name(prefix)
        metrics = {
            f"{prefix}/{metric_name(name)}": float(value)
            for name, value in values.items()
            if value is not None and math.isfinite(value)
        }
        began = time.monotonic()
        with prints_to_stderr():
            self.tracker.log_metrics(metrics, step, self.now())
        self.values += len(metrics)
        took = time.monotonic() - began
        if took > SLOWEST_SECONDS:
            raise TimeoutError(f"tracker {self.name} took {took:.0f} s for one call")


def metric_name(text: str) -> str:
    """A name that every tracker takes: other characters than ``A-Za-z0-9_./-`` become ``_``."""
    return _NOT_IN_A_NAME.sub("_", text)


@contextlib.contextmanager
def prints_to_stderr() -> Iterator[None]:
    """Keeps what packages print from stdout, which belongs to results."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
