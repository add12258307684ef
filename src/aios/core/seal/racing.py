"""Racing: repeats of a trial are given to the candidates that can still win.

One trial's reward repeats poorly, so each candidate self-edit is tried several times with other
seeds and the mean is taken. Spending the same number of repeats on all candidates of a passage
spends most of them on candidates that lose. A race spends them in stages: all candidates get a
first repeat, and those that lead get more (Maron & Moore 1994, Hoeffding races; with a fixed
number of survivors it is one step of sequential halving, Karnin, Koren & Somekh 2013).

`race` takes candidates by passage, a schedule and any `Executor`; it gives one `PassageResult` a
passage, as each is ready. Which trials are run, their seeds and so their results depend on the
candidates and the schedule alone, never on the order in which trials finish.

Deviation from the paper (SEAL, Zweiger et al. 2025, arXiv 2506.10943): its release gives three
repeats to each candidate, which is `EvenSchedule(3)`. Racing is a choice of the caller.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from aios.core.errors import BackendError, RunInterrupted, UsageError
from aios.core.events import StageProgress, WorkFailed
from aios.core.protocols import Emit, Executor, ShouldStop, ignore, never
from aios.core.seal.trial_set import Candidate, PassageResult, PassageState, Standing, ranked
from aios.core.trials import TrialJob, TrialOutcome
from aios.core.types import Failure

STAGE = "race"  # name of the stage in events; its unit is passages

TrialValue = Callable[[TrialJob, TrialOutcome], float]


class Schedule(Protocol):
    """Says which candidates of a passage get more repeats. It keeps no state of its own."""

    def next(self, state: PassageState) -> list[tuple[Candidate, int]]:
        """Candidates and how many more repeats (at least 1) each gets.

        Asked at the start (stage 0) and each time that all repeats it asked for are done. An
        empty list ends the passage.
        """
        ...


@dataclass(frozen=True, slots=True)
class EvenSchedule:
    """The same number of repeats for all candidates.

    Attributes:
        repeats: Repeats of each candidate; at least 1.
    """

    repeats: int = 3

    def __post_init__(self) -> None:
        _at_least_one(repeats=self.repeats)

    def next(self, state: PassageState) -> list[tuple[Candidate, int]]:
        """All candidates at the start, then none."""
        if state.stage > 0:
            return []
        return [(standing.candidate, self.repeats) for standing in state.standings]


@dataclass(frozen=True, slots=True)
class RacingSchedule:
    """A few repeats for all candidates, then more for the best of the passage.

    With n candidates a passage costs ``n * first + min(n, finalists) * more`` trials, failures
    aside: 7 for five candidates by default. On the SEAL release's log these choose as well as two
    repeats of each do with 10, and a second repeat more adds nothing (experiments/racing.md).

    Where candidates tie at the border of the finalists, the earlier one is taken: the cost stays
    fixed. Taking all that tie costs more where rewards are coarse, such as the share of five
    questions: on that log 8.1 trials a passage in place of 7.

    Attributes:
        first: Repeats of each candidate; at least 1.
        more: Further repeats of each finalist; at least 1.
        finalists: How many candidates get them; at least 1.
    """

    first: int = 1
    more: int = 1
    finalists: int = 2

    def __post_init__(self) -> None:
        _at_least_one(first=self.first, more=self.more, finalists=self.finalists)

    def next(self, state: PassageState) -> list[tuple[Candidate, int]]:
        """All candidates at the start, then the finalists, then none."""
        if state.stage == 0:
            return [(standing.candidate, self.first) for standing in state.standings]
        if state.stage == 1:
            best = ranked(state.standings)[: self.finalists]
            return [(standing.candidate, self.more) for standing in best]
        return []


def race(
    passages: Iterable[tuple[str, Sequence[Candidate]]],
    executor: Executor,
    schedule: Schedule,
    value: TrialValue,
    *,
    template: TrialJob,
    emit: Emit = ignore,
    should_stop: ShouldStop = never,
) -> Iterator[PassageResult]:
    """Runs the trials that the schedule asks for, and chooses a candidate of each passage.

    **How the executor is kept busy.** All passages are in one stream of jobs, which the executor
    pulls as it has room. When the last repeat of a passage's stage comes in, the repeats of its
    next stage go to the head of the stream, before passages that have not begun; so finished
    passages come out one after the other, and a bank is filled with finalists of earlier passages
    and first repeats of later ones. The stream never waits: it ends when there is no job to give,
    although outcomes that are still to come may ask for more. Those jobs are the stream of a
    further `Executor.run`. Only at the very end, when no passage is left to begin, can a bank be
    partly empty: there are at most as many further calls as stages and retries still open. An
    executor that pulls everything at once gets all first repeats, then all finalists: the same
    results, later.

    **Failures.** A trial that failed, or whose value is not a finite number, is tried once more
    as a new repeat, with the next free number and so another seed. If that fails too, the
    candidate has a value less. One without any value is listed and never ranked.

    Args:
        passages: Passage ids and their candidates; taken lazily, in the caller's thread.
        executor: Runs the trials.
        schedule: Who gets how many repeats.
        value: The number of a trial that did not fail; the higher, the better. Called once a
            trial, in the caller's thread.
        template: Recipe and options of all trials; its seed is the run's.
        emit: Receives what the executor emits, `StageProgress` in finished passages, and
            `WorkFailed` for values that are not finite.
        should_stop: Asked by the executor, and before each of its runs.

    Yields:
        One result a passage, as each is ready.

    Raises:
        UsageError: Two candidates have the same id, a candidate belongs to another passage, or
            the executor cannot run a job at all.
        BackendError: The executor can run nothing more, or gave no outcome for a job.
        RunInterrupted: On request; passages that were finished have been yielded.
    """
    track = _Track(iter(passages), schedule, value, template, emit)
    while not track.over:
        if should_stop():
            raise RunInterrupted("stopped on request; passages that were finished are kept")
        given = track.given
        for outcome in executor.run(track.jobs(), emit=emit, should_stop=should_stop):
            track.take(outcome)
            yield from track.results()
        yield from track.results()  # passages without candidates, begun after the last outcome
        if track.asked or (track.given == given and not track.over):
            raise BackendError(f"the executor ended with {len(track.asked)} jobs without outcome")


@dataclass(slots=True)
class _Runner:
    """A candidate in a race."""

    candidate: Candidate
    next_repeat: int = 0
    values: dict[int, float] = field(default_factory=dict)
    failures: dict[int, Failure] = field(default_factory=dict)

    def standing(self) -> Standing:
        repeats = tuple(sorted(self.values))
        return Standing(
            self.candidate,
            repeats,
            tuple(self.values[repeat] for repeat in repeats),
            tuple(self.failures[repeat] for repeat in sorted(self.failures)),
        )


@dataclass(slots=True)
class _Heat:
    """A passage in a race: its candidates by id, and how many trials are under way."""

    passage_id: str
    runners: dict[str, _Runner]
    stage: int = 0
    open: int = 0
    trials: int = 0


@dataclass(frozen=True, slots=True)
class _Asked:
    """A trial that was asked for."""

    heat: _Heat
    runner: _Runner
    repeat: int
    is_retry: bool
    job: TrialJob


class _Track:
    """All passages of a race: what is to be run, what is under way, what is finished."""

    def __init__(
        self,
        passages: Iterator[tuple[str, Sequence[Candidate]]],
        schedule: Schedule,
        value: TrialValue,
        template: TrialJob,
        emit: Emit,
    ) -> None:
        self._passages = passages
        self._schedule = schedule
        self._value = value
        self._template = template
        self._emit = emit
        self._ids: set[str] = set()
        self._queue: deque[_Asked] = deque()
        self._finished: deque[PassageResult] = deque()
        self._all_begun = False
        self.asked: dict[str, _Asked] = {}  # given to the executor, no outcome yet
        self.given = 0  # jobs given to the executor and passages begun so far
        self._done = 0  # passages finished

    @property
    def over(self) -> bool:
        """Whether no job is left to give or to wait for."""
        return self._all_begun and not self._queue and not self.asked

    def jobs(self) -> Iterator[TrialJob]:
        """The jobs that there are now, passages begun as they are needed."""
        while True:
            if self._queue:
                asked = self._queue.popleft()
                self.asked[asked.job.id] = asked
                self.given += 1
                yield asked.job
            elif not self._begin_passage():
                return

    def take(self, outcome: TrialOutcome) -> None:
        """Enters an outcome, and queues what follows from it."""
        asked = self.asked.pop(outcome.job_id)
        heat, runner = asked.heat, asked.runner
        failure = outcome.failure
        if failure is None:
            number = self._value(asked.job, outcome)
            if math.isfinite(number):
                runner.values[asked.repeat] = number
            else:
                failure = Failure("score", asked.job.id, f"its value is {number}")
                self._emit(WorkFailed(failure.boundary, failure.subject, failure.error))
        heat.open -= 1
        if failure is not None:
            runner.failures[asked.repeat] = failure
            if not asked.is_retry:
                self._queue.appendleft(self._ask(heat, runner, is_retry=True))
        if heat.open == 0:
            self._next_stage(heat)

    def results(self) -> Iterator[PassageResult]:
        """The results that have not been given yet."""
        while self._finished:
            yield self._finished.popleft()

    def _begin_passage(self) -> bool:
        """Queues the first stage of the next passage; whether there was one."""
        passage = next(self._passages, None)
        if passage is None:
            self._all_begun = True
            return False
        passage_id, candidates = passage
        for candidate in candidates:
            if candidate.passage_id != passage_id:
                raise UsageError(
                    f"candidate {candidate.id} of passage {candidate.passage_id} was given for "
                    f"passage {passage_id}"
                )
            if candidate.id in self._ids:
                raise UsageError(
                    f"two candidates have the id {candidate.id}", "give each its own id"
                )
            self._ids.add(candidate.id)
        self.given += 1
        self._next_stage(_Heat(passage_id, {c.id: _Runner(c) for c in candidates}))
        return True

    def _next_stage(self, heat: _Heat) -> None:
        """Queues the repeats that the schedule asks for; without any, the passage is finished."""
        standings = tuple(runner.standing() for runner in heat.runners.values())
        wanted = self._schedule.next(PassageState(heat.passage_id, heat.stage, standings))
        heat.stage += 1
        for candidate, repeats in wanted:
            _at_least_one(repeats=repeats)
            runner = heat.runners[candidate.id]
            self._queue.extend(self._ask(heat, runner, is_retry=False) for _ in range(repeats))
        if not wanted:
            best = ranked(standings)
            chosen = best[0].candidate if best else None
            self._finished.append(PassageResult(heat.passage_id, standings, chosen, heat.trials))
            self._done += 1
            note = f"{heat.passage_id}: {heat.trials} trials"
            self._emit(StageProgress(STAGE, self._done, note))

    def _ask(self, heat: _Heat, runner: _Runner, *, is_retry: bool) -> _Asked:
        """The next repeat of a candidate."""
        repeat = runner.next_repeat
        runner.next_repeat += 1
        heat.open += 1
        heat.trials += 1
        job = runner.candidate.job(repeat, self._template)
        return _Asked(heat, runner, repeat, is_retry, job)


def _at_least_one(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} is {number}; it must be at least 1")
