"""The trial bench that goes with the scripted model: many temporary adapters, in milliseconds.

Takes `TrialJob`s and gives what a real bench gives: outcomes, or experts that live in memory.
Training counts the texts that were seen (`scripted_adapter`), so phrases in them are scored as
likelier afterwards; what a job gives depends on the job alone. Jobs are taken up to `groups` at a
time, and those with the fewest steps are ready first, so that callers meet another order than
their own. The learning rate and `trunk_layers` change nothing.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from aios.backends.scripted import Memory, ScriptedModel
from aios.backends.scripted_adapter import (
    adapter_bytes,
    batch_indices,
    checked_lengths,
    learn,
    write_adapter,
)
from aios.backends.trials.queue import TrialQueue
from aios.core.data.probes import Probe
from aios.core.errors import AdapterMismatchError, BackendError, RunInterrupted, UsageError
from aios.core.events import StageFinished, StageProgress, StageStarted, WorkFailed
from aios.core.protocols import Emit, ShouldStop, TemporaryExpert, ignore, never
from aios.core.streaming import Generated
from aios.core.trials import Answered, TrialJob, TrialMetrics, TrialOutcome
from aios.core.types import (
    AdapterRef,
    Failure,
    GenerationRequest,
    LoraRecipe,
    SamplingParams,
    Score,
    ScoreRequest,
)

STAGE = "trials"
Fail = Callable[[TrialJob], "BackendError | None"]
Trained = tuple[TrialJob, TemporaryExpert, TrialMetrics]
_T = TypeVar("_T")


def no_failure(job: TrialJob) -> BackendError | None:
    """A `Fail` under which no job fails."""
    return None


class ScriptedExpert(ScriptedModel):
    """A `TemporaryExpert` over a `ScriptedModel`.

    Args:
        base: The model that it was trained on.
        memory: What base and adapter have learnt together.
        recipe: How it was trained.
        seed: With which seed.
    """

    def __init__(self, base: ScriptedModel, memory: Memory, recipe: LoraRecipe, seed: int) -> None:
        self._base, self._recipe = base, recipe
        self._data = adapter_bytes(memory.times, recipe, seed)
        self._released = False
        super().__init__(
            base.script,
            name=base.name,
            knows=base.knows,
            faults=base.faults,
            context_length=base.context_length,
            memory=memory,
            adapter_digest=hashlib.sha256(self._data).hexdigest(),
            sleep=base._sleep,
        )

    def stream(
        self, requests: Iterable[GenerationRequest], *, width: int | None = None
    ) -> Iterator[Generated]:
        """Writes; see `ScriptedModel.stream`.

        Raises:
            BackendError: It was released, or a fault was asked for.
        """
        self._require_alive()
        yield from super().stream(requests, width=width)

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """Scores; see `ScriptedModel.score`.

        Raises:
            BackendError: It was released, or as the scripted model.
        """
        self._require_alive()
        return super().score(requests)

    def export(self, folder: Path) -> AdapterRef:
        """Writes the adapter in PEFT layout.

        Raises:
            BackendError: It was released.
            StorageError: The folder cannot be written.
            UsageError: Its base is itself an expert.
        """
        self._require_alive()
        if self._base.adapter_digest:
            raise UsageError(
                f"the adapter cannot be written to {folder}: it was trained on top of another one",
                "train it on the base model, or keep it in memory",
            )
        return write_adapter(folder, self._base, self._data, self._recipe)

    def fits(self, model: ScriptedModel, recipe: LoraRecipe) -> bool:
        """Whether a training over a model, by a recipe, can start from it.

        Raises:
            BackendError: It was released.
        """
        self._require_alive()
        over = (self._base.digest, self._base.adapter_digest)
        shape = (self._recipe.rank, self._recipe.alpha)
        return over == (model.digest, model.adapter_digest) and shape == (recipe.rank, recipe.alpha)

    def release(self) -> None:
        """Forgets what was learnt; the model cannot be used any more."""
        self._released = True
        self.memory, self._data = Memory(), b""

    def _require_alive(self) -> None:
        if self._released:
            raise BackendError(
                f"this temporary expert over {self.name} was released",
                "use it before it is released, or train it again",
            )


@dataclass(frozen=True, slots=True)
class _Learning:
    """What training gave: memory of base and adapter, and how it went."""

    memory: Memory
    metrics: TrialMetrics


class ScriptedTrialBench:
    """A `TrialBench` over a `ScriptedModel`.

    Args:
        model: The base model; never changed.
        groups: Jobs that are taken at a time.
        fail: Asked before each training: the error that it fails with, or None. What it raises
            itself ends the call, as a dead backend would.
    """

    def __init__(self, model: ScriptedModel, *, groups: int = 8, fail: Fail | None = None) -> None:
        self.model, self.groups = model, max(1, groups)
        self._fail = fail or no_failure
        self._scores: dict[ScoreRequest, Score] = {}
        self._texts: dict[tuple[str, int], str] = {}
        self._closed = False

    def run(
        self, jobs: Iterable[TrialJob], *, emit: Emit = ignore, should_stop: ShouldStop = never
    ) -> Iterator[TrialOutcome]:
        """Trials, the shortest of each `groups` first; see `core.protocols.Executor.run`.

        Raises:
            UsageError: A job cannot be run at all.
            BackendError: The bench is closed.
            RunInterrupted: `should_stop` said so.
        """
        yield from self._each(jobs, self._trial, emit, should_stop)

    def train(
        self, jobs: Iterable[TrialJob], *, emit: Emit = ignore, should_stop: ShouldStop = never
    ) -> Iterator[Trained | TrialOutcome]:
        """Experts that are kept, in the order of `run`; see `core.protocols.TrialBench.train`.

        Raises:
            UsageError: A job cannot be run at all.
            BackendError: The bench is closed.
            RunInterrupted: `should_stop` said so.
        """
        yield from self._each(jobs, self._trained, emit, should_stop)

    def baseline(
        self,
        questions: Sequence[Probe],
        *,
        write_answers: bool = False,
        max_answer_tokens: int = 16,
    ) -> list[Answered]:
        """What the base model makes of the questions; each is put to it once.

        Raises:
            BackendError: Scoring or generation failed, or the bench is closed.
        """
        self._require_open()
        new = list(dict.fromkeys(q.request for q in questions if q.request not in self._scores))
        self._scores.update(zip(new, self.model.score(new), strict=True))
        texts: dict[str, str] = {}
        if write_answers:
            prompts = dict.fromkeys(question.prompt for question in questions)
            unread = [p for p in prompts if (p, max_answer_tokens) not in self._texts]
            for prompt, text in zip(
                unread, _write(self.model, unread, max_answer_tokens), strict=True
            ):
                self._texts[prompt, max_answer_tokens] = text
            texts = {prompt: self._texts[prompt, max_answer_tokens] for prompt in prompts}
        return [Answered(q.id, self._scores[q.request], texts.get(q.prompt)) for q in questions]

    def close(self) -> None:
        """Forgets the baseline; nothing can be run any more."""
        self._closed = True
        self._scores, self._texts = {}, {}

    def _each(
        self,
        jobs: Iterable[TrialJob],
        work: Callable[[TrialJob], _T | TrialOutcome],
        emit: Emit,
        should_stop: ShouldStop,
    ) -> Iterator[_T | TrialOutcome]:
        """Does the work of each job, with its events."""
        self._require_open()
        began = time.perf_counter()
        emit(StageStarted(STAGE, len(jobs) if isinstance(jobs, Sized) else 0, "trials"))
        queue = TrialQueue(jobs)
        done = failed = 0
        while taken := _take(queue, self.groups):
            for job in sorted(taken, key=_steps):
                if should_stop():
                    raise RunInterrupted(
                        f"the trials were stopped after {done}", "run the same command again"
                    )
                result = work(job)
                done += 1
                if isinstance(result, TrialOutcome) and result.failure is not None:
                    failed += 1
                    emit(WorkFailed(**asdict(result.failure)))
                emit(StageProgress(STAGE, done))
                yield result
        seconds = time.perf_counter() - began
        emit(StageFinished(STAGE, seconds, f"{done} trials, {failed} failed"))

    def _trial(self, job: TrialJob) -> TrialOutcome:
        trained = self._trained(job)
        if isinstance(trained, TrialOutcome):
            return trained
        _, expert, metrics = trained
        try:
            scores = expert.score([question.request for question in job.questions])
            texts: list[str | None] = [None] * len(job.questions)
            if job.write_answers:
                prompts = [question.prompt for question in job.questions]
                texts = [*_write(expert, prompts, job.max_answer_tokens)]
        except BackendError as error:
            return _failed(job, "score", error)
        finally:
            expert.release()
        answers = map(Answered, (question.id for question in job.questions), scores, texts)
        return TrialOutcome(job.id, metrics, tuple(answers))

    def _trained(self, job: TrialJob) -> Trained | TrialOutcome:
        error = self._fail(job)
        if error is not None:
            return _failed(job, "train", error)
        try:
            learning = self._learn(job)
        except BackendError as caught:
            return _failed(job, "train", caught)
        expert = ScriptedExpert(self.model, learning.memory, job.recipe, job.seed)
        return job, expert, learning.metrics

    def _learn(self, job: TrialJob) -> _Learning:
        """All steps of a training: each example of a step is seen once more."""
        began = time.perf_counter()
        lengths = checked_lengths(self.model, job.examples, job.recipe)
        per_pass = math.ceil(len(lengths) / job.recipe.batch_size)
        seen = dict(self._start(job).memory.times)
        losses: list[float] = []
        tokens, steps = 0, _steps(job)
        while len(losses) < steps and not _on_a_plateau(losses, per_pass, job.patience):
            batch = batch_indices(job.seed, len(lengths), job.recipe.batch_size, len(losses))
            scores = [learn(self.model, seen, job.examples[i]) for i in batch]
            total = math.fsum(-score.logprob for score in scores if score is not None)
            losses.append(total / max(1, sum(score.tokens for score in scores if score)))
            tokens += sum(lengths[i] for i in batch)
        metrics = TrialMetrics(
            losses=tuple(losses),
            steps=len(losses),
            tokens=tokens,
            seconds=time.perf_counter() - began,
            stopped_early=len(losses) < steps,
        )
        return _Learning(Memory(seen), metrics)

    def _start(self, job: TrialJob) -> ScriptedModel:
        """What a training starts from.

        Raises:
            AdapterMismatchError: ``job.initial`` is over another model, or of another shape.
            BackendError: It was released.
        """
        if job.initial is None:
            return self.model
        if not isinstance(job.initial, ScriptedExpert) or not job.initial.fits(
            self.model, job.recipe
        ):
            raise AdapterMismatchError(
                f"trial {job.id} cannot start from a temporary expert of another shape or over "
                "another model",
                "train with the same rank and alpha over the same model, or start anew",
            )
        return job.initial

    def _require_open(self) -> None:
        if self._closed:
            raise BackendError("the trial bench is closed", "make a new one")


def build_scripted_bench(
    model: ScriptedModel | None = None, *, groups: int = 8, fail: Fail | None = None
) -> ScriptedTrialBench:
    """A bench over a model without a script, or over `model`, for processes that need a factory.

    ``functools.partial`` of it can be pickled where its arguments can.
    """
    return ScriptedTrialBench(model or ScriptedModel(), groups=groups, fail=fail)


def _take(queue: TrialQueue, most: int) -> list[TrialJob]:
    """The next jobs.

    Raises:
        UsageError: One cannot be run at all.
    """
    taken: list[TrialJob] = []
    while len(taken) < most and (job := queue.peek()) is not None:
        queue.pop()
        taken.append(job)
        counts = (job.recipe.epochs, job.recipe.batch_size, job.recipe.rank)
        if min(*counts, 1 if job.max_steps is None else job.max_steps) < 1:
            raise UsageError(
                f"the epochs, batch size, rank and steps of trial {job.id} must be at least 1",
                "check its recipe",
            )
    return taken


def _steps(job: TrialJob) -> int:
    """Steps of a job's budget."""
    per_pass = math.ceil(len(job.examples) / job.recipe.batch_size)
    return per_pass * job.recipe.epochs if job.max_steps is None else job.max_steps


def _on_a_plateau(losses: Sequence[float], per_pass: int, patience: int) -> bool:
    """Whether the last `patience` passes have all ended without a lower mean loss."""
    if patience == 0 or not losses or len(losses) % per_pass:
        return False
    passes = [
        math.fsum(losses[start : start + per_pass]) for start in range(0, len(losses), per_pass)
    ]
    return len(passes) - 1 - passes.index(min(passes)) >= patience


def _write(model: ScriptedModel | TemporaryExpert, prompts: Sequence[str], most: int) -> list[str]:
    """Greedy answers to prompts, to the line's end."""
    sampling = SamplingParams(0.0, 1.0, most, ("\n",))
    requests = [GenerationRequest(prompt, (0,), sampling) for prompt in prompts]
    return [completions[0].text.strip() for completions in model.generate(requests)]


def _failed(job: TrialJob, boundary: str, error: BackendError) -> TrialOutcome:
    return TrialOutcome(job.id, failure=Failure(boundary, job.id, error.message, error.retryable))
