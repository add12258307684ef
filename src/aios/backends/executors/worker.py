"""What runs in a worker: it builds its bench, runs the batches it is given, and reports.

A worker gets commands through an `Inbox` and hands its reports to a function; how both travel is
the transport's affair. Commands and reports are pickled by multiprocessing or Ray between
processes that we started ourselves; nothing that comes from outside is ever unpickled.
"""

from __future__ import annotations

import pickle
import threading
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, cast

from aios.core.data.probes import Probe
from aios.core.errors import (
    AIOSError,
    BackendError,
    OutOfMemoryError,
    RunInterrupted,
    UsageError,
)
from aios.core.events import Event, StageFinished, StageProgress, StageStarted, WorkFailed
from aios.core.protocols import TrialBench
from aios.core.trials import Answered, TrialJob, TrialOutcome

STARTUP = -1  # the number of no command: while the bench is built
_TOLD_BY_THE_PARENT = (StageStarted, StageProgress, StageFinished, WorkFailed)

BenchFactory = Callable[[], TrialBench]
_Error = TypeVar("_Error", bound=AIOSError)


@dataclass(frozen=True, slots=True)
class Work:
    """Command: run these jobs."""

    id: int
    jobs: tuple[TrialJob, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """Command: put questions to the base model; comes before all work that was not begun."""

    id: int
    questions: tuple[Probe, ...]
    write_answers: bool
    max_answer_tokens: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """Command: batches up to this number are not wanted any more."""

    up_to: int


Command = Work | Ask | Cancel


@dataclass(frozen=True, slots=True)
class Ready:
    """Report: the bench is built."""


@dataclass(frozen=True, slots=True)
class Produced:
    """Report: what came of a job."""

    batch: int
    outcome: TrialOutcome


@dataclass(frozen=True, slots=True)
class Finished:
    """Report: a batch is done, or was not wanted."""

    batch: int


@dataclass(frozen=True, slots=True)
class Told:
    """Report: something happened in a batch."""

    batch: int
    event: Event


@dataclass(frozen=True, slots=True)
class Answers:
    """Report: what the base model made of questions, or why that cannot be said."""

    ask: int
    answers: tuple[Answered, ...] | BackendError


@dataclass(frozen=True, slots=True)
class GaveUp:
    """Report: the backend can do no more; the worker ends."""

    error: BackendError


@dataclass(frozen=True, slots=True)
class Broken:
    """Report: an error that no other worker would be spared; the worker ends.

    Attributes:
        command: What it was doing; `STARTUP` while it built its bench.
        error: An error for the user, or None for a bug.
        summary: Type and message of a bug.
        trace: Its traceback as text.
    """

    command: int
    error: AIOSError | None
    summary: str = ""
    trace: str = ""


@dataclass(frozen=True, slots=True)
class Lost:
    """Report, by the transport: the worker is gone; `reason` completes "it …"."""

    reason: str


Report = Ready | Produced | Finished | Told | Answers | GaveUp | Broken | Lost


class Inbox:
    """Commands on their way to the worker's thread; filled from another one."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._asks: deque[Ask] = deque()
        self._work: deque[Work] = deque()
        self._cancelled = STARTUP
        self._ended = False

    def put(self, command: Command) -> None:
        """Adds a command."""
        with self._changed:
            if isinstance(command, Cancel):
                self._cancelled = max(self._cancelled, command.up_to)
            elif isinstance(command, Ask):
                self._asks.append(command)
            else:
                self._work.append(command)
            self._changed.notify()

    def end(self) -> None:
        """There will be no more, and what there is need not be done."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def take(self) -> Work | Ask | None:
        """The next command, questions first; waits for it. None at the end."""
        with self._changed:
            while not (self._ended or self._asks or self._work):
                self._changed.wait()
            if self._ended:
                return None
            return self._asks.popleft() if self._asks else self._work.popleft()

    def unwanted(self, batch: int) -> bool:
        """Whether the batch need not be done any more."""
        return self._ended or batch <= self._cancelled


def pack_factory(factory: BenchFactory) -> bytes:
    """The factory as bytes for `serve`.

    Raises:
        UsageError: It cannot be sent to another process.
    """
    try:
        return pickle.dumps(factory)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UsageError(
            f"the bench factory cannot be sent to a worker: {error}",
            "use a function of a module, or functools.partial of one, with plain arguments",
        ) from error


def serve(factory: bytes, inbox: Inbox, report: Callable[[Report], None]) -> None:
    """Works until the inbox is ended or the bench can do no more.

    The worker's environment must be set by now: the factory's modules are imported here.

    Args:
        factory: From `pack_factory`.
        inbox: Where commands come from.
        report: Where reports go.

    Raises:
        SystemExit: It ended by a bug, which was reported.
    """
    doing = STARTUP
    try:
        build: BenchFactory = pickle.loads(factory)
        bench = build()
        report(Ready())
        try:
            while (command := inbox.take()) is not None:
                doing = command.id
                if isinstance(command, Ask):
                    report(_answer(bench, command))
                else:
                    _run(bench, command, inbox, report)
        finally:
            bench.close()
    except BackendError as error:
        report(GaveUp(_plain(error)))
    except MemoryError as error:
        report(GaveUp(OutOfMemoryError(f"the worker had no memory left: {error}")))
    except AIOSError as error:
        report(Broken(doing, _plain(error)))
    except Exception as error:
        summary = f"{type(error).__name__}: {error}"
        report(Broken(doing, None, summary, traceback.format_exc()))
        raise SystemExit(1) from error


def _run(bench: TrialBench, work: Work, inbox: Inbox, report: Callable[[Report], None]) -> None:
    """Runs a batch; each outcome goes out as it is ready."""

    def unwanted() -> bool:
        return inbox.unwanted(work.id)

    def tell(event: Event) -> None:
        if not isinstance(event, _TOLD_BY_THE_PARENT):
            report(Told(work.id, event))

    try:
        if not unwanted():
            for outcome in bench.run(work.jobs, emit=tell, should_stop=unwanted):
                report(Produced(work.id, outcome))
                if unwanted():
                    break
    except RunInterrupted:
        if not unwanted():
            raise
    report(Finished(work.id))


def _answer(bench: TrialBench, ask: Ask) -> Answers:
    try:
        found = bench.baseline(
            ask.questions,
            write_answers=ask.write_answers,
            max_answer_tokens=ask.max_answer_tokens,
        )
    except BackendError as error:
        return Answers(ask.id, _plain(error))
    return Answers(ask.id, tuple(found))


def _plain(error: _Error) -> _Error:
    """The error as one of `core.errors`, which every process can read."""
    kind = next(c for c in type(error).__mro__ if c.__module__ == AIOSError.__module__)
    plain = kind(error.message, error.remedy)
    if isinstance(plain, BackendError) and isinstance(error, BackendError):
        plain.retryable = error.retryable
    return cast("_Error", plain)
