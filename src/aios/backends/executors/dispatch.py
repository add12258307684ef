"""Who has which job: the bookkeeping of an executor over workers, without any process.

Takes jobs from the caller's iterator, makes batches of them and says which worker gets which;
takes in what came of them, or that a worker was lost. A batch is `bank` consecutive jobs whatever
the workers are, so what is trained together, and with it the rounding of shared products, does
not depend on their number or speed.

A lost worker leaves jobs without an outcome. Those of the batch that it worked at are tried once
more, on another worker where there is one, and each in a batch of its own: if one of them killed
the worker, it does not take the others with it again. The second time they are failures. Batches
that it had not begun are given out again as they are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from aios.backends.trials.queue import TrialQueue
from aios.core.trials import TrialJob, TrialOutcome
from aios.core.types import Failure

DEPTH = 2  # batches of a worker: the one it works at, and the next


@dataclass(frozen=True, slots=True)
class Batch:
    """Jobs that a worker gets together.

    Attributes:
        id: Its number; unique in the executor's life.
        jobs: The jobs; at least one.
        retry: Whether this is their second try.
        avoid: The worker on which the first was lost.
    """

    id: int
    jobs: tuple[TrialJob, ...]
    retry: bool = False
    avoid: int | None = None


class _Given:
    """A batch that a worker has, and those of its jobs that have no outcome yet."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.missing = {job.id: job for job in batch.jobs}


class Dispatch:
    """The bookkeeping of one call of `Executor.run`; workers are numbers.

    Args:
        jobs: May be endless; checked as they are pulled.
        bank: Jobs of a batch.
        numbers: Gives the batches their ids, in rising order.
    """

    def __init__(self, jobs: Iterable[TrialJob], bank: int, numbers: Iterator[int]) -> None:
        self._queue = TrialQueue(jobs)
        self._bank, self._numbers = bank, numbers
        self._waiting: deque[Batch] = deque()
        self._given: dict[int, deque[_Given]] = {}
        self._outcomes: deque[TrialOutcome] = deque()

    # ------------------------------------------------------------ giving out

    def pull(self, ready: Collection[int]) -> None:
        """Makes the next batch if one of the workers has room for it. Runs the caller's code.

        None is made while a second try waits, which needs a worker without another batch.

        Raises:
            UsageError: A job cannot be run at all, or its id came before.
        """
        second = any(batch.retry for batch in self._waiting)
        if not second and any(self._has_room(worker) for worker in ready):
            jobs = tuple(islice(self._pulled(), self._bank))
            if jobs:
                self._waiting.append(Batch(next(self._numbers), jobs))

    def assign(self, ready: Collection[int], live: Collection[int]) -> tuple[int, Batch] | None:
        """The next batch that can be given out, and the worker with the least to do for it.

        Args:
            ready: Workers that can be given something now.
            live: Those, and the ones that may still become ready.
        """
        for batch in self._waiting:
            elsewhere = any(worker != batch.avoid for worker in live)
            able = [
                worker
                for worker in ready
                if self._has_room(worker, alone=batch.retry)
                and not (elsewhere and worker == batch.avoid)
            ]
            if able:
                worker = min(able, key=lambda w: (self.load(w), w))
                self._waiting.remove(batch)
                self._given.setdefault(worker, deque()).append(_Given(batch))
                return worker, batch
        return None

    # ------------------------------------------------------------ taking in

    def outcome(self, batch: int, outcome: TrialOutcome) -> None:
        """Takes what came of a job of the batch; ignored where nobody has that batch.

        Raises:
            RuntimeError: The batch has no such job, or it has had its outcome.
        """
        given = self._find(batch)
        if given is None:
            return
        if given.missing.pop(outcome.job_id, None) is None:
            raise RuntimeError(f"a worker gave an unexpected outcome of trial {outcome.job_id!r}")
        self._outcomes.append(outcome)

    def finished(self, batch: int) -> None:
        """The worker is done with the batch.

        Raises:
            RuntimeError: A job of it has no outcome.
        """
        given = self._find(batch)
        if given is None:
            return
        if given.missing:
            raise RuntimeError(f"a worker gave no outcome of the trials {[*given.missing]}")
        for batches in self._given.values():
            if given in batches:
                batches.remove(given)

    def lost(self, worker: int, reason: str) -> None:
        """The worker is gone, with what it had; `reason` completes "the worker …"."""
        batches = self._given.pop(worker, deque())
        again: list[Batch] = []
        for place, given in enumerate(batches):
            if place:  # not begun
                again.append(given.batch)
                continue
            for job in given.missing.values():
                if given.batch.retry:
                    error = f"the worker that ran it was lost, as was the one before: it {reason}"
                    failure = Failure("train", job.id, error, retryable=True)
                    self._outcomes.append(TrialOutcome(job.id, failure=failure))
                else:
                    again.append(Batch(next(self._numbers), (job,), retry=True, avoid=worker))
        self._waiting.extendleft(reversed(again))

    def take_outcomes(self) -> Iterator[TrialOutcome]:
        """What has come in and was not taken yet, in that order."""
        while self._outcomes:
            yield self._outcomes.popleft()

    # ------------------------------------------------------------ state

    def load(self, worker: int) -> int:
        """Batches that the worker has."""
        return len(self._given.get(worker, ()))

    def has(self, batch: int) -> bool:
        """Whether a worker has the batch."""
        return self._find(batch) is not None

    @property
    def busy(self) -> bool:
        """Whether a worker has a batch."""
        return any(self._given.values())

    def is_done(self) -> bool:
        """Whether every job has had its outcome taken. May pull one job to find out.

        Raises:
            UsageError: As `pull`.
        """
        if self._outcomes or self._waiting or self.busy:
            return False
        return self._queue.peek() is None

    def _pulled(self) -> Iterator[TrialJob]:
        while (job := self._queue.peek()) is not None:
            self._queue.pop()
            yield job

    def _has_room(self, worker: int, *, alone: bool = False) -> bool:
        """Whether a worker may get a batch. A second try has it for itself.

        So if it is lost then, that job is the only one that can have done it, or have had an
        outcome that was lost on the way.
        """
        given = self._given.get(worker, ())
        if alone or any(each.batch.retry for each in given):
            return not given
        return len(given) < DEPTH

    def _find(self, batch: int) -> _Given | None:
        for batches in self._given.values():
            for given in batches:
                if given.batch.id == batch:
                    return given
        return None
