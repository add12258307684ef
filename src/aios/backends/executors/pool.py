"""The executor over workers, whatever carries its messages: feeding, retrying, restarting.

`WorkerPool` does what `core.protocols.Executor` promises over a `Transport`. Workers start with
the first call that needs them. Trials of a lost worker are tried once more (`dispatch`), and it
is started again; one that is lost `max_restarts` + 1 times without an outcome in between is given
up, and when all are, the call ends with a `BackendError`. Errors of the user's (`UsageError`,
`ModelError`, …) and bugs are raised in the caller, bugs with the worker's traceback as the cause.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from aios.backends.executors.dispatch import Dispatch
from aios.backends.executors.worker import (
    STARTUP,
    Answers,
    Ask,
    Broken,
    Cancel,
    Command,
    Finished,
    GaveUp,
    Lost,
    Produced,
    Ready,
    Report,
    Work,
)
from aios.core.data.probes import Probe
from aios.core.errors import BackendError, RunInterrupted, UsageError
from aios.core.events import Notice, StageFinished, StageProgress, StageStarted, WorkFailed
from aios.core.protocols import Emit, ShouldStop, ignore, never
from aios.core.trials import Answered, TrialJob, TrialOutcome

MAX_RESTARTS = 4
_STAGE = "trials"
_POLL_SECONDS = 0.1  # how often the caller is asked whether to stop


class Transport(Protocol):
    """Starts workers, by number, and carries messages to and from them."""

    def start(self, worker: int) -> None:
        """Starts a worker, which is not running.

        Raises:
            BackendError: The system refuses.
            UsageError: It cannot be started on this machine or cluster at all.
        """
        ...

    def send(self, worker: int, command: Command) -> None:
        """Sends a command; if the worker is gone, `receive` will say so."""
        ...

    def receive(self, timeout: float) -> list[tuple[int, Report]]:
        """What has come in from the workers that run; waits `timeout` seconds for the first.

        A worker that is gone is reported as `Lost`, after all that it said before and that
        arrived.
        """
        ...

    def end(self, worker: int) -> None:
        """Ends a worker if it runs; nothing more comes from it."""
        ...

    def close(self) -> None:
        """Ends all workers and whatever they needed."""
        ...


class WorkerTraceback(Exception):
    """The traceback of a bug in a worker, as text; the cause of what is raised in the caller."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


@dataclass(slots=True)
class _Worker:
    """What is known of a worker: whether it runs, is ready, and how often it was lost."""

    running: bool = False
    ready: bool = False
    losses: int = 0


