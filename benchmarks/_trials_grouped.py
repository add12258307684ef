"""The trial engine as a contestant: all candidates of a round at once, each question of the base
model once. With `racing`, the race decides which candidates get a second trial; a choice is made
by the questions with even numbers, as `aios.core.seal.racing` would be used with a reward.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from _trials_data import Candidate, Lesson, all_candidates
from _trials_job import (
    BASELINE,
    SCORING,
    TRAINING,
    Task,
    Trial,
    Turn,
    answer_gains,
    even,
    peak_memory,
)

from aios.backends.devices import choose_device
from aios.backends.models import resolve_model
from aios.backends.torch_lm import TorchLM
from aios.backends.trial_bench import TorchTrialBench
from aios.core.seal import racing
from aios.core.trials import Answered, TrialJob, TrialOutcome
from aios.core.types import TrainExample


class GroupedTrials:
    """`TorchTrialBench`, all candidates in one run.

    Args:
        model: Its name.
        device: A device name.
        dtype: Of the base weights.
        threads: Of the CPU; None is torch's choice.
        groups: Most trainings at a time; by default the engine's choice.
        trunk_layers: Lowest layers without adapters.
        race: Whether the best two of a passage get a second trial.
    """

    def __init__(
        self,
        model: str,
        device: str,
        dtype: str,
        *,
        threads: int | None = None,
        groups: int | None = None,
        trunk_layers: int = 0,
        race: bool = False,
    ) -> None:
        self._name, self._device, self._dtype = model, choose_device(device), dtype
        self._threads, self._groups = threads, groups
        self._trunk_layers, self._race = trunk_layers, race

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "device": self._device.type,
            "dtype": self._dtype,
            "groups": self._groups or "as planned",
            "trunk_layers": self._trunk_layers,
            "racing": self._race,
        }

    def load(self) -> None:
        model = TorchLM.load(
            resolve_model(self._name),
            device=str(self._device),
            dtype=self._dtype,
            threads=self._threads,
        )
        self._bench = TorchTrialBench(model, groups=self._groups)

    def warm_up(self, task: Task) -> None:
        lesson = task.lessons[0]
        jobs = [self._job(lesson, c, task, max_steps=1) for c in lesson.candidates]
        self._bench.baseline(jobs[0].questions[:1])
        for outcome in self._bench.run(jobs):
            _checked(outcome)

    def turn(self, task: Task) -> Turn:
        turn = Turn()
        began = time.perf_counter()
        questions = [probe for lesson in task.lessons for probe in lesson.questions]
        before = {a.probe_id: _mean(a) for a in self._bench.baseline(questions)}
        turn.seconds[BASELINE] = time.perf_counter() - began
        if self._race:
            self._run_race(task, before, turn)
        else:
            self._run_all(task, before, turn)
        turn.wall = time.perf_counter() - began
        turn.seconds[SCORING] = turn.wall - turn.seconds[BASELINE] - turn.seconds[TRAINING]
        return turn

    def memory(self) -> int:
        return peak_memory(self._device)

    def _run_all(self, task: Task, before: dict[str, float], turn: Turn) -> None:
        passages = {c.id: lesson for lesson, c in all_candidates(task.lessons)}
        jobs = [self._job(lesson, c, task) for lesson, c in all_candidates(task.lessons)]
        for outcome in self._bench.run(jobs):
            lesson = passages[outcome.job_id]
            turn.trials.append(_trial(outcome.job_id, lesson.passage_id, before, outcome))
            _count(turn, outcome)
        if turn.tokens != sum(
            task.recipe.epochs * c.tokens for _, c in all_candidates(task.lessons)
        ):
            raise RuntimeError("the engine has not trained on all tokens of all candidates")

    def _run_race(self, task: Task, before: dict[str, float], turn: Turn) -> None:
        def value(job: TrialJob, outcome: TrialOutcome) -> float:
            trial = _trial(job.id, "", before, outcome)
            _count(turn, outcome)
            return answer_gains(trial, even(len(trial.after)))

        passages = [(lesson.passage_id, _runners(lesson)) for lesson in task.lessons]
        template = TrialJob(
            "template", (), task.recipe, task.seed, trunk_layers=self._trunk_layers
        )
        schedule = racing.RacingSchedule()
        results = racing.race(passages, self._bench, schedule, value, template=template)
        for result in results:
            if result.chosen is None or result.failures:
                raise RuntimeError(f"trials failed: {[f.error for f in result.failures]}")
            turn.chosen[result.passage_id] = result.chosen.id

    def _job(
        self, lesson: Lesson, candidate: Candidate, task: Task, max_steps: int | None = None
    ) -> TrialJob:
        return TrialJob(
            candidate.id,
            _examples(candidate.texts),
            task.recipe,
            task.seed_of(candidate.id),
            lesson.questions,
            max_steps=max_steps,
            trunk_layers=self._trunk_layers,
        )


def _runners(lesson: Lesson) -> list[racing.Candidate]:
    return [
        racing.Candidate(c.id, lesson.passage_id, _examples(c.texts), lesson.questions)
        for c in lesson.candidates
    ]


def _examples(texts: Sequence[str]) -> tuple[TrainExample, ...]:
    return tuple(TrainExample.whole(text) for text in texts)


def _count(turn: Turn, outcome: TrialOutcome) -> None:
    """Adds what a trial has trained and been asked."""
    metrics = _checked(outcome).metrics
    assert metrics is not None
    turn.seconds[TRAINING] = turn.seconds.get(TRAINING, 0.0) + metrics.seconds
    turn.steps += metrics.steps
    turn.tokens += metrics.tokens
    turn.asked += len(outcome.answers)
    turn.finished += 1


def _trial(
    candidate_id: str, passage_id: str, before: dict[str, float], outcome: TrialOutcome
) -> Trial:
    answers = _checked(outcome).answers
    return Trial(
        candidate_id,
        passage_id,
        tuple(before[answer.probe_id] for answer in answers),
        tuple(_mean(answer) for answer in answers),
    )


def _mean(answer: Answered) -> float:
    """Mean log-probability of a token of the answer."""
    return -answer.score.loss


def _checked(outcome: TrialOutcome) -> TrialOutcome:
    """The outcome, if it is none of a failed trial."""
    if outcome.failure is not None:
        raise RuntimeError(f"trial {outcome.job_id} has failed: {outcome.failure.error}")
    return outcome
