"""A bench without a model for the tests of executors; what a job does is the start of its id.

Imported by worker processes, so it imports nothing heavy.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from aios.core.data.probes import Probe, make_probes
from aios.core.errors import BackendError, ModelError, RunInterrupted, UsageError
from aios.core.events import Notice, StageProgress, StageStarted, WorkFailed
from aios.core.protocols import Emit, ShouldStop, ignore, never
from aios.core.trials import Answered, TrialJob, TrialMetrics, TrialOutcome
from aios.core.types import Failure, LoraRecipe, Question, Score, TrainExample

QUESTIONS = make_probes(
    {"p": (Question("Who?", ("Ada",)), Question("Where?", ("Orvane", "there")))}, "{question}"
)


def job(id: str, **changes: Any) -> TrialJob:
    return TrialJob(
        id=id, examples=(TrainExample.whole("A text."),), recipe=LoraRecipe(), seed=1, **changes
    )


def jobs(*ids: str) -> list[TrialJob]:
    return [job(id) for id in ids]


class FakeBench:
    """Gives one outcome a job, with a loss that depends on the job alone.

    Args:
        folder: Where it leaves notes: ``began-<id>`` with one line a try, ``baseline``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(
        self, jobs: Iterable[TrialJob], *, emit: Emit = ignore, should_stop: ShouldStop = never
    ) -> Iterator[TrialOutcome]:
        emit(StageStarted("trials", 0, "trials"))
        taken = list(jobs)
        for number, job in enumerate(taken):
            if should_stop():
                raise RunInterrupted("stopped", "go on")
            tries = self.note(f"began-{job.id}", f"{len(taken)}")
            kind = job.id.split("-")[0]
            if kind == "dies" or (kind == "diesonce" and tries == 1):
                os.kill(os.getpid(), signal.SIGKILL)
            self.misbehave(kind, tries, should_stop)
            if kind == "fails":
                failure = Failure("score", job.id, "the device is hot", True)
                emit(WorkFailed("score", job.id, "the device is hot", True))
                emit(Notice("it is getting hot", "warning"))
                yield TrialOutcome(job.id, failure=failure)
            else:
                yield TrialOutcome(job.id, self.metrics(job), ())
            emit(StageProgress("trials", number + 1))

    def misbehave(self, kind: str, tries: int, should_stop: ShouldStop) -> None:
        if kind == "bug":
            raise ValueError("a bug of the bench")
        if kind == "gone":
            raise BackendError("the device is gone")
        if kind == "memory" and tries == 1:
            raise MemoryError("no room")
        if kind == "refused":
            raise UsageError("not like this", "but like that")
        while kind == "waits" and not should_stop():
            time.sleep(0.005)
        if kind == "waits":
            raise RunInterrupted("stopped", "go on")
        if kind == "stuck":
            threading.Event().wait()

    def metrics(self, job: TrialJob) -> TrialMetrics:
        losses = (float(sum(job.id.encode())), float(job.seed))
        return TrialMetrics(losses, 2, 10, 0.0, figures={"pid": os.getpid()})

    def train(
        self, jobs: Iterable[TrialJob], *, emit: Emit = ignore, should_stop: ShouldStop = never
    ) -> Iterator[TrialOutcome]:
        raise NotImplementedError

    def baseline(
        self,
        questions: Sequence[Probe],
        *,
        write_answers: bool = False,
        max_answer_tokens: int = 16,
    ) -> list[Answered]:
        tries = self.note("baseline", f"{len(questions)}")
        if (self.folder / "baseline-dies").exists() and tries == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if (self.folder / "baseline-fails").exists():
            raise BackendError("no score", "look", retryable=True)
        text = "x" * max_answer_tokens if write_answers else None
        return [Answered(q.id, Score(-1.5, 2, False), text) for q in questions]

    def close(self) -> None:
        (self.folder / "closed").touch()

    def note(self, name: str, line: str) -> int:
        """Adds a line to a file; the number of lines it has then."""
        path = self.folder / name
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        return len(self.notes(name))

    def notes(self, name: str) -> list[str]:
        return (self.folder / name).read_text(encoding="utf-8").splitlines()


def breaks() -> FakeBench:
    raise KeyError("a bug of the factory")


def has_no_model() -> FakeBench:
    raise ModelError("the model is missing", "aios models pull it")


def dies_at_start(folder: Path) -> FakeBench:
    """The first worker of all dies before it is ready."""
    bench = FakeBench(folder)
    if bench.note("started", "") == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return bench


def never_starts(folder: Path) -> FakeBench:
    FakeBench(folder).note("started", "")
    raise BackendError("the device is taken")


class EnvironmentBench(FakeBench):
    """Its baseline answers are variables of its environment."""

    def baseline(
        self,
        questions: Sequence[Probe],
        *,
        write_answers: bool = False,
        max_answer_tokens: int = 16,
    ) -> list[Answered]:
        score = Score(-1.0, 1, False)
        return [Answered(q.id, score, os.environ.get(q.question)) for q in questions]


def environment_questions(*names: str) -> tuple[Probe, ...]:
    return make_probes({"p": tuple(Question(name, ("1",)) for name in names)}, "{question}")