class WorkerPool:
    """An `Executor` over the workers of a transport.

    Args:
        transport: Starts the workers; closed with the pool.
        workers: How many.
        bank: Trials of a batch. Small batches spread a few trials more evenly; in large ones
            more are trained at once.
        max_restarts: How often a worker is started again without an outcome in between.

    Raises:
        UsageError: A number that is not positive.
    """

    def __init__(
        self, transport: Transport, *, workers: int, bank: int, max_restarts: int = MAX_RESTARTS
    ) -> None:
        if min(workers, bank) < 1:
            raise UsageError(
                f"trials cannot be run by {workers} workers in batches of {bank}",
                "both must be at least 1",
            )
        self._transport, self._bank, self._max_restarts = transport, bank, max_restarts
        self._workers = [_Worker() for _ in range(workers)]
        self._numbers = count()
        self._reports: deque[tuple[int, Report]] = deque()
        self._dispatch: Dispatch | None = None
        self._emit: Emit = ignore
        self._asked: dict[int, int] = {}  # worker by question in hand
        self._answers: dict[int, tuple[Answered, ...] | BackendError | None] = {}
        self._known: dict[tuple[str, int | None], Answered] = {}
        self._last_loss = ""
        self._closed = False

    # ------------------------------------------------------------ the seam

    def run(
        self, jobs: Iterable[TrialJob], *, emit: Emit = ignore, should_stop: ShouldStop = never
    ) -> Iterator[TrialOutcome]:
        """Trains and examines; see `core.protocols.Executor.run`.

        Raises:
            UsageError: A job cannot be run at all.
            BackendError: No worker can be started, or the executor is closed.
            RunInterrupted: `should_stop` said so.
            RuntimeError: A bug in a worker, or another call that has not ended.
        """
        self._require_open()
        if self._dispatch is not None:
            raise RuntimeError("this executor is running trials; end that call first")
        dispatch = self._dispatch = Dispatch(jobs, self._bank, self._numbers)
        self._emit = emit
        began, done, failed = time.monotonic(), 0, 0
        try:
            emit(StageStarted(_STAGE, len(jobs) if isinstance(jobs, Sized) else 0, _STAGE))
            while not dispatch.is_done():
                if should_stop():
                    raise RunInterrupted(
                        f"trials were stopped after {done} were done",
                        "run the same command with --resume",
                    )
                self._start_workers()
                self._receive(0 if self._feed(dispatch) else _POLL_SECONDS)
                for outcome in dispatch.take_outcomes():
                    done += 1
                    if (failure := outcome.failure) is not None:
                        failed += 1
                        emit(
                            WorkFailed(
                                failure.boundary, failure.subject, failure.error, failure.retryable
                            )
                        )
                    emit(StageProgress(_STAGE, done))
                    yield outcome
            seconds = time.monotonic() - began
            emit(StageFinished(_STAGE, seconds, f"{done} trials, {failed} failed"))
        finally:
            self._dispatch, self._emit = None, ignore
            if dispatch.busy:
                self._cancel()

    def baseline(
        self,
        questions: Sequence[Probe],
        *,
        write_answers: bool = False,
        max_answer_tokens: int = 16,
    ) -> list[Answered]:
        """What the base makes of the questions; see `core.protocols.Executor.baseline`.

        One worker is asked, between two batches; what it says is kept here.

        Raises:
            BackendError: Scoring or generation failed, or the executor is closed.
        """
        self._require_open()
        length = max_answer_tokens if write_answers else None
        missing = {q.id: q for q in questions if (q.id, length) not in self._known}
        if missing:
            answers = self._ask(tuple(missing.values()), write_answers, max_answer_tokens)
            self._known.update({(a.probe_id, length): a for a in answers})
        return [self._known[q.id, length] for q in questions]

    def close(self) -> None:
        """Ends the workers; nothing can be run any more."""
        if not self._closed:
            self._closed = True
            self._reports.clear()
            for worker in self._workers:
                worker.running = worker.ready = False
            self._transport.close()

    # ------------------------------------------------------------ workers

    def _start_workers(self) -> None:
        """Starts those that do not run and were not given up.

        Raises:
            BackendError: All were given up; the next call begins anew.
        """
        self._require_open()
        for number, worker in enumerate(self._workers):
            if worker.running or worker.losses > self._max_restarts:
                continue
            try:
                self._transport.start(number)
                worker.running = True
            except BackendError as error:
                worker.losses += 1
                self._last_loss = error.message
        if not self._live():
            for worker in self._workers:
                worker.losses = 0
            raise BackendError(
                f"no worker can be kept running; the last one {self._last_loss}",
                "if memory was short, use fewer workers or smaller batches; else see why the "
                "workers end with trials in this process",
                retryable=True,
            )

    def _ready(self) -> list[int]:
        return [number for number, worker in enumerate(self._workers) if worker.ready]

    def _live(self) -> list[int]:
        """Workers that run or will be started again."""
        return [
            number
            for number, worker in enumerate(self._workers)
            if worker.running or worker.losses <= self._max_restarts
        ]

    def _feed(self, dispatch: Dispatch) -> bool:
        """Gives out one batch; False if there is no room, or nothing to give."""
        assigned = dispatch.assign(self._ready(), self._live())
        if assigned is None:
            dispatch.pull(self._ready())  # the caller's code; workers may be lost meanwhile
            assigned = dispatch.assign(self._ready(), self._live())
        if assigned is None:
            return False
        worker, batch = assigned
        self._transport.send(worker, Work(batch.id, batch.jobs))
        return True

    def _cancel(self) -> None:
        """Tells the workers that nothing that they were given is wanted any more."""
        if not self._closed:
            for worker in self._ready():
                self._transport.send(worker, Cancel(next(self._numbers)))

    # ------------------------------------------------------------ messages

    def _receive(self, timeout: float) -> None:
        """Takes in what the workers report.

        Raises:
            AIOSError: A worker met an error that is the user's to act on.
            RuntimeError: A worker met a bug.
        """
        if not self._reports:
            self._reports.extend(self._transport.receive(timeout))
        while self._reports:  # what an error leaves here is taken in by the next call
            worker, report = self._reports.popleft()
            self._take_in(worker, report)

    def _take_in(self, worker: int, report: Report) -> None:
        dispatch = self._dispatch
        if isinstance(report, Ready):
            self._workers[worker].ready = True
        elif isinstance(report, Answers):
            self._workers[worker].losses = 0
            if self._asked.pop(report.ask, None) is not None:
                self._answers[report.ask] = report.answers
        elif isinstance(report, GaveUp | Broken | Lost):
            self._ended(worker, report)
        elif dispatch is None:
            return
        elif isinstance(report, Produced):
            self._workers[worker].losses = 0
            dispatch.outcome(report.batch, report.outcome)
        elif isinstance(report, Finished):
            dispatch.finished(report.batch)
        elif dispatch.has(report.batch):
            self._emit(report.event)

    def _ended(self, worker: int, report: GaveUp | Broken | Lost) -> None:
        """A worker has ended: what it had is tried elsewhere, unless no other would do better."""
        self._transport.end(worker)
        state = self._workers[worker]
        state.running = state.ready = False
        state.losses += 1
        dispatch = self._dispatch
        wanted = isinstance(report, Broken) and (
            report.command == STARTUP
            or report.command in self._asked
            or (dispatch is not None and dispatch.has(report.command))
        )
        self._last_loss = _reason(report)
        for ask in [ask for ask, asked in self._asked.items() if asked == worker]:
            del self._asked[ask]
            self._answers[ask] = None
        if dispatch is not None:
            dispatch.lost(worker, self._last_loss)
        if isinstance(report, Broken):
            if wanted:
                raise _error(worker, report)
            return
        self._emit(Notice(f"worker {worker} was lost: it {self._last_loss}", "warning"))

    # ------------------------------------------------------------ baseline

    def _ask(
        self, questions: tuple[Probe, ...], write_answers: bool, max_answer_tokens: int
    ) -> tuple[Answered, ...]:
        """Puts questions to one worker, and if it is lost over them, to one more."""
        for _ in range(2):
            worker = self._await_worker()
            ask = Ask(next(self._numbers), questions, write_answers, max_answer_tokens)
            self._asked[ask.id] = worker
            self._transport.send(worker, ask)
            while ask.id not in self._answers:
                self._receive(_POLL_SECONDS)
            answers = self._answers.pop(ask.id)
            if isinstance(answers, BackendError):
                raise answers
            if answers is not None:
                return answers
        raise BackendError(
            f"two workers were lost over the baseline; the last one {self._last_loss}",
            "if memory was short, use fewer workers or ask fewer questions at a time",
            retryable=True,
        )

    def _await_worker(self) -> int:
        """The ready worker with the least to do."""
        while not (ready := self._ready()):
            self._start_workers()
            self._receive(_POLL_SECONDS)
        dispatch = self._dispatch
        return min(ready, key=lambda w: (dispatch.load(w) if dispatch else 0, w))

    def _require_open(self) -> None:
        if self._closed:
            raise BackendError("the executor is closed", "make a new one")


def _reason(report: GaveUp | Broken | Lost) -> str:
    """Completes "it …"."""
    if isinstance(report, Lost):
        return report.reason
    if isinstance(report, GaveUp):
        return f"ended with: {report.error.message}"
    return f"ended with: {report.error.message if report.error else report.summary}"


def _error(worker: int, report: Broken) -> Exception:
    if report.error is not None:
        return report.error
    error = RuntimeError(f"a bug in worker {worker}: {report.summary}")
    error.__cause__ = WorkerTraceback(report.trace)
    return error
