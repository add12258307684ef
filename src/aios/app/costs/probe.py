"""Measures the machine where no earlier run has: an A/B test in small, of which nothing is kept.

Takes a config, a loaded model and some passages; gives what a run would have kept
(`core.training_costs.RunCosts`). The engines of a run are timed: self-edits are written as the
probe of ReST-EM writes them, and an arm of an A/B test is trained for two steps and examined, some
times over.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from aios.app.ab_tests.job import ab_settings
from aios.app.composition import build_generator, recipe_for
from aios.app.costs.measuring import ab_costs
from aios.app.costs.records import device_kind, manner_of
from aios.app.generators import writing_model
from aios.app.models import load_trainer
from aios.app.restem.probe import time_writing
from aios.core.config.recipes import ResolvedRecipe
from aios.core.config.schemas import Config
from aios.core.data.probes import make_probes
from aios.core.estimates import spread_indices
from aios.core.evaluation.ab_test import ABData, ABExperiment
from aios.core.evaluation.comparison import ArmRun
from aios.core.events import Notice
from aios.core.protocols import Emit, LanguageModel, ignore
from aios.core.training.examples import passage_text
from aios.core.training_costs import Pieces, RunCosts
from aios.core.types import Passage, ScoreRequest, SelfEdit

PROBED = 4  # passages
_REPEATS = 3  # of each timing; from fewer an interval says nothing
_STEPS = 2  # of a training
_MOST_SCORED, _MOST_ANSWERED = 32, 8  # questions


def probe_training(
    config: Config,
    model: LanguageModel,
    passages: Sequence[Passage],
    *,
    use_self_edits: bool = True,
    answers: bool = True,
    once_seconds: float | None = None,
    emit: Emit = ignore,
) -> RunCosts:
    """Times writing, training, scoring and answering on a few passages.

    Args:
        config: The resolved config.
        model: The base model, loaded.
        passages: Some or all of a job's; at least one.
        use_self_edits: Whether self-edits are written and trained on.
        answers: Whether questions are answered.
        once_seconds: What loading the model took.
        emit: Told what is being timed.

    Raises:
        UsageError: No adapter can be trained on the model.
        BackendError: Writing or training failed.
    """
    chosen = [passages[index] for index in spread_indices(len(passages), PROBED)]
    recipe = recipe_for(config, model)
    edits: tuple[SelfEdit, ...] = ()
    written: Pieces = ()
    if use_self_edits:
        emit(Notice(f"timing {len(chosen)} passages for an estimate: writing"))
        edits, written = _write(config, model, recipe, chosen)
    data = _data(config, chosen, edits, answers=answers)
    emit(Notice("timing a training in small"))
    runs = _train(config, model, recipe, data)
    return ab_costs(
        manner_of(config, recipe),
        device_kind(config),
        data,
        [runs],
        written,
        model.count_tokens,
        wrote=use_self_edits,
        once_seconds=once_seconds,
    )


def _write(
    config: Config, model: LanguageModel, recipe: ResolvedRecipe, passages: Sequence[Passage]
) -> tuple[tuple[SelfEdit, ...], Pieces]:
    """What is kept of what is written, and self-edits with their seconds; none from the cache."""
    with writing_model(config, model) as writes:
        generator = build_generator(config, writes, recipe, cache=None)
        timed = time_writing(generator, passages)
    pieces = [(float(one.edits.generated), seconds) for one, seconds in timed]
    edits = tuple(edit for one, _ in timed for edit in one.edits.kept)
    return edits, tuple(piece for piece in pieces if min(piece) > 0)


def _data(
    config: Config, passages: Sequence[Passage], edits: tuple[SelfEdit, ...], *, answers: bool
) -> ABData:
    """A small experiment's data; where nobody asks questions, the passages are scored."""
    asked = {passage.id: passage.questions for passage in passages if passage.questions}
    probes = make_probes(asked, config.evaluation.question_template)
    texts = () if probes else tuple(ScoreRequest("", passage_text(one)) for one in passages)
    return ABData(
        passages=tuple(passages),
        selection=probes[:_MOST_SCORED],
        report=probes[:_MOST_ANSWERED] if answers else (),
        edits=edits,
        retention=texts,
    )


def _train(
    config: Config, model: LanguageModel, recipe: ResolvedRecipe, data: ABData
) -> list[ArmRun]:
    """Small trainings, each examined; the first is left out, as it takes memory and warms up."""
    settings = replace(ab_settings(config, recipe), match="tokens", evaluations=1)
    arm = "passage+edits" if data.edits else "passage"
    experiment = ABExperiment(model, load_trainer(config, model), data, settings, config.seed)
    examples = experiment.examples(arm)
    size = min(settings.recipe.batch_size, len(examples))
    step = size * sum(model.count_tokens(one.text) for one in examples) / len(examples)
    budget = max(1, round((_STEPS - 0.5) * step))
    experiment.settings = replace(settings, budget_tokens=budget)
    with tempfile.TemporaryDirectory(prefix="aios-estimate-") as folder:
        runs = [experiment.run_arm(arm, n, Path(folder) / str(n)) for n in range(_REPEATS + 1)]
    return runs[1:]
