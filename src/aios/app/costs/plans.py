"""The dry runs of an A/B test and of an expert's training: work, time and memory; nothing is kept.

Takes a config and a file of passages; loads the model and counts what the job would do. How long
that takes is told by earlier runs on this machine, or else by a probe (`costs.forecast`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aios.app.ab_tests.data import read_ab_input
from aios.app.ab_tests.job import ab_settings
from aios.app.composition import check_strategy, recipe_for
from aios.app.costs.forecast import Forecast, Foreseen, foresee, free_on
from aios.app.costs.probe import probe_training
from aios.app.costs.texts import CountedTexts, count_ab_texts, count_expert_texts
from aios.app.edits.generation_plan import (
    GeneratePlan,
    check_input,
    ignore_reject,
    plan_generation,
    read_input,
)
from aios.app.generators import check_generator
from aios.app.models import load_model
from aios.core.config.schemas import Config
from aios.core.protocols import Emit, LanguageModel, ignore
from aios.core.restem_workload import Span
from aios.core.training_costs import RunCosts
from aios.core.types import Passage


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """What a job would do and take.

    Attributes:
        generation: The self-edits of all passages of the file.
        forecast: Work, time and memory.
    """

    generation: GeneratePlan
    forecast: Forecast


def plan_ab_test(
    config: Config, input: Path, *, questions: Path | None = None, emit: Emit = ignore
) -> TrainingPlan:
    """What an A/B test would do and take; nothing is kept.

    Args:
        config: The resolved config.
        input: Passages, with questions unless `questions` is given.
        questions: A file of questions by passage id.
        emit: Told what is being timed.

    Returns:
        The counts, and time and memory with what they rest on.

    Raises:
        UsageError: Input or config cannot be used, or no adapter can be trained on the model.
        BackendError: The probe failed.
    """
    given = read_ab_input(config, input, questions)

    def count(model: LanguageModel, passages: Sequence[Passage]) -> CountedTexts:
        settings = ab_settings(config, recipe_for(config, model))
        return count_ab_texts(
            config,
            settings,
            passages,
            model.count_tokens,
            questions=given.questions,
            retention=given.retention,
        )

    return _plan("ab-test", config, input, count, emit)


def plan_expert(
    config: Config, dataset: Path, *, use_self_edits: bool = True, emit: Emit = ignore
) -> TrainingPlan:
    """What an expert's training would do and take, ReST-EM left out; nothing is kept.

    Args:
        config: The resolved config.
        dataset: A file of passages.
        use_self_edits: Whether to train on self-edits besides the passages.
        emit: Told what is being timed.

    Returns:
        The counts, and time and memory with what they rest on.

    Raises:
        UsageError: Input or config cannot be used, or no adapter can be trained on the model.
        BackendError: The probe failed.
    """
    check_input(dataset)

    def count(model: LanguageModel, passages: Sequence[Passage]) -> CountedTexts:
        return count_expert_texts(
            config, passages, model.count_tokens, use_self_edits=use_self_edits
        )

    return _plan("train-expert", config, dataset, count, emit)


def _plan(
    kind: Foreseen,
    config: Config,
    path: Path,
    count: Callable[[LanguageModel, Sequence[Passage]], CountedTexts],
    emit: Emit,
) -> TrainingPlan:
    check_strategy(config)
    check_generator(config)
    free = {device: free_on(config)(device) for device in ("cpu", "cuda")}
    began = time.monotonic()
    model = load_model(config, emit=emit)
    loading = time.monotonic() - began
    recipe = recipe_for(config, model)
    generation = plan_generation(config, path, model=model)
    texts = count(model, tuple(read_input(config, path, model, ignore_reject)))
    to_write = 1 - generation.cached / generation.candidates if generation.candidates else 0.0
    written = Span.exactly(to_write * texts.writing * recipe.num_edits_per_passage)

    def probe(use_self_edits: bool) -> RunCosts:
        return probe_training(
            config,
            model,
            texts.passages,
            use_self_edits=use_self_edits,
            answers=kind == "ab-test",
            once_seconds=loading,
            emit=emit,
        )

    forecast = foresee(
        kind,
        config,
        recipe,
        texts,
        written,
        free_bytes=lambda device: free.get(device, free["cpu"]),
        probe=probe,
    )
    return TrainingPlan(generation, forecast)
