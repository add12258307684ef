"""The seams: what a collaborator must do. Every implementation passes tests/contract/."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from aios.core.data.probes import Probe
from aios.core.events import Event
from aios.core.streaming import Generated
from aios.core.trainings import TrainingJob, TrainingResult
from aios.core.trials import Answered, TrialJob, TrialMetrics, TrialOutcome
from aios.core.types import AdapterRef, Completion, Expert, GenerationRequest, Score, ScoreRequest

Emit = Callable[[Event], None]
ShouldStop = Callable[[], bool]


def ignore(event: Event) -> None:
    """An `Emit` that does nothing."""


def never() -> bool:
    """A `ShouldStop` that never asks to stop."""
    return False


@runtime_checkable
class LanguageModel(Protocol):
    """A model that writes and scores text."""

    @property
    def name(self) -> str:
        """A short name for people, e.g. ``smollm2-135m-instruct``."""
        ...

    @property
    def digest(self) -> str:
        """Hex digest of the base weights and tokenizer: equal digests write the same texts."""
        ...

    @property
    def adapter_digest(self) -> str:
        """Hex digest of the active adapter; empty without one."""
        ...

    @property
    def context_length(self) -> int:
        """Most tokens of prompt and completion together."""
        ...

    def count_tokens(self, text: str) -> int:
        """Number of tokens of a text, without special tokens."""
        ...

    def format_chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Renders messages (`role`, `content`) as a prompt that the model answers.

        A model without a chat template gets the contents joined by blank lines.

        Raises:
            UsageError: The model's chat template refuses them.
            ModelError: The template is broken.
        """
        ...

    @property
    def end_of_turn(self) -> str:
        """The text of the token that ends an answer to `format_chat`.

        Put behind an answer that is trained on, it teaches the model to stop there. Empty where
        no text is read as that token.
        """
        ...

    def stream(
        self, requests: Iterable[GenerationRequest], *, width: int | None = None
    ) -> Iterator[Generated]:
        """Writes ``len(request.seeds)`` completions for each request, each as it is ready.

        Requests are taken from the iterator, in the caller's thread, when there is room for
        them: at most `width` completions are being written at a time. When the iterator ends,
        those in flight are finished. Between two outcomes the caller may score with this model.

        Args:
            requests: May be endless.
            width: Most completions in flight; the backend's own choice by default.

        Yields:
            One outcome a request. A prompt without room for one token in the context, say, is
            that request's error and stops no other.

        Raises:
            BackendError: Nothing more can be written; requests that had no outcome have failed.
        """
        ...

    def generate(self, requests: Sequence[GenerationRequest]) -> list[list[Completion]]:
        """Writes the completions of all requests, in order.

        The same call on the same model gives the same texts.

        Raises:
            BackendError: Generation failed. A prompt without room for one token in the context
                is one such failure; it says which.
        """
        ...

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """Log-probabilities of continuations, in order.

        Raises:
            BackendError: Scoring failed; `NonFiniteError` where a score is not a finite number.
        """
        ...


@runtime_checkable
class AdapterTrainer(Protocol):
    """Trains adapters over a frozen base model, and puts them on it."""

    def fit(
        self, job: TrainingJob, *, emit: Emit = ignore, should_stop: ShouldStop = never
    ) -> TrainingResult:
        """Trains one adapter; the base model stays bit-identical.

        Raises:
            AdapterMismatchError: ``job.initial`` is of another base model, rank or alpha.
            BackendError: Training failed (`NonFiniteError`, `OutOfMemoryError`, …).
            StorageError: A checkpoint could not be written.
            RunInterrupted: `should_stop` said so; the state on disk can be resumed.
        """
        ...

    def attach(self, adapter: AdapterRef) -> LanguageModel:
        """The base model with the adapter on it.

        Raises:
            AdapterMismatchError: It was trained on another base model.
        """
        ...

    def detach(self, model: LanguageModel) -> None:
        """Frees what `attach` loaded."""
        ...


@runtime_checkable
class TemporaryExpert(LanguageModel, Protocol):
    """A model with a trained adapter that lives in memory only."""

    def export(self, folder: Path) -> AdapterRef:
        """Writes the adapter in PEFT layout.

        Raises:
            StorageError: The folder cannot be written.
            UsageError: Its base is itself an expert, so the adapter alone would not be one.
        """
        ...

    def release(self) -> None:
        """Frees the adapter; the model cannot be used any more."""
        ...


@runtime_checkable
class Executor(Protocol):
    """Runs trials: in this process, in several, or on a cluster."""

    def run(
        self, jobs: Iterable[TrialJob], *, emit: Emit = ignore, should_stop: ShouldStop = never
    ) -> Iterator[TrialOutcome]:
        """Trains an adapter for each job and asks it the job's questions.

        Jobs are pulled lazily, as there is room for them. What a job gives does not depend on
        the others.

        Yields:
            One outcome a job, as each is ready. A trial that failed is an outcome with a
            `Failure`, and stops no other.

        Raises:
            UsageError: A job cannot be run at all: no examples, dropout, an id that is used twice.
            BackendError: Nothing more can be run; jobs without an outcome have failed.
            RunInterrupted: `should_stop` said so.
        """
        ...

    def baseline(
        self,
        questions: Sequence[Probe],
        *,
        write_answers: bool = False,
        max_answer_tokens: int = 16,
    ) -> list[Answered]:
        """What the base model without an adapter makes of the questions, in order.

        Each question is put to it once in the executor's life and kept.

        Raises:
            BackendError: Scoring or generation failed.
        """
        ...

    def close(self) -> None:
        """Ends workers and frees memory; may be called twice."""
        ...


@runtime_checkable
class TrialBench(Executor, Protocol):
    """An executor in this process, whose trained adapters can be kept and used."""

    def train(
        self, jobs: Iterable[TrialJob], *, emit: Emit = ignore, should_stop: ShouldStop = never
    ) -> Iterator[tuple[TrialJob, TemporaryExpert, TrialMetrics] | TrialOutcome]:
        """Trains an adapter for each job and keeps it; the job's questions are not asked.

        Yields:
            Job, expert and metrics, as each is ready; an outcome with a `Failure` for a job that
            failed.

        Raises:
            UsageError: As `run`.
            BackendError: As `run`.
            RunInterrupted: As `run`.
        """
        ...


@runtime_checkable
class ExpertStore(Protocol):
    """The registry of experts."""

    def get(self, expert_id: str) -> Expert | None:
        """The expert, or None."""
        ...

    def save(self, expert: Expert) -> None:
        """Adds or replaces an expert, atomically; keys that we do not know survive."""
        ...

    def list(self) -> tuple[Expert, ...]:
        """All experts, in the order they were added."""
        ...

    def folder(self, expert_id: str) -> Path:
        """The expert's folder (which may not exist yet), always inside the store."""
        ...
