"""The trainer that goes with the scripted model: it remembers the texts, and nothing else.

Takes the same `TrainingJob` as a real trainer and keeps the same promises: an evaluation at step
0 and then as often as asked, the best checkpoint kept, budgets, patience, stopping on request,
and a resumed training that ends with the same numbers as an uninterrupted one. Each time a text
is trained on, phrases in it are scored as likelier, less so each time. The adapter on disk has
the PEFT layout (`scripted_adapter`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil

from aios.backends.scripted import Memory, ScriptedModel
from aios.backends.scripted_adapter import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    adapter_bytes,
    batch_indices,
    checked_lengths,
    checked_memory,
    initial_memory,
    learn,
    write_adapter,
)
from aios.core.errors import (
    BackendError,
    NonFiniteError,
    RunInterrupted,
    UsageError,
)
from aios.core.events import Evaluated, StageFinished, StageProgress, StageStarted
from aios.core.files import atomic_write_json, guarded, read_json
from aios.core.protocols import Emit, LanguageModel, ShouldStop, ignore, never
from aios.core.trainings import CurvePoint, TrainingJob, TrainingResult
from aios.core.types import AdapterRef, TrainExample, content_hash

STATE_NAME = "training_state.json"


@dataclass
class _State:
    """Everything that a resumed training goes on from."""

    step: int = 0
    seconds: float = 0.0
    seen: dict[str, int] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    curve: list[CurvePoint] = field(default_factory=list)
    best: int = 0
    best_seen: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Plan:
    """All steps: their examples, the tokens done after each, and where to evaluate."""

    batches: tuple[tuple[TrainExample, ...], ...]
    tokens: tuple[int, ...]
    evaluate_after: frozenset[int]
    steps_per_epoch: int


class ScriptedTrainer:
    """An `AdapterTrainer` over a `ScriptedModel`.

    Args:
        model: The base model.
        fail_at_step: Training fails when it reaches this step; None: never.
        nan: Whether that failure is a `NonFiniteError`.
        clock: Gives seconds; training time is measured with it.
    """

    def __init__(
        self,
        model: ScriptedModel,
        *,
        fail_at_step: int | None = None,
        nan: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.model = model
        self._fail_at_step = fail_at_step
        self._nan = nan
        self._clock = clock

    def fit(
        self, job: TrainingJob, *, emit: Emit = ignore, should_stop: ShouldStop = never
    ) -> TrainingResult:
        """Trains an adapter into ``job.output_dir``.

        Raises:
            BackendError: Nothing to train on, an example that is too long, or a failure that was
                asked for.
            UsageError: The state to resume from is of another job.
            AdapterMismatchError: The adapter to start from does not fit the model or the recipe.
            StorageError: The adapter or the state could not be written.
            RunInterrupted: `should_stop` said so; the state can be resumed.
        """
        plan = self._plan(job)
        known = Memory()
        if job.initial is not None:
            known = initial_memory(job.initial, self.model, job.recipe)
        state = self._resume(job) if job.resume else None
        if state is None:
            state = self._start_over(job, known)
        stage = f"train {job.output_dir.name}"
        emit(StageStarted(stage, plan.tokens[-1], "tokens"))
        if not state.curve:
            self._evaluate(job, plan, state, emit)
        while state.step < len(plan.batches) and not _out_of_patience(job, state):
            if should_stop():
                self._save_state(job, state)
                raise RunInterrupted(
                    f"training stopped after step {state.step} of {len(plan.batches)}; its state"
                    " is kept",
                    "run the same command with --resume",
                )
            self._step(plan.batches[state.step], state)
            if state.step in plan.evaluate_after:
                self._evaluate(job, plan, state, emit)
            emit(StageProgress(stage, plan.tokens[state.step - 1]))
        adapter = self._write_adapter(job, state)
        emit(StageFinished(stage, state.seconds))
        return TrainingResult(
            adapter=adapter,
            curve=tuple(state.curve),
            best=state.curve[state.best],
            steps=state.step,
            tokens=plan.tokens[state.step - 1] if state.step else 0,
            seconds=state.seconds,
            peak_memory_bytes=int(psutil.Process().memory_info().rss),
            stopped_early=state.step < len(plan.batches),
        )

    def attach(self, adapter: AdapterRef) -> LanguageModel:
        """The base model with the adapter's memory.

        Raises:
            AdapterMismatchError: It was trained on another base model.
            StorageError: It cannot be read, or is not the file that its digest names.
        """
        return self.model.with_memory(checked_memory(adapter, self.model), adapter.digest)

    def detach(self, model: LanguageModel) -> None:
        """Forgets the adapter's memory; the base model is left as it is."""
        if isinstance(model, ScriptedModel) and model is not self.model:
            model.memory = Memory()

    def _plan(self, job: TrainingJob) -> _Plan:
        """Lays out all steps: each epoch is a new order of the examples, by the job's seed."""
        lengths = checked_lengths(self.model, job.examples, job.recipe)
        per_epoch = math.ceil(len(lengths) / job.recipe.batch_size)
        batches: list[tuple[TrainExample, ...]] = []
        tokens: list[int] = []
        while not _spent(job, per_epoch, batches, tokens):
            batch = batch_indices(job.seed, len(lengths), job.recipe.batch_size, len(batches))
            batches.append(tuple(job.examples[i] for i in batch))
            tokens.append((tokens[-1] if tokens else 0) + sum(lengths[i] for i in batch))
        return _Plan(
            tuple(batches), tuple(tokens), _evaluation_steps(job, per_epoch, tokens), per_epoch
        )

    def _step(self, batch: Sequence[TrainExample], state: _State) -> None:
        """One optimiser step: sees the batch's texts once more."""
        if state.step + 1 == self._fail_at_step:
            if self._nan:
                raise NonFiniteError(f"the loss is NaN at step {state.step + 1}")
            raise BackendError(f"the script says to fail at step {state.step + 1}")
        started = self._clock()
        for example in batch:
            score = learn(self.model, state.seen, example)
            if score is not None:
                state.losses.append(score.loss)
        state.step += 1
        state.seconds += self._clock() - started

    def _with(self, state: _State) -> ScriptedModel:
        return self.model.with_memory(Memory(dict(state.seen)), "training")

    def _evaluate(self, job: TrainingJob, plan: _Plan, state: _State, emit: Emit) -> None:
        """Adds a point to the curve, remembers the best, and commits the state."""
        loss = None
        if job.validation:
            scores = self._with(state).score(job.validation)
            loss = -math.fsum(s.logprob for s in scores) / sum(s.tokens for s in scores)
        point = CurvePoint(
            step=state.step,
            epoch=state.step / plan.steps_per_epoch,
            tokens=plan.tokens[state.step - 1] if state.step else 0,
            train_loss=math.fsum(state.losses) / len(state.losses) if state.losses else None,
            validation_loss=loss,
            seconds=state.seconds,
        )
        state.losses = []
        state.curve.append(point)
        best = state.curve[state.best].validation_loss
        if len(state.curve) == 1 or loss is None or best is None or loss < best:
            state.best, state.best_seen = len(state.curve) - 1, dict(state.seen)
        self._save_state(job, state)
        emit(Evaluated(training=job.output_dir.name, **asdict(point)))

    def _write_adapter(self, job: TrainingJob, state: _State) -> AdapterRef:
        """The best checkpoint as a PEFT folder."""
        data = adapter_bytes(state.best_seen, job.recipe, job.seed)
        return write_adapter(job.output_dir, self.model, data, job.recipe)

    def _start_over(self, job: TrainingJob, known: Memory) -> _State:
        with guarded("empty", job.output_dir):
            for name in (CONFIG_NAME, WEIGHTS_NAME, STATE_NAME):
                (job.output_dir / name).unlink(missing_ok=True)
        return _State(seen=dict(known.times))

    def _job_key(self, job: TrainingJob) -> str:
        parts = asdict(job)
        del parts["output_dir"], parts["resume"], parts["initial"]
        if job.initial is not None:
            parts["initial"] = job.initial.digest
        return content_hash("scripted-training", self.model.digest, parts)

    def _save_state(self, job: TrainingJob, state: _State) -> None:
        path = job.output_dir / STATE_NAME
        atomic_write_json(path, {"job": self._job_key(job), "state": asdict(state)}, indent=None)

    def _resume(self, job: TrainingJob) -> _State | None:
        """The state on disk, or None where there is none."""
        path = job.output_dir / STATE_NAME
        data: Any = read_json(path, default=None)
        if data is None:
            return None
        if data.get("job") != self._job_key(job):
            raise UsageError(
                f"the state in {path} is of a training with other data or settings",
                "start over with --overwrite, or resume with the settings of before",
            )
        values = dict(data["state"])
        values["curve"] = [CurvePoint(**point) for point in values["curve"]]
        return _State(**values)


