"""The nouns of the trial engine: throw-away adapters, what they are asked, and what came of it.

A *trial* trains one temporary LoRA adapter on one candidate self-edit and puts questions to the
base model before and after (SEAL, Zweiger et al. 2025, arXiv 2506.10943, section 3.1: the inner
loop). A trial that failed has a `Failure` and no number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from aios.core.data.probes import Probe
from aios.core.types import Failure, LoraRecipe, Score, TrainExample

if TYPE_CHECKING:
    from aios.core.protocols import TemporaryExpert


@dataclass(frozen=True, slots=True)
class TrialJob:
    """One temporary adapter: what it is trained on, how, and what it is asked afterwards.

    Attributes:
        id: Unique among the jobs of a call, e.g. ``<candidate>/repeat-0``.
        examples: What it is trained on; at least one.
        recipe: How. Dropout must be 0.
        seed: Seed of initialisation and order.
        questions: What the trained adapter is asked; may be empty.
        write_answers: Whether it also writes an answer to each question (greedy decoding), which
            costs far more than the answer's log-probability.
        max_answer_tokens: Longest answer that is written.
        max_steps: Optimiser steps in place of the recipe's epochs; None: by epochs.
        patience: Passes over the examples without a lower training loss after which the training
            ends; 0: never.
        trunk_layers: Lowest layers that get no adapter; their activations are computed once and
            kept. 0, every layer has an adapter, is the method of the paper.
        initial: The temporary expert whose adapter the training starts from, of the same shape and
            over the same model; it is not changed. None: a new adapter. For benches in this
            process: it cannot be sent to a worker.
    """

    id: str
    examples: tuple[TrainExample, ...]
    recipe: LoraRecipe
    seed: int
    questions: tuple[Probe, ...] = ()
    write_answers: bool = False
    max_answer_tokens: int = 16
    max_steps: int | None = None
    patience: int = 0
    trunk_layers: int = 0
    initial: TemporaryExpert | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """What a model made of one question.

    Attributes:
        probe_id: Id of the question.
        score: Log-probability of its reference answer.
        text: The answer that the model wrote; None where none was asked for.
    """

    probe_id: str
    score: Score
    text: str | None = None


@dataclass(frozen=True, slots=True)
class TrialMetrics:
    """How a temporary adapter was trained.

    Attributes:
        losses: Training loss of each optimiser step (nats per label token).
        steps: Optimiser steps done.
        tokens: Real tokens trained on.
        seconds: Its share of the wall time of the batches that it was in, by tokens.
        stopped_early: Whether it ended before its budget because the loss had stopped falling.
        figures: Further numbers by name.
    """

    losses: tuple[float, ...]
    steps: int
    tokens: int
    seconds: float
    stopped_early: bool = False
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TrialOutcome:
    """What came of one job: metrics and answers, or a failure.

    Attributes:
        job_id: The job.
        metrics: How the training went; None if it failed.
        answers: What the trained adapter made of the job's questions, in their order; empty if
            the trial failed.
        failure: Why there is nothing else; its boundary is ``train`` or ``score``, its subject
            the job's id.
    """

    job_id: str
    metrics: TrialMetrics | None = None
    answers: tuple[Answered, ...] = ()
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Reward:
    """What an expert earned on held-out questions. ``float(reward)`` is its value.

    Attributes:
        value: 0 or 1 under a threshold; without one the improvement.
        before: The quantity for the base model; None where it was not asked.
        after: The quantity for the expert (mean over `repeats`).
        n: Questions.
        grader: Name of the grader whose grades the quantity is made of.
        threshold: What decided: the number given, or under ``auto`` the margin that the
            improvement had to exceed; None where nothing was decided.
        standard_error: Of the improvement (of `after` where there is no `before`), from the
            spread over questions; None for a single question.
        kind: The quantity: ``loss`` or ``perplexity`` (less is better), or ``accuracy``.
        rule: How the value came about: a ``number`` as threshold, ``auto``, or ``improvement``.
        improvement: By how much the expert is better than the base model, positive if it is
            better; None where that was not asked.
        repeats: Trials that it is the mean of.
    """

    value: float
    before: float | None
    after: float
    n: int
    grader: str
    threshold: float | None
    standard_error: float | None
    kind: str
    rule: Literal["number", "auto", "improvement"]
    improvement: float | None
    repeats: int = 1

    def __float__(self) -> float:
        return self.value
