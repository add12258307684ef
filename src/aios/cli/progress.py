"""Shows the event stream to a person: progress bars on a terminal, plain lines elsewhere.

Takes the events of `aios.core.events` and writes to stderr only. On a terminal each running stage
has a bar with count, rate and time left; elsewhere each stage writes its start, its end, and at
most one line every few seconds. A display that breaks (a closed pipe) is logged and dropped; the
run goes on.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from aios.cli.text import clean, format_bytes, format_count, format_duration, format_percent
from aios.core.events import (
    Dropped,
    Evaluated,
    Event,
    GenerationMeasured,
    Heartbeat,
    Notice,
    PassageGenerated,
    RunStarted,
    StageFinished,
    StageProgress,
    StageStarted,
    WorkFailed,
)

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PLAIN_INTERVAL = 5.0  # seconds between two plain lines of one stage
_RESUME_WINDOW = 0.5  # a first count within this many seconds is work done before, not speed

Clock = Callable[[], float]


class StageClock:
    """Rate and time left of one stage.

    A stage that goes on after a resume reports what it had as soon as it starts; that is not
    counted as speed.

    Args:
        started: What the stage is.
        now: Seconds on a monotonic clock.
    """

    def __init__(self, started: StageStarted, now: float) -> None:
        self.name = started.stage
        self.total = started.total
        self.unit = started.unit
        self.done = 0.0
        self.note = ""
        self._start = (now, 0.0)
        self._latest = (now, 0.0)

    def update(self, done: float, now: float) -> None:
        """Notes how much is done at a time."""
        if self._latest[1] == 0 and now - self._start[0] < _RESUME_WINDOW:
            self._start = (now, done)
        self.done = done
        self._latest = (now, done)

    @property
    def rate(self) -> float | None:
        """Units a second since the start; None before the first is done."""
        seconds = self._latest[0] - self._start[0]
        work = self._latest[1] - self._start[1]
        return work / seconds if seconds > 0 and work > 0 else None

    def seconds_left(self, now: float) -> float | None:
        """Estimated seconds to the end; None if it cannot be told."""
        rate = self.rate
        if rate is None or self.total <= 0:
            return None
        left = (self.total - self.done) / rate - (now - self._latest[0])
        return max(0.0, left)

    def count_text(self) -> str:
        """For example ``12/24 passages``."""
        count = format_count(self.done)
        if self.total > 0:
            count += f"/{format_count(self.total)}"
        return f"{count} {self.unit}".rstrip()

    def rate_text(self) -> str:
        """For example ``0.8 passages/s``; slow ones a minute."""
        rate = self.rate
        if rate is None:
            return ""
        per, rate = ("min", rate * 60) if rate < 0.1 else ("s", rate)
        digits = 0 if rate >= 100 else 1 if rate >= 1 else 2
        return f"{rate:,.{digits}f}{' ' + self.unit if self.unit else ''}/{per}"

    def left_text(self, now: float) -> str:
        """For example ``1 min 20 s left``."""
        left = self.seconds_left(now)
        return "" if left is None else f"{format_duration(left)} left"


def describe(event: Event, *, verbose: bool) -> str | None:
    """The line for an event that is not a stage's; None if it is not shown."""
    text = _describe_always(event)
    return text if text is not None or not verbose else _describe_verbose(event)


def _describe_always(event: Event) -> str | None:
    if isinstance(event, Notice):
        return f"{'warning' if event.level == 'warning' else 'note'}: {event.message}"
    if isinstance(event, WorkFailed):
        return f"failed: {event.boundary} {event.subject}: {event.error}"
    if isinstance(event, RunStarted) and event.resumed:
        return f"note: going on with {event.kind} run {event.run}"
    return None


