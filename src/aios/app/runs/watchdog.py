"""Watches a long stage: a heartbeat in the record, a warning when it stalls, a stop if asked for.

Takes the run's `Emit` and gives one that also notes what was finished, and when. A thread of its
own writes a `Heartbeat` at equal intervals; where nothing has been finished for `stall_seconds`
(and again at twice, four times, … that) it writes a `Stalled` event and warns.

With `abort_after_seconds` a stage that stalls for so long is stopped in two steps. First
`Watch.should_stop` turns true, which ends the job where its work can be resumed. That needs a job
that still asks; a call that never comes back (into a driver, say) cannot be interrupted from a
thread or by a signal. So, `GRACE_SECONDS` later, `faulthandler` writes the stack of every thread
into ``stacks.txt`` of the run directory and ends the process, with exit code 1, without asking
Python: finished work is in the journal, and the run's lock falls with the process.
"""

from __future__ import annotations

import faulthandler
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil

from aios.core.errors import AIOSError
from aios.core.events import (
    Evaluated,
    Event,
    Heartbeat,
    Notice,
    PassageGenerated,
    StageFinished,
    StageProgress,
    StageStarted,
    Stalled,
    WorkFailed,
)
from aios.core.files import guarded
from aios.core.protocols import Emit, ShouldStop, never

GRACE_SECONDS = 60.0  # between asking the job to stop and ending the process
STACKS_FILE = "stacks.txt"

_SIGNS = (StageStarted, StageProgress, StageFinished, PassageGenerated, Evaluated, WorkFailed)
_STDERR = 2  # its descriptor: `faulthandler` writes past Python's streams
_JOIN_SECONDS = 5.0

Clock = Callable[[], float]


class Watch:
    """A stage under watch; made by `watching`."""

    def __init__(
        self,
        emit: Emit,
        *,
        stage: str,
        stall_seconds: float,
        heartbeat_seconds: float,
        abort_after_seconds: float | None,
        should_stop: ShouldStop,
        dump_file: IO[bytes] | None,
        grace_seconds: float,
        clock: Clock,
    ) -> None:
        self._record = emit
        self._stage = stage
        self._stall_seconds = stall_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._abort_after = abort_after_seconds
        self._should_stop = should_stop
        self._dump_file = dump_file
        self._grace_seconds = grace_seconds
        self._clock = clock
        self._lock = threading.Lock()  # guards what follows; never held while an event is emitted
        self._latest = clock()
        self._last = ""
        self._passages = 0.0
        self._progress: float | None = None
        self._next_stall = stall_seconds
        self._last_beat = self._latest
        self._armed = -1.0
        self._peak = 0
        self.aborting = False
        self._error: AIOSError | None = None

    def emit(self, event: Event) -> None:
        """Passes an event on, and notes what it says was finished. Use it in the run's place.

        Raises:
            StorageError: The event, or one of the watchdog's own, cannot be recorded.
        """
        self.raise_error()
        self._record(event)
        if isinstance(event, _SIGNS):
            self._note(event)

    def should_stop(self) -> bool:
        """Whether the job is to end: it was asked to, or has stalled for too long.

        Raises:
            StorageError: An event of the watchdog cannot be recorded.
        """
        self.raise_error()
        return self.aborting or self._should_stop()

    def raise_error(self) -> None:
        """Raises in the caller's thread what went wrong in the watchdog's, once."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _note(self, event: Event) -> None:
        with self._lock:
            self._latest = self._clock()
            self._next_stall = self._stall_seconds
            if isinstance(event, PassageGenerated):
                self._passages += 1
                self._last = f"passage {event.passage_id}"
            elif isinstance(event, Evaluated):
                self._last = f"{event.training}, step {event.step}"
            elif isinstance(event, WorkFailed):
                self._last = event.subject
            elif isinstance(event, StageProgress) and event.stage == self._stage:
                self._progress = event.done
        self.arm()

    # ------------------------------------------------------------ the thread's part

    def beat(self) -> None:
        """Writes a heartbeat.

        Raises:
            StorageError: It cannot be recorded.
        """
        rss, peak = process_memory()
        with self._lock:
            self._peak = max(self._peak, rss, peak)  # a training may reset the system's own mark
            self._last_beat = self._clock()
            idle = max(0.0, self._last_beat - self._latest)
            done = self._done()
        self._record(Heartbeat(self._stage, done, idle, rss, self._peak))

    def tick(self) -> None:
        """Does what is due: a heartbeat, a warning, a stop.

        Raises:
            StorageError: An event cannot be recorded.
        """
        with self._lock:
            now = self._clock()
            idle = now - self._latest
            beat_due = now - self._last_beat >= self._heartbeat_seconds
            stalled = idle >= self._next_stall
            while idle >= self._next_stall:
                self._next_stall *= 2
            abort = self._abort_after is not None and idle >= self._abort_after
            abort = abort and not self.aborting
            last, done = self._last, self._done()
        if abort:  # before anything that could block, such as a full pipe
            self.aborting = True
            faulthandler.dump_traceback(self._dump_file or _STDERR)
        if beat_due:
            self.beat()
        if stalled or abort:
            self._record(Stalled(self._stage, idle, last, done))
            self._record(Notice(self._advice(idle, last, done, abort=abort), "warning"))

    def run(self, closed: threading.Event, poll_seconds: float) -> None:
        """The thread: ticks until `closed`; an error is kept for the caller's thread."""
        while not closed.wait(poll_seconds):
            try:
                self.tick()
            except AIOSError as error:
                self._error = error
                return

    def arm(self) -> None:
        """Sets the time after which the process is ended, anew; at most once a second."""
        now = time.monotonic()
        if self._abort_after is None or (self._armed >= 0 and now - self._armed < 1):
            return
        self._armed = now
        seconds = self._abort_after + self._grace_seconds
        faulthandler.dump_traceback_later(seconds, exit=True, file=self._dump_file or _STDERR)

    def disarm(self) -> None:
        """Calls off what `arm` has set."""
        if self._abort_after is not None:
            faulthandler.cancel_dump_traceback_later()

    def _done(self) -> float:
        return self._passages if self._progress is None else self._progress

    def _advice(self, idle: float, last: str, done: float, *, abort: bool) -> str:
        before = f"; the last was {last} ({done:,.0f} done)" if last else ""
        what = f"{self._stage}: nothing has been finished for {idle:,.0f} s{before}"
        if abort:
            return (
                f"{what}. Stopping, as telemetry.abort_after_seconds says; what is finished is "
                f"kept. Where each thread stands is in {STACKS_FILE} of the run directory"
            )
        return (
            f"{what}. The run goes on; if it stays so, stop it and type the same line again: "
            "what is finished is kept"
        )