def _spent(
    job: TrainingJob, per_epoch: int, batches: Sequence[object], tokens: Sequence[int]
) -> bool:
    """Whether the planned steps reach the job's budget of tokens or steps, or else its epochs."""
    if job.max_tokens is None and job.max_steps is None:
        return len(batches) >= per_epoch * job.recipe.epochs
    by_tokens = job.max_tokens is not None and bool(tokens) and tokens[-1] >= job.max_tokens
    return by_tokens or (job.max_steps is not None and len(batches) >= job.max_steps)


def _evaluation_steps(job: TrainingJob, per_epoch: int, tokens: Sequence[int]) -> frozenset[int]:
    """Steps after which to evaluate: evenly in each epoch or by tokens, and after the last."""
    steps = len(tokens)
    if job.evaluate_every_tokens is None:
        every = max(1, round(per_epoch / job.evaluations_per_epoch))
        return frozenset({*range(every, steps + 1, every), steps})
    marks = {steps}
    due = job.evaluate_every_tokens
    for step, done in enumerate(tokens, start=1):
        if done >= due:
            marks.add(step)
            due += job.evaluate_every_tokens
    return frozenset(marks)


def _out_of_patience(job: TrainingJob, state: _State) -> bool:
    waited = len(state.curve) - 1 - state.best
    return bool(job.validation) and 0 < job.patience <= waited
