"""The trial engine as a contestant: all candidates of a round at once, each question of the base
model once. With `racing`, the race decides which candidates get a second trial; a choice is made
by the questions with even numbers, as `aios.core.seal.racing` would be used with a reward.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from _trials_data import Candidate, Lesson, all_candidates
from _trials_job import (
    BASELINE,
    TRAINING,
    Task,
    Trial,
    Turn,
    answer_gains,
    even,
    wait_for,
)
from _trials_memory import peak_memory, start_watch
from torch.nn import functional

from aios.backends.devices import choose_device
from aios.backends.models import resolve_model
from aios.backends.torch_lm import TorchLM
from aios.backends.trials.bench import TorchTrialBench
from aios.core.seal.racing import RacingSchedule, race
from aios.core.seal.trial_set import Candidate as Runner
from aios.core.trials import Answered, TrialJob, TrialOutcome
from aios.core.types import TrainExample

_REPEATS = 5


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
        self._model = TorchLM.load(
            resolve_model(self._name),
            device=str(self._device),
            dtype=self._dtype,
            threads=self._threads,
        )
        start_watch(self._device)

    def warm_up(self, task: Task) -> None:
        """A new bench, so that no question is known from an earlier round."""
        self._bench = TorchTrialBench(self._model, groups=self._groups)
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
        turn.add(BASELINE, time.perf_counter() - began)
        if self._race:
            self._run_race(task, before, turn)
        else:
            self._run_all(task, before, turn)
        turn.wall = time.perf_counter() - began
        self._bench.close()
        return turn

    def own_products(self, rows: int) -> float:
        """Operations per second of the model's linear layers alone, forward and back, in order."""
        weights = [
            module.weight
            for module in self._model.model.get_decoder().modules()
            if isinstance(module, torch.nn.Linear)
        ]
        inputs, outputs = (
            {n: weights[0].new_ones(rows, n) for n in {int(w.shape[side]) for w in weights}}
            for side in (1, 0)
        )
        times = []
        with torch.inference_mode():
            for _ in range(_REPEATS):
                wait_for(self._device)
                began = time.perf_counter()
                for weight in weights:
                    functional.linear(inputs[int(weight.shape[1])], weight)
                for weight in reversed(weights):
                    outputs[int(weight.shape[0])] @ weight
                wait_for(self._device)
                times.append(time.perf_counter() - began)
        return 4 * rows * sum(weight.numel() for weight in weights) / min(times)

    def memory(self) -> int:
        return peak_memory(self._device)

    def _run_all(self, task: Task, before: dict[str, float], turn: Turn) -> None:
        passages = {c.id: lesson for lesson, c in all_candidates(task.lessons)}
        jobs = [self._job(lesson, c, task) for lesson, c in all_candidates(task.lessons)]
        for outcome in self._bench.run(jobs):
            lesson = passages[outcome.job_id]
            turn.trials.append(_trial(outcome.job_id, lesson.passage_id, before, outcome))
            _count(turn, outcome)
        if turn.tokens != round(len(jobs) * task.mean_tokens):
            raise RuntimeError("the engine has not trained on all tokens of all candidates")

    def _run_race(self, task: Task, before: dict[str, float], turn: Turn) -> None:
        def value(job: TrialJob, outcome: TrialOutcome) -> float:
            candidate_id = job.id.partition("/repeat-")[0]
            trial = _trial(candidate_id, passages[candidate_id], before, outcome)
            turn.trials.append(trial)
            _count(turn, outcome)
            return answer_gains(trial, even(len(trial.after)))

        passages = {c.id: lesson.passage_id for lesson, c in all_candidates(task.lessons)}
        runners = [(lesson.passage_id, _runners(lesson)) for lesson in task.lessons]
        template = TrialJob("template", (), task.recipe, task.seed, trunk_layers=self._trunk_layers)
        schedule = RacingSchedule()
        for result in race(runners, self._bench, schedule, value, template=template):
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
            task.seed_of(lesson.passage_id),
            lesson.questions,
            max_steps=max_steps,
            trunk_layers=self._trunk_layers,
        )


def _runners(lesson: Lesson) -> list[Runner]:
    return [
        Runner(c.id, lesson.passage_id, _examples(c.texts), lesson.questions)
        for c in lesson.candidates
    ]


def _examples(texts: Sequence[str]) -> tuple[TrainExample, ...]:
    return tuple(TrainExample.whole(text) for text in texts)


def _count(turn: Turn, outcome: TrialOutcome) -> None:
    """Adds what a trial has trained and been asked."""
    metrics = _checked(outcome).metrics
    assert metrics is not None
    turn.add(TRAINING, metrics.seconds)
    turn.steps += metrics.steps
    turn.tokens += metrics.tokens
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
