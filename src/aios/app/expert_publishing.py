"""An expert that has been trained: its registry entry, its card and its folder.

Takes what a training gave; puts the expert's folder in place, whole, and then registers it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from aios.app.composition import Run, describe_strategy
from aios.app.edit_journal import file_digest
from aios.app.generators import describe_generator
from aios.app.model_card import render_model_card
from aios.core.config.recipes import ResolvedRecipe
from aios.core.config.schemas import Config
from aios.core.files import atomic_write_bytes, atomic_write_text, guarded, read_bytes
from aios.core.folders import atomic_folder
from aios.core.protocols import LanguageModel, ShouldStop
from aios.core.training.auto_training_orchestrator import TrainingData
from aios.core.training.expert_trainer import TrainedExpert
from aios.core.types import Expert
from aios.storage.experts import FileExpertStore

EXAMPLES_FILE = "augmented.jsonl"
STATS_FILE = "dataset_stats.json"
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "training.json")
_MAX_FILE_BYTES = 8 << 30


@dataclass(frozen=True, slots=True)
class ExpertJob:
    """What every step of an expert's training needs.

    Attributes:
        config: The resolved config; its generator, if any, writes the self-edits.
        run: The run.
        model: The base model.
        recipe: The recipe in force.
        dataset: The file of passages.
        use_self_edits: Whether to train on self-edits besides the passages.
        resume: Whether an interrupted training is gone on with.
        should_stop: Asked at every step.
    """

    config: Config
    run: Run
    model: LanguageModel
    recipe: ResolvedRecipe
    dataset: Path
    use_self_edits: bool
    resume: bool
    should_stop: ShouldStop


def _as_registered(
    job: ExpertJob, store: FileExpertStore, card: Expert, trained: TrainedExpert
) -> Expert:
    """The expert with what its training gave; its place among other experts is kept."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    before = store.get(card.expert_id)
    first, best = trained.result.curve[0], trained.result.best
    metrics = {
        "validation_loss_before": first.validation_loss,
        "validation_loss": best.validation_loss,
        "train_seconds": trained.result.seconds,
        "tokens": float(trained.result.tokens),
    }
    return replace(
        card,
        created_at=before.created_at if before and before.created_at else now,
        last_trained=now,
        training_datasets=(str(job.dataset),),
        performance_metrics={k: v for k, v in metrics.items() if v is not None},
        is_active=before.is_active if before else True,
        parent_expert_id=before.parent_expert_id if before else None,
        child_expert_ids=before.child_expert_ids if before else (),
        model_architecture=job.model.name,
        checkpoint_path=str(store.folder(card.expert_id)),
        training_config=asdict(job.recipe.lora),
    )


def _provenance(job: ExpertJob, data: TrainingData, trained: TrainedExpert) -> dict[str, object]:
    """What goes into the expert's card besides the registry's fields."""
    recipe = job.recipe
    return {
        "base_digest": job.model.digest,
        "adapter_digest": trained.result.adapter.digest,
        "recipe": recipe.name,
        "recipe_source": recipe.measured,
        "strategy": recipe.strategy if job.use_self_edits else None,
        "strategy_source": describe_strategy(recipe) if job.use_self_edits else None,
        "generator": describe_generator(job.config) if job.use_self_edits else None,
        "seed": job.config.seed,
        "dataset_sha256": file_digest(job.dataset),
        "dataset_stats": trained.dataset_stats,
        "passages": [p.id for p in data.passages],
        "edits": len(data.edits),
        "drops": len(data.drops),
        "generation_failures": [asdict(f) for f in data.failures],
        "validation": data.validation.kind,
        "curve": [asdict(point) for point in trained.result.curve],
        "best_step": trained.result.best.step,
    }


def publish_expert(
    job: ExpertJob,
    store: FileExpertStore,
    card: Expert,
    data: TrainingData,
    trained: TrainedExpert,
    optimisation: Mapping[str, Any] | None = None,
) -> Expert:
    """Puts the expert's folder in place, whole, then its registry entry.

    Args:
        job: Its training.
        store: The registry.
        card: Its id, and what people call it.
        data: What it was trained on.
        trained: What the training gave.
        optimisation: What ReST-EM came to before; None without it.

    Returns:
        The expert as registered.

    Raises:
        StorageError: It cannot be written; what was there before is intact, or replaced whole.
    """
    expert = _as_registered(job, store, card, trained)
    provenance = {**_provenance(job, data, trained), "restem": optimisation}
    folder = store.folder(expert.expert_id)
    with guarded("make", folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
    sources = [trained.result.adapter.path / name for name in _ADAPTER_FILES]
    sources += [job.run.directory.path / name for name in (EXAMPLES_FILE, STATS_FILE)]
    sources.append(folder / "expert.json")  # keys of others in it survive
    with atomic_folder(folder) as building:
        for source in sources:
            if source.exists():
                atomic_write_bytes(building / source.name, read_bytes(source, _MAX_FILE_BYTES))
        atomic_write_text(building / "README.md", render_model_card(expert, provenance))
    store.save(expert)
    store.write_card(expert.expert_id, provenance)
    return expert


def expert_notes(
    job: ExpertJob, data: TrainingData, optimisation: Mapping[str, Any] | None = None
) -> tuple[str, ...]:
    """What a person should know of a training; takes the same as `publish_expert`."""
    notes = []
    if optimisation is not None:
        notes.append(f"ReST-EM: {optimisation['verdict']}")
        if optimisation["generator"] is None:
            notes.append("no generator was better, so the untrained model wrote the self-edits")
    if job.use_self_edits:
        notes.append(f"strategy {job.recipe.strategy} ({describe_strategy(job.recipe)})")
    if data.failures:
        notes.append(
            f"{len(data.failures)} passages have no self-edits, since generation failed; they "
            "were trained on as they are"
        )
    if data.validation.kind == "none":
        reason = "the data has no questions and too few passages to hold any back"
        if optimisation is not None:
            reason = "training.validation_fraction is 0"
        elif job.config.training.validation_fraction == 0:
            reason = "the data has no questions, and training.validation_fraction is 0"
        notes.append(f"nothing was validated: {reason}")
    return tuple(notes)
