"""Trains an expert from prepared data.

Takes `TrainingData` and an adapter trainer; gives the trained adapter with its learning curve and
the statistics of what it was trained on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aios.core.config.recipes import ResolvedRecipe
from aios.core.protocols import AdapterTrainer, Emit, ShouldStop, ignore, never
from aios.core.training.auto_training_orchestrator import TrainingData
from aios.core.trainings import TrainingJob, TrainingResult
from aios.core.types import TrainExample

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainedExpert:
    """What `train_expert` gives.

    Attributes:
        result: The training's result.
        dataset_stats: See `log_dataset_stats`.
        evaluation_seconds: Time of the training's evaluations, and of its begin and end; 0 where
            it was gone on with and is not known.
    """

    result: TrainingResult
    dataset_stats: dict[str, Any]
    evaluation_seconds: float = 0.0


def train_expert(
    data: TrainingData,
    *,
    trainer: AdapterTrainer,
    recipe: ResolvedRecipe,
    seed: int,
    output_dir: Path,
    use_self_edits: bool = True,
    resume: bool = False,
    emit: Emit = ignore,
    should_stop: ShouldStop = never,
) -> TrainedExpert:
    """Trains one adapter on passages, with their self-edits or without.

    Args:
        data: What `AutoTrainingOrchestrator.prepare_training_data` gave.
        trainer: Trains on the base model.
        recipe: How.
        seed: Seed of initialisation and order.
        output_dir: Where checkpoints and the adapter go.
        use_self_edits: Train on the augmented data, not on the passages alone.
        resume: Go on from a checkpoint of the same training.
        emit: Shows events.
        should_stop: Asked at every step.

    Returns:
        The training's result, and what self-edits added to its data.

    Raises:
        BackendError: Training failed.
        RunInterrupted: `should_stop` said so; the checkpoint is kept.
    """
    examples = data.augmented if use_self_edits else data.original
    job = TrainingJob(
        examples=examples,
        recipe=recipe.lora,
        seed=seed,
        output_dir=output_dir,
        validation=data.validation.requests,
        max_tokens=recipe.max_tokens,
        evaluations_per_epoch=recipe.evaluations_per_epoch,
        patience=recipe.patience,
        resume=resume,
    )
    stats = log_dataset_stats(data.original, examples)
    began = time.perf_counter()
    result = trainer.fit(job, emit=emit, should_stop=should_stop)
    evaluations = 0.0 if resume else max(0.0, time.perf_counter() - began - result.seconds)
    return TrainedExpert(result, stats, evaluations)


def log_dataset_stats(
    original: Sequence[TrainExample], augmented: Sequence[TrainExample]
) -> dict[str, Any]:
    """Counts what self-edits add to the data, and logs it.

    Args:
        original: The examples without self-edits.
        augmented: The examples with them.

    Returns:
        ``original`` and ``augmented``, each with ``examples``, ``characters`` and
        ``mean_characters``; ``by_source`` (examples of the augmented data by source);
        ``growth``, the ratio of characters (None if there were none).
    """
    before, after = _counts(original), _counts(augmented)
    by_source: dict[str, int] = {}
    for example in augmented:
        by_source[example.source] = by_source.get(example.source, 0) + 1
    growth = after["characters"] / before["characters"] if before["characters"] else None
    _LOGGER.info(
        "data: %d examples from passages, %d with self-edits", before["examples"], after["examples"]
    )
    return {"original": before, "augmented": after, "by_source": by_source, "growth": growth}


def _counts(examples: Sequence[TrainExample]) -> dict[str, float]:
    characters = sum(len(example.text) for example in examples)
    return {
        "examples": len(examples),
        "characters": characters,
        "mean_characters": characters / len(examples) if examples else 0.0,
    }
