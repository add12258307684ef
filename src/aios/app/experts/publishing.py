"""An expert that has been trained: its registry entry, its card and its folder.

Takes what a training gave; puts the expert's folder in place, whole, and then registers it. The
folder that it replaces is kept as an older version (`storage.expert_versions`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from aios.app.composition import Run, describe_strategy
from aios.app.edits.journal import file_digest
from aios.app.experts.model_card import render_model_card
from aios.app.generators import describe_generator
from aios.core.config.recipes import ResolvedRecipe
from aios.core.config.schemas import Config
from aios.core.data.probes import make_probes
from aios.core.errors import UsageError
from aios.core.experts.provenance import (
    DOCUMENTS_FILE,
    documents_of,
    encode_documents,
    mean_losses,
)
from aios.core.files import atomic_write_bytes, atomic_write_text, read_bytes
from aios.core.protocols import AdapterTrainer, LanguageModel, ShouldStop
from aios.core.training.auto_training_orchestrator import TrainingData
from aios.core.training.expert_trainer import TrainedExpert
from aios.core.types import Expert
from aios.storage.expert_versions import ExpertVersions
from aios.storage.experts import FileExpertStore

EXAMPLES_FILE = "augmented.jsonl"
STATS_FILE = "dataset_stats.json"
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "training.json")
_MAX_FILE_BYTES = 8 << 30
_RECORDED: tuple[str, ...] = (
    *("seed", "model", "seal", "restem", "training", "data", "evaluation"),
    *("features", "recipes"),
)


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
        data_file: What is read: the dataset, or the part of it that is used.
        overwrite: Whether an expert of that id is to be replaced.
    """

    config: Config
    run: Run
    model: LanguageModel
    recipe: ResolvedRecipe
    dataset: Path
    use_self_edits: bool
    resume: bool
    should_stop: ShouldStop
    data_file: Path
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class QuestionLosses:
    """Mean loss of each passage's validation questions (nats a token), by passage id.

    Attributes:
        before: Under the base model.
        after: Under the expert.
    """

    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)


def question_losses(
    job: ExpertJob, trainer: AdapterTrainer, data: TrainingData, trained: TrainedExpert
) -> QuestionLosses:
    """How well the questions of each passage are answered, without the expert and with it.

    It costs as much as two evaluations of the training. Nothing is scored where the expert was
    not validated on questions.

    Raises:
        BackendError: Scoring failed; the training is kept, and can be gone on with.
    """
    if data.validation.kind != "questions":
        return QuestionLosses()
    questions = {p.id: p.questions for p in data.passages if p.questions}
    validated = set(data.validation.requests)
    probes = make_probes(questions, job.config.evaluation.question_template)
    asked = [probe for probe in probes if probe.request in validated]
    passages, requests = [p.passage_id for p in asked], [p.request for p in asked]
    before = mean_losses(passages, [score.loss for score in job.model.score(requests)])
    expert = trainer.attach(trained.result.adapter)
    try:
        after = mean_losses(passages, [score.loss for score in expert.score(requests)])
    finally:
        trainer.detach(expert)
    return QuestionLosses(before, after)


def _as_registered(
    job: ExpertJob, folder: Path, card: Expert, trained: TrainedExpert, before: Expert | None
) -> Expert:
    """The expert with what its training gave; its place among other experts is kept."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    first, best = trained.result.curve[0], trained.result.best
    metrics = {
        "validation_loss_before": first.validation_loss,
        "validation_loss": best.validation_loss,
        "train_seconds": trained.result.seconds,
        "tokens": float(trained.result.tokens),
    }
    old = before or Expert(card.expert_id, card.expert_id)
    return replace(
        card,
        name=card.name or old.name,
        description=card.description or old.description,
        category=card.category or old.category,
        goals=card.goals or old.goals,
        created_at=old.created_at or now,
        last_trained=now,
        training_datasets=(str(job.dataset),),
        performance_metrics={k: v for k, v in metrics.items() if v is not None},
        is_active=old.is_active,
        parent_expert_id=old.parent_expert_id,
        child_expert_ids=old.child_expert_ids,
        model_architecture=job.model.name,
        checkpoint_path=str(folder),
        training_config=asdict(job.recipe.lora),
    )


def recorded_settings(config: Config, *, optimised: bool) -> dict[str, Any]:
    """The settings that decide what an expert becomes, as its card keeps them.

    Those of the machine (devices, folders, endpoints) are not among them, but for the folder of
    a generator that was given.

    Args:
        config: The resolved config.
        optimised: Whether its generator was made for this expert, by ReST-EM.
    """
    document = config.model_dump(mode="json", include=set(_RECORDED))
    document["model"] = {"name": config.model.name}
    for key in ("cache_dir", "max_cache_size_gb"):
        del document["seal"][key]
    if optimised:
        document["seal"]["generator"] = None
    return document


def with_recorded_settings(config: Config, recorded: Mapping[str, Any]) -> Config:
    """A config with the settings of an expert's card in place of its own.

    Raises:
        UsageError: They are not of this version of the program.
    """
    document = config.model_dump(mode="json")
    for name in _RECORDED:
        section = recorded.get(name)
        if isinstance(section, Mapping) and name in ("model", "seal"):
            document[name] = {**document[name], **section}
        elif section is not None:
            document[name] = section
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, fault["loc"]))
        raise UsageError(
            f"the settings that the expert was trained with cannot be used: {place}: "
            f"{fault['msg']}",
            "train it anew with `aios hrm-hf train-expert --overwrite`",
        ) from error


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
        "dataset": str(job.dataset.resolve()),
        "dataset_sha256": file_digest(job.dataset),
        "dataset_stats": trained.dataset_stats,
        "documents": DOCUMENTS_FILE,
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
    losses: QuestionLosses,
    optimisation: Mapping[str, Any] | None = None,
) -> Expert:
    """Puts the expert's folder in place, whole, then its registry entry.

    Args:
        job: Its training.
        store: The registry.
        card: Its id, and what people call it; what is empty stays as it was.
        data: What it was trained on.
        trained: What the training gave.
        losses: `question_losses` of it.
        optimisation: What ReST-EM came to before; None without it.

    Returns:
        The expert as registered.

    Raises:
        FrozenExpertError: It was frozen while it was trained.
        StorageError: It cannot be written; what was there before is intact, or replaced whole.
    """
    settings = recorded_settings(job.config, optimised=optimisation is not None)
    provenance = _provenance(job, data, trained) | {"restem": optimisation, "settings": settings}
    documents = documents_of(
        data, use_self_edits=job.use_self_edits, before=losses.before, after=losses.after
    )
    folder = store.folder(card.expert_id)
    sources = [trained.result.adapter.path / name for name in _ADAPTER_FILES]
    sources += [job.run.directory.path / name for name in (EXAMPLES_FILE, STATS_FILE)]

    def register(before: Expert | None) -> Expert:
        return _as_registered(job, folder, card, trained, before)

    def fill(building: Path) -> None:
        for source in sources:
            if source.exists():
                atomic_write_bytes(building / source.name, read_bytes(source, _MAX_FILE_BYTES))
        atomic_write_bytes(building / DOCUMENTS_FILE, encode_documents(documents))
        shown = render_model_card(register(store.get(card.expert_id)), provenance)
        atomic_write_text(building / "README.md", shown)

    return ExpertVersions(store).install(
        card.expert_id, fill, register, card=provenance, replaces_equal=not job.overwrite
    )


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