def _describe_verbose(event: Event) -> str | None:
    if isinstance(event, PassageGenerated):
        retries = f", {event.retries} retries" if event.retries else ""
        return (
            f"passage {event.passage_id}: {event.kept} kept, {event.dropped} dropped, "
            f"{event.cached} cached, {event.generated} generated, {event.tokens} tokens, "
            f"{format_duration(event.seconds)}{retries}"
        )
    if isinstance(event, Dropped):
        detail = f" ({event.detail})" if event.detail else ""
        return f"dropped {event.passage_id} #{event.index}: {event.reason}{detail}"
    if isinstance(event, Evaluated):
        losses = (("train", event.train_loss), ("validation", event.validation_loss))
        shown = ", ".join(f"{name} {loss:.3f}" for name, loss in losses if loss is not None)
        return (
            f"{event.training}: step {event.step}, epoch {event.epoch:.2f}, "
            f"{event.tokens:,} tokens, {shown or 'no loss yet'}, {format_duration(event.seconds)}"
        )
    if isinstance(event, Heartbeat):
        memory = f", {format_bytes(event.rss_bytes)} of memory" if event.rss_bytes else ""
        idle = format_duration(event.idle_seconds)
        return f"{event.stage}: {format_count(event.done)} done, the last {idle} ago{memory}"
    if isinstance(event, GenerationMeasured):
        return _measured(event)
    return None  # of a stall a notice tells, with what to do


def _measured(event: GenerationMeasured) -> str:
    shown: dict[str, Callable[[float], str]] = {
        "tokens_per_second": lambda value: f"{value:,.0f} tokens/s",
        "passage_seconds_median": lambda value: f"{format_duration(value)} a passage (median)",
        "hit_rate": lambda value: f"{format_percent(value, 0)} from the cache",
        "drop_rate": lambda value: f"{format_percent(value, 0)} dropped",
        "peak_rss_bytes": lambda value: f"at most {format_bytes(value)} of memory",
    }
    facts = [write(event.figures[name]) for name, write in shown.items() if name in event.figures]
    return f"{event.stage}: {', '.join(facts) or 'nothing to measure'}"


def _finished(event: StageFinished) -> str:
    summary = f": {event.summary}" if event.summary else ""
    return f"{event.stage}: done in {format_duration(event.seconds)}{summary}"


