"""A generator's card, and a generator over the scripted model, for tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from aios.backends.scripted import ScriptedModel
from aios.backends.scripted_training import ScriptedTrainer
from aios.core.seal.generator_card import (
    GeneratorCard,
    RewardRule,
    RoundSummary,
    prompts_digest,
)
from aios.core.seal.prompts import PromptBuilder
from aios.core.trainings import TrainingJob
from aios.core.types import AdapterRef, LoraRecipe, TrainExample
from aios.storage.generators import write_generator

STRATEGIES = {"implications": 0.25, "rewrite": 0.75}
CARD = GeneratorCard(
    base_model="scripted",
    base_digest="b" * 64,
    adapter_digest="a" * 64,
    strategies=STRATEGIES,
    prompts_digest=prompts_digest(PromptBuilder(), STRATEGIES),
    round=2,
    rounds=(
        RoundSummary(0, 0, 0, 0, 0.05),
        RoundSummary(1, 40, 9, 7, 0.1),
        RoundSummary(2, 40, 15, 8),
    ),
    data_fingerprint="f" * 16,
    passages=8,
    reward=RewardRule("loss", "passage", 0.12),
    recipe=LoraRecipe(rank=2, alpha=4),
    created_at="2026-01-02T03:04:05+00:00",
    aios_version="0.1.0",
)


def scripted_adapter(folder: Path, model: ScriptedModel | None = None) -> AdapterRef:
    """An adapter that has seen one text."""
    job = TrainingJob(
        examples=(TrainExample.whole("Rewrites keep the facts."),),
        recipe=LoraRecipe(rank=2, alpha=4, epochs=1),
        seed=0,
        output_dir=folder,
    )
    return ScriptedTrainer(model or ScriptedModel()).fit(job).adapter


def scripted_generator(folder: Path, model: ScriptedModel | None = None, **card: Any) -> AdapterRef:
    """A generator's folder; `card` changes fields of its card."""
    adapter = scripted_adapter(folder.with_name(f"{folder.name}-training"), model)
    digests = {"adapter_digest": adapter.digest, "base_digest": adapter.base_digest}
    return write_generator(folder, adapter, replace(CARD, **{**digests, **card}))
