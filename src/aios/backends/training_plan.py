"""The steps of a training, laid out before it starts: batches, evaluations, learning rates.

Everything follows from the job and the lengths of its examples, so a training that goes on after
a kill takes the same steps.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from aios.backends.encoding import Encoded
from aios.core.errors import UsageError
from aios.core.seeds import derive
from aios.core.trainings import TrainingJob
from aios.core.types import LoraRecipe


@dataclass(frozen=True, slots=True)
class StepPlan:
    """All steps of a training, known before it starts.

    Attributes:
        batches: For each step the examples in it (indices).
        tokens: Tokens trained on after each step (cumulative).
        evaluate_after: Steps (1-based) after which to evaluate; the last one is among them.
        steps_per_epoch: Steps of one pass.
    """

    batches: tuple[tuple[int, ...], ...]
    tokens: tuple[int, ...]
    evaluate_after: frozenset[int]
    steps_per_epoch: int


def plan_steps(encoded: Sequence[Encoded], job: TrainingJob) -> StepPlan:
    """Lays out order, batches and evaluations of a training.

    Every epoch is a new permutation of all examples, seeded by the job's seed and its number.

    Raises:
        UsageError: A budget or an interval is not positive.
    """
    recipe = job.recipe
    budgets = (job.max_tokens, job.max_steps, job.evaluate_every_tokens)
    counts = (recipe.epochs, recipe.batch_size, job.evaluations_per_epoch)
    if any(number is not None and number < 1 for number in (*budgets, *counts)):
        raise UsageError(
            "a training's epochs, batch size, budgets and evaluation intervals must be at least 1",
            "check the settings under training",
        )
    size = job.recipe.batch_size
    per_epoch = -(-len(encoded) // size)
    batches: list[tuple[int, ...]] = []
    tokens: list[int] = []
    total = 0
    for epoch in count():
        if job.max_tokens is None and job.max_steps is None and epoch >= job.recipe.epochs:
            break
        order = list(range(len(encoded)))
        random.Random(derive(job.seed, "order", epoch)).shuffle(order)
        for start in range(0, len(order), size):
            batch = tuple(order[start : start + size])
            total += sum(len(encoded[i].ids) for i in batch)
            batches.append(batch)
            tokens.append(total)
            if total >= (job.max_tokens or float("inf")):
                break
            if len(batches) >= (job.max_steps or float("inf")):
                break
        else:
            continue
        break
    return StepPlan(
        tuple(batches), tuple(tokens), _evaluation_steps(tokens, per_epoch, job), per_epoch
    )


def _evaluation_steps(tokens: Sequence[int], per_epoch: int, job: TrainingJob) -> frozenset[int]:
    if job.evaluate_every_tokens is None:
        every = max(1, round(per_epoch / job.evaluations_per_epoch))
        return frozenset({*range(every, len(tokens) + 1, every), len(tokens)})
    marks, due = {len(tokens)}, job.evaluate_every_tokens
    for step, done in enumerate(tokens, start=1):
        if done >= due:
            marks.add(step)
            due += job.evaluate_every_tokens
    return frozenset(marks)


def learning_rate(recipe: LoraRecipe, step: int, steps: int) -> float:
    """The rate of step `step` (from 0) out of `steps`: linear warm-up, then the schedule."""
    warmup = round(recipe.warmup_ratio * steps)
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    if recipe.schedule == "constant":
        return recipe.learning_rate
    left = 1 - (step - warmup) / max(1, steps - warmup)
    if recipe.schedule == "linear":
        return recipe.learning_rate * left
    return recipe.learning_rate * 0.5 * (1 - math.cos(math.pi * left))