class PlainProgress:
    """Writes lines: for logs, pipes and terminals that cannot move the cursor.

    Args:
        stream: Where to.
        verbose: Also a line per passage, per dropped edit and per evaluation.
        clock: Monotonic seconds.
        interval: Fewest seconds between two progress lines of one stage.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        verbose: bool = False,
        clock: Clock = time.monotonic,
        interval: float = PLAIN_INTERVAL,
    ) -> None:
        self._stream = stream
        self._verbose = verbose
        self._clock = clock
        self._interval = interval
        self._stages: dict[str, StageClock] = {}
        self._last: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        """Shows one event."""
        now = self._clock()
        if isinstance(event, StageStarted):
            stage = self._begin(event, now)
            self._line(f"{stage.name}: started" + (f", {_size(stage)}" if stage.total else ""))
        elif isinstance(event, StageProgress):
            stage = self._stages.get(event.stage) or self._begin(StageStarted(event.stage), now)
            stage.update(event.done, now)
            if now - self._last[event.stage] >= self._interval:
                self._last[event.stage] = now
                facts = (stage.count_text(), stage.rate_text(), stage.left_text(now), event.note)
                self._line(f"{stage.name}: " + ", ".join(fact for fact in facts if fact))
        elif isinstance(event, StageFinished):
            self._stages.pop(event.stage, None)
            self._line(_finished(event))
        else:
            line = describe(event, verbose=self._verbose)
            if line is not None:
                self._line(line)

    def _begin(self, event: StageStarted, now: float) -> StageClock:
        self._last[event.stage] = now
        self._stages[event.stage] = StageClock(event, now)
        return self._stages[event.stage]

    def _line(self, text: str) -> None:
        self._stream.write(clean(text) + "\n")
        self._stream.flush()


def _size(stage: StageClock) -> str:
    return f"{format_count(stage.total)} {stage.unit}".rstrip()


class BarProgress:
    """Shows a bar for each running stage on a terminal, and keeps finished stages as lines.

    Use it as a context manager: it owns the cursor between enter and exit.

    Args:
        stream: A terminal.
        verbose: As for `PlainProgress`.
        clock: Monotonic seconds.
    """

    def __init__(
        self, stream: TextIO, *, verbose: bool = False, clock: Clock = time.monotonic
    ) -> None:
        self._verbose = verbose
        self._clock = clock
        self._bars = _make_bars(stream, clock)
        self._stages: dict[str, tuple[TaskID, StageClock]] = {}

    def __enter__(self) -> BarProgress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def __call__(self, event: Event) -> None:
        """Shows one event."""
        if isinstance(event, StageStarted):
            self._begin(event)
        elif isinstance(event, StageProgress):
            task, stage = self._stages.get(event.stage) or self._begin(StageStarted(event.stage))
            stage.note = clean(event.note)
            stage.update(event.done, self._clock())
            self._bars.update(task, completed=event.done)
        elif isinstance(event, StageFinished):
            known = self._stages.pop(event.stage, None)
            if known is not None:
                self._bars.remove_task(known[0])
            self._line(_finished(event))
        else:
            line = describe(event, verbose=self._verbose)
            if line is not None:
                self._line(line)

    def _begin(self, event: StageStarted) -> tuple[TaskID, StageClock]:
        stage = StageClock(event, self._clock())
        known = self._stages.pop(event.stage, None)
        if known is not None:  # the same stage again, e.g. after a retry
            self._bars.remove_task(known[0])
        task = self._bars.add_task(clean(event.stage), total=event.total or None, stage=stage)
        self._stages[event.stage] = (task, stage)
        return self._stages[event.stage]

    def _line(self, text: str) -> None:
        self._bars.console.print(clean(text), soft_wrap=True)


def _make_bars(stream: TextIO, clock: Clock) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.text import Text

    class Facts(ProgressColumn):
        """Count, rate, time left and note of a stage, read when the bar is drawn."""

        def render(self, task: Task) -> Text:
            stage: StageClock = task.fields["stage"]
            facts = (stage.count_text(), stage.rate_text(), stage.left_text(clock()), stage.note)
            return Text(" · ".join(fact for fact in facts if fact))

    console = Console(file=stream, markup=False, emoji=False, highlight=False)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        Facts(),
        console=console,
        transient=True,
        refresh_per_second=4,
    )


class _Sheltered:
    """Passes events on until the display breaks; then logs that once and drops it."""

    def __init__(self, display: Callable[[Event], None]) -> None:
        self._display: Callable[[Event], None] | None = display

    def __call__(self, event: Event) -> None:
        if self._display is None:
            return
        try:
            self._display(event)
        except (OSError, ValueError) as error:  # closed pipe or closed stream
            logging.getLogger(__name__).warning("progress display dropped: %s", error)
            self._display = None


def can_draw(stream: TextIO) -> bool:
    """Whether the stream is a terminal on which the cursor can be moved."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


@contextmanager
def show_progress(
    *, quiet: bool = False, verbose: bool = False, stream: TextIO | None = None
) -> Iterator[Callable[[Event], None]]:
    """Gives the `Emit` that shows a run to the person at the terminal.

    Args:
        quiet: Show nothing.
        verbose: Also a line per passage, per dropped edit and per evaluation.
        stream: Where to; stderr by default.
    """
    target = sys.stderr if stream is None else stream
    if quiet:
        yield lambda event: None
    elif can_draw(target):
        with BarProgress(target, verbose=verbose) as bars:
            yield _Sheltered(bars)
    else:
        yield _Sheltered(PlainProgress(target, verbose=verbose))
