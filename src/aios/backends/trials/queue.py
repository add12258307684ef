"""Jobs on their way into a bench: pulled one at a time, checked, and put back if need be."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from aios.core.errors import UsageError
from aios.core.trials import TrialJob


class TrialQueue:
    """A stream of jobs that can be looked at before one is taken.

    Args:
        jobs: May be endless.
    """

    def __init__(self, jobs: Iterable[TrialJob]) -> None:
        self._source = iter(jobs)
        self._waiting: deque[TrialJob] = deque()
        self._seen: set[str] = set()

    def peek(self) -> TrialJob | None:
        """The next job, which stays in the queue; None at the end.

        Raises:
            UsageError: The job cannot be run at all.
        """
        if not self._waiting:
            job = next(self._source, None)
            if job is None:
                return None
            check_job(job)
            if job.id in self._seen:
                raise UsageError(f"two trials have the id {job.id!r}", "give each its own id")
            self._seen.add(job.id)
            self._waiting.append(job)
        return self._waiting[0]

    def pop(self) -> None:
        """Takes the job that `peek` gave."""
        self._waiting.popleft()

    def put_back(self, job: TrialJob) -> None:
        """Makes a job that was taken the next one again."""
        self._waiting.appendleft(job)


def check_job(job: TrialJob) -> None:
    """Refuses a job that no bench can run.

    Raises:
        UsageError: It has no examples, asks for dropout, or for less than one of something.
    """
    recipe = job.recipe
    counts = {"epochs": recipe.epochs, "batch_size": recipe.batch_size, "rank": recipe.rank}
    for name, count in (*counts.items(), ("max_steps", job.max_steps)):
        if count is not None and count < 1:
            raise UsageError(f"trial {job.id}: {name} is {count}, must be at least 1")
    if not job.examples:
        raise UsageError(f"trial {job.id} has nothing to train on", "give it at least one example")
    if job.recipe.dropout:
        raise UsageError(
            f"trial {job.id} asks for dropout {job.recipe.dropout}, which trials do not have: "
            "their outcome would hang on the random numbers of the others",
            "set training.dropout to 0",
        )
