"""Temporary experts: LoRA adapters trained on a self-edit, used, and thrown away.

Takes a base model and self-edits (records, plain texts or training examples), gives models that
live in memory and how their training went. This is the inner loop of SEAL (Zweiger et al. 2025,
arXiv 2506.10943, section 3.1) for whoever wants the trained model itself; where only rewards are
wanted, a `core.protocols.Executor` trains and scores without handing experts out.

Deviations from the SEAL release (knowledge-incorporation/src/inner/TTT_server.py): defaults of 5
epochs and a learning rate of 1e-4 are those of AI-OS's plan, not the release's 10 and 1e-3 (give
``epochs=None, learning_rate=None`` for the recipe's own); one training text is one item of the
self-edit, so a question stays with its answer, where the release splits at every newline.

The base model is never written to. An adapter is freed by `TemporaryExpert.release`, or at the
end of a `TTTTrainer.temporary_expert` block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from aios.core.errors import BackendError, UsageError
from aios.core.events import WorkFailed
from aios.core.protocols import (
    Emit,
    LanguageModel,
    ShouldStop,
    TemporaryExpert,
    TrialBench,
    ignore,
    never,
)
from aios.core.seal.trainable_edits import (
    Edit,
    EmptyEditError,
    Passages,
    passage_of,
    trainable_examples,
)
from aios.core.training.examples import LossOn
from aios.core.trials import TrialJob, TrialMetrics, TrialOutcome
from aios.core.types import Failure, LoraRecipe, Passage, TrainExample

SEAL_RECIPE = LoraRecipe(
    rank=32, alpha=64, dropout=0.0, learning_rate=1e-3, epochs=10, batch_size=1
)
_E = TypeVar("_E", bound=Edit)


@runtime_checkable
class Trainable(Protocol):
    """A model that has a trial bench of its own."""

    def trial_bench(self) -> TrialBench:
        """The bench over this model, the same at every call; the model closes it, if anyone."""
        ...


def own_bench(model: LanguageModel) -> TrialBench:
    """The bench that a model brings with it.

    Raises:
        UsageError: It has none: it is an endpoint, say.
    """
    if isinstance(model, Trainable):
        return model.trial_bench()
    raise UsageError(
        f"no adapter can be trained on {model.name}",
        "use a model whose weights are on this machine (aios.load_model), or give TTTTrainer a"
        " bench_for",
    )


@dataclass(frozen=True, slots=True)
class _Request:
    """What is the same for all edits of a call."""

    recipe: LoraRecipe
    seed: int
    passages: Passages


class TTTTrainer:
    """Trains temporary experts (test-time training).

    Args:
        bench_for: Gives the bench that trains over a model. The trainer does not close it. By
            default the model's own (`Trainable`).
        recipe: How adapters are trained, but for `epochs` and `learning_rate`, which each call
            sets. By default rank 32, alpha 64 and one example a step (the SEAL release).
        passage_copies: Times a passage that is given with an edit stands among its examples.
        loss_on: Which part of question-answer items carries loss.
        patience: Passes without a lower training loss after which a training ends; 0: never.
        seed: Seed of initialisation and order, where a call gives none.

    Raises:
        UsageError: A number is negative, or the recipe has dropout.
    """

    def __init__(
        self,
        bench_for: Callable[[LanguageModel], TrialBench] = own_bench,
        *,
        recipe: LoraRecipe = SEAL_RECIPE,
        passage_copies: int = 1,
        loss_on: LossOn = "all",
        patience: int = 0,
        seed: int = 0,
    ) -> None:
        for name, value in (("passage_copies", passage_copies), ("patience", patience)):
            if value < 0:
                raise UsageError(f"{name} is {value}", "give 0 or more")
        if recipe.dropout:
            raise UsageError(
                f"the recipe has a dropout of {recipe.dropout}",
                "set it to 0: temporary adapters are trained without it",
            )
        self.bench_for = bench_for
        self.recipe = recipe
        self.passage_copies, self.loss_on = passage_copies, loss_on
        self.patience, self.seed = patience, seed

    def train_temporary_expert(
        self,
        base_expert: LanguageModel,
        self_edit: Edit,
        epochs: int | None = 5,
        learning_rate: float | None = 1e-4,
        *,
        passage: Passage | None = None,
        seed: int | None = None,
        checkpoint_dir: Path | None = None,
        emit: Emit = ignore,
        should_stop: ShouldStop = never,
    ) -> tuple[TemporaryExpert, TrialMetrics]:
        """Trains one adapter on a self-edit; the base model stays bit-identical.

        Args:
            base_expert: The model that is trained on: a base model, or an expert.
            self_edit: The self-edit; a text is an item a line, an answer with its question.
            epochs: Passes over its examples; None for the recipe's.
            learning_rate: Peak rate of AdamW; None for the recipe's.
            passage: Trained on too, `passage_copies` times.
            seed: Seed of initialisation and order; the trainer's by default.
            checkpoint_dir: Where the trained adapter is also written, in PEFT layout.
            emit: Told of progress.
            should_stop: Asked while training.

        Returns:
            The expert, which the caller releases, and how its training went: the loss of each
            step, and whether it ended early on a plateau.

        Raises:
            UsageError: The self-edit is empty, a number is out of range, the model cannot be
                trained here, or `checkpoint_dir` is given and `base_expert` is itself an expert.
            BackendError: Training failed.
            StorageError: The checkpoint cannot be written.
            RunInterrupted: `should_stop` said so.
        """
        request = self._request(epochs, learning_rate, seed, passage)
        job = self._job("temporary-expert", self_edit, request)
        stream = self.bench_for(base_expert).train([job], emit=emit, should_stop=should_stop)
        with ExitStack() as on_failure:
            results = []
            for result in stream:
                if not isinstance(result, TrialOutcome):
                    on_failure.callback(result[1].release)
                results.append(result)
            (result,) = results
            if isinstance(result, TrialOutcome):
                failure = _failure_of(result)
                raise BackendError(
                    f"the temporary expert was not trained: {failure.error}",
                    retryable=failure.retryable,
                )
            _, expert, metrics = result
            if checkpoint_dir is not None:
                expert.export(checkpoint_dir)
            on_failure.pop_all()
        return expert, metrics

    @contextmanager
    def temporary_expert(
        self,
        base_expert: LanguageModel,
        self_edit: Edit,
        epochs: int | None = 5,
        learning_rate: float | None = 1e-4,
        *,
        passage: Passage | None = None,
        seed: int | None = None,
        checkpoint_dir: Path | None = None,
        emit: Emit = ignore,
        should_stop: ShouldStop = never,
    ) -> Iterator[TemporaryExpert]:
        """A temporary expert for the time of a block; it is released however the block ends.

        Takes and raises the same as `train_temporary_expert`.
        """
        expert, _ = self.train_temporary_expert(
            base_expert,
            self_edit,
            epochs,
            learning_rate,
            passage=passage,
            seed=seed,
            checkpoint_dir=checkpoint_dir,
            emit=emit,
            should_stop=should_stop,
        )
        try:
            yield expert
        finally:
            expert.release()

    def train_many(
        self,
        base_expert: LanguageModel,
        self_edits: Iterable[_E],
        epochs: int | None = 5,
        learning_rate: float | None = 1e-4,
        *,
        passages: Passages = None,
        seed: int | None = None,
        checkpoint_dir: Path | None = None,
        emit: Emit = ignore,
        should_stop: ShouldStop = never,
    ) -> Iterator[tuple[_E, TemporaryExpert, TrialMetrics] | Failure]:
        """Trains an adapter on each self-edit, many at once, each as `train_temporary_expert` does.

        All start from the same seed, so that candidates differ by their self-edits alone. Edits
        are pulled as there is room for them. Experts stay in memory until the caller releases
        them: release each before asking for the next where many are trained.

        Args:
            base_expert: As for one.
            self_edits: May be endless.
            epochs: As for one.
            learning_rate: As for one.
            passages: Trained on too: one for all edits, or by passage id for edits that have one.
            seed: As for one.
            checkpoint_dir: Adapters are also written to its folders ``edit-0``, ``edit-1``, … by
                the edits' positions.
            emit: As for one.
            should_stop: As for one.

        Yields:
            Edit, expert and metrics, in any order, as each is ready; a `Failure` for an edit that
            failed or holds nothing to train on, its subject ``edit-<position>``.

        Raises:
            UsageError: As for one, except that an empty self-edit is a failure.
            BackendError: Nothing more can be trained.
            StorageError: A checkpoint cannot be written.
            RunInterrupted: `should_stop` said so.
        """
        request = self._request(epochs, learning_rate, seed, passages)
        bench = self.bench_for(base_expert)
        return self._train_each(bench, self_edits, request, checkpoint_dir, emit, should_stop)

    def _train_each(
        self,
        bench: TrialBench,
        self_edits: Iterable[_E],
        request: _Request,
        checkpoint_dir: Path | None,
        emit: Emit,
        should_stop: ShouldStop,
    ) -> Iterator[tuple[_E, TemporaryExpert, TrialMetrics] | Failure]:
        edits: dict[str, _E] = {}  # those in training, by job
        empty: list[Failure] = []

        def jobs() -> Iterator[TrialJob]:
            for position, edit in enumerate(self_edits):
                name = f"edit-{position}"
                try:
                    job = self._job(name, edit, request)
                except EmptyEditError as error:
                    empty.append(Failure("train", name, error.message))
                    emit(WorkFailed("train", name, error.message))
                    continue
                edits[name] = edit
                yield job

        stream = bench.train(jobs(), emit=emit, should_stop=should_stop)
        with closing(stream) if isinstance(stream, Generator) else nullcontext():
            for result in stream:
                if isinstance(result, TrialOutcome):
                    del edits[result.job_id]
                    yield _failure_of(result)
                else:
                    job, expert, metrics = result
                    _checkpoint(expert, checkpoint_dir, job.id)
                    yield edits.pop(job.id), expert, metrics
                while empty:
                    yield empty.pop(0)
            yield from empty

    def _request(
        self, epochs: int | None, learning_rate: float | None, seed: int | None, passages: Passages
    ) -> _Request:
        recipe = replace(
            self.recipe,
            epochs=self.recipe.epochs if epochs is None else epochs,
            learning_rate=self.recipe.learning_rate if learning_rate is None else learning_rate,
        )
        if recipe.epochs < 1:
            raise UsageError(f"epochs is {recipe.epochs}", "give 1 or more")
        if not (recipe.learning_rate > 0 and math.isfinite(recipe.learning_rate)):
            raise UsageError(f"learning_rate is {recipe.learning_rate}", "give a number above 0")
        return _Request(recipe, self.seed if seed is None else seed, passages)

    def _job(self, name: str, edit: Edit, request: _Request) -> TrialJob:
        """The training of one edit.

        Raises:
            EmptyEditError: It holds nothing to train on.
            UsageError: Its passage is not among those given.
        """
        examples = self.examples_of(edit, passage_of(edit, request.passages))
        return TrialJob(
            id=name,
            examples=examples,
            recipe=request.recipe,
            seed=request.seed,
            patience=self.patience,
        )

    def examples_of(self, edit: Edit, passage: Passage | None) -> tuple[TrainExample, ...]:
        """What an edit is trained on: its passage, if one is given, and its items.

        Raises:
            UsageError: The edit holds nothing to train on.
        """
        return trainable_examples(
            edit, passage, passage_copies=self.passage_copies, loss_on=self.loss_on
        )


def _checkpoint(expert: TemporaryExpert, folder: Path | None, name: str) -> None:
    """Writes an expert's adapter where that is wanted; frees it where that fails."""
    if folder is None:
        return
    with ExitStack() as on_failure:
        on_failure.callback(expert.release)
        expert.export(folder / name)
        on_failure.pop_all()


def _failure_of(outcome: TrialOutcome) -> Failure:
    assert outcome.failure is not None  # a bench that only trains has no other outcomes
    return outcome.failure