@contextmanager
def watching(
    emit: Emit,
    *,
    stage: str,
    stall_seconds: float,
    heartbeat_seconds: float,
    abort_after_seconds: float | None = None,
    should_stop: ShouldStop = never,
    dump_to: Path | None = None,
    grace_seconds: float = GRACE_SECONDS,
    clock: Clock = time.monotonic,
) -> Iterator[Watch]:
    """Watches a stage for the time of the block.

    The job emits through the `Watch` and asks its `should_stop`. A passage, a failure, an
    evaluation and a stage's progress count as something finished; a stage that begins starts the
    clock anew. There is a heartbeat at the beginning and one at the end, so that even a short
    stage records its peak memory. `faulthandler` has one timer for the whole process: with
    `abort_after_seconds`, watch one stage at a time.

    Args:
        emit: Records and shows events; called from a second thread too (see
            `storage.event_log.fan_out`).
        stage: Its name, as in `StageStarted`.
        stall_seconds: Seconds without anything finished, after which it warns.
        heartbeat_seconds: Seconds between two heartbeats.
        abort_after_seconds: Seconds without anything finished, after which it stops the job; None
            for never.
        should_stop: The job's own.
        dump_to: The run directory, for ``stacks.txt``; without it stacks go to stderr.
        grace_seconds: From then on, seconds until the process is ended.
        clock: Monotonic seconds.

    Raises:
        StorageError: An event of the watchdog could not be recorded, or ``stacks.txt`` not made.
            It is raised by the next `Watch.emit` or `Watch.should_stop`, or at the end.
    """
    with ExitStack() as stack:
        dump_file = None
        if abort_after_seconds is not None and dump_to is not None:
            dump_file = stack.enter_context(_stacks_file(dump_to / STACKS_FILE))
        watch = Watch(
            emit,
            stage=stage,
            stall_seconds=stall_seconds,
            heartbeat_seconds=heartbeat_seconds,
            abort_after_seconds=abort_after_seconds,
            should_stop=should_stop,
            dump_file=dump_file,
            grace_seconds=grace_seconds,
            clock=clock,
        )
        watch.beat()
        shortest = min(heartbeat_seconds, stall_seconds, abort_after_seconds or stall_seconds)
        with _thread_of(watch, f"watchdog of {stage}", min(max(shortest / 4, 0.02), 1.0)):
            yield watch
        watch.raise_error()
        watch.beat()


@contextmanager
def _thread_of(watch: Watch, name: str, poll_seconds: float) -> Iterator[None]:
    """Runs the watch's thread, and its timer, for the time of the block."""
    closed = threading.Event()
    thread = threading.Thread(target=watch.run, args=(closed, poll_seconds), name=name, daemon=True)
    thread.start()
    watch.arm()
    try:
        yield
    finally:
        watch.disarm()
        closed.set()
        thread.join(_JOIN_SECONDS)


@contextmanager
def _stacks_file(path: Path) -> Iterator[IO[bytes]]:
    """An open file for stacks; it is left only if something was written."""
    with guarded("write", path):
        handle = path.open("wb")
    try:
        yield handle
    finally:
        handle.close()
        with suppress(OSError):
            if path.stat().st_size == 0:
                path.unlink()


def process_memory() -> tuple[int, int]:
    """Resident memory of this process, and the most it had so far (bytes; 0 if not known)."""
    try:
        rss = int(psutil.Process().memory_info().rss)
    except psutil.Error:
        rss = 0
    try:  # not getrusage on Linux: its mark is inherited from the process that started this one
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        for line in status.splitlines():
            if line.startswith("VmHWM:"):
                return rss, int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return rss, peak if sys.platform == "darwin" else peak * 1024
