"""The nouns of a training: what is asked of it, how it went, and what it gave.

Examples, recipes and adapters, which outlive a training, are in `core.types`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aios.core.types import AdapterRef, LoraRecipe, ScoreRequest, TrainExample


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """Everything that determines a training.

    Attributes:
        examples: What to train on; at least one.
        recipe: How.
        seed: Seed of initialisation and order.
        output_dir: Where the best checkpoint (PEFT layout) and the resume state go.
        validation: What is scored at each evaluation; may be empty.
        max_tokens: Token budget in place of the recipe's epochs; the step that reaches it is the
            last. None: by epochs.
        max_steps: Step budget, likewise.
        evaluations_per_epoch: How often per pass to evaluate; at least 1.
        evaluate_every_tokens: Evaluate at every so many tokens instead, so that trainings on
            different data choose their best among equally many checkpoints.
        patience: Evaluations without a better validation loss after which it stops; 0: never.
        resume: Go on from `output_dir`'s state if there is one that fits this job.
        initial: Adapter that the training starts from, of the same rank and alpha; None: a new
            one. It lies outside `output_dir`, and is not changed.
    """

    examples: tuple[TrainExample, ...]
    recipe: LoraRecipe
    seed: int
    output_dir: Path
    validation: tuple[ScoreRequest, ...] = ()
    max_tokens: int | None = None
    max_steps: int | None = None
    evaluations_per_epoch: int = 1
    evaluate_every_tokens: int | None = None
    patience: int = 0
    resume: bool = False
    initial: AdapterRef | None = None


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One evaluation during training.

    Attributes:
        step: Optimiser steps done.
        epoch: Passes over the examples done (may be fractional).
        tokens: Real tokens trained on so far (no padding).
        train_loss: Mean loss per label token since the last point; None before the first step.
        validation_loss: Mean loss per validation answer token; None without validation.
        seconds: Training time so far, evaluation excluded.
    """

    step: int
    epoch: float
    tokens: int
    train_loss: float | None
    validation_loss: float | None
    seconds: float


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a training gave.

    Attributes:
        adapter: The best checkpoint by validation loss (the last without validation).
        curve: All evaluations, the first at step 0.
        best: The point that `adapter` was saved at.
        steps: Optimiser steps done.
        tokens: Real tokens trained on.
        seconds: Training time, evaluation excluded.
        peak_memory_bytes: Peak memory of process (CPU) or device (GPU).
        stopped_early: Whether it ended before its budget for lack of progress.
    """

    adapter: AdapterRef
    curve: tuple[CurvePoint, ...]
    best: CurvePoint
    steps: int
    tokens: int
    seconds: float
    peak_memory_bytes: int
    stopped_early: bool = False
