"""Generators of the planted world, and files of its passages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from aios.backends.scripted_training import ScriptedTrainer
from aios.core.config.schemas import Config
from aios.core.seal.generator_card import passage_hash, prompts_digest
from aios.core.seal.prompts import PromptBuilder
from aios.core.trainings import TrainingJob
from aios.core.types import AdapterRef, LoraRecipe, Passage, TrainExample
from aios.storage.generators import write_generator
from tests.generator_folders import CARD
from tests.planted_world import HELPFUL, PlantedModel, answer, place
from tests.test_app.scripted_jobs import make_config

ARMS = {"implications": 1.0}


def planted_config(folder: Path, **sections: Any) -> Config:
    """A config under which every self-edit of the planted world passes the filter."""
    seal = {
        "min_length": 1,
        "strategy": "auto",
        "num_edits_per_passage": None,
        "enable_deduplication": False,
        "enable_quality_filter": False,
        "enable_grounding": False,
        "restem_iterations": 1,
        "restem_batch_size": 8,
        "restem_candidates_per_passage": 4,
        **sections.pop("seal", {}),
    }
    restem = {"arms": ["implications"], "trial_tokens": 60, **sections.pop("restem", {})}
    training = {"rank": 2, "alpha": 4, "epochs": 2, "batch_size": 2, **sections.pop("training", {})}
    return make_config(folder, seal=seal, restem=restem, training=training, **sections)


def write_planted(path: Path, passages: Sequence[Passage]) -> Path:
    """A file of passages with their questions."""
    rows = [
        {"id": p.id, "text": p.text, "questions": [asdict(q) for q in p.questions]}
        for p in passages
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def skilled_generator(
    folder: Path, passages: Sequence[Passage] = (), lessons: int = 40, **card: Any
) -> AdapterRef:
    """A generator that has learned from helpful self-edits, and its card of some passages."""
    texts = [HELPFUL.format(place=place(n), answer=answer(n)) for n in range(lessons)]
    model = PlantedModel()
    job = TrainingJob(
        examples=tuple(TrainExample.whole(f"Implications:\n1. {text}") for text in texts),
        recipe=LoraRecipe(rank=2, alpha=4, epochs=1),
        seed=0,
        output_dir=folder.with_name(f"{folder.name}-training"),
    )
    adapter = ScriptedTrainer(model).fit(job).adapter
    facts = {
        "adapter_digest": adapter.digest,
        "base_digest": adapter.base_digest,
        "strategies": ARMS,
        "prompts_digest": prompts_digest(PromptBuilder(), ARMS),
        "passages": len(passages),
        "passage_ids": tuple(map(passage_hash, passages)),
    }
    return write_generator(folder, adapter, replace(CARD, **{**facts, **card}))
