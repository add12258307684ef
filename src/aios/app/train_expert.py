"""Training an expert as a job: data, training, evidence, and its entry in the registry."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from aios.app.composition import (
    Run,
    build_generator,
    cache_in_use,
    describe_strategy,
    recipe_for,
    started_run,
)
from aios.app.generate import (
    check_input,
    file_digest,
    generation_fingerprint,
    journalled_batches,
)
from aios.app.model_card import render_model_card
from aios.app.models import load_model, load_trainer
from aios.core.config.feature_flags import is_enabled
from aios.core.config.recipes import ResolvedRecipe
from aios.core.config.schemas import Config
from aios.core.errors import ExpertExistsError, UsageError
from aios.core.events import Notice, StageFinished, StageProgress, StageStarted
from aios.core.files import atomic_write_bytes, atomic_write_json, atomic_write_text, read_bytes
from aios.core.folders import atomic_folder
from aios.core.protocols import Emit, LanguageModel, ShouldStop, ignore, never
from aios.core.seal.cache import SelfEditCache
from aios.core.seal.self_edit_generator import PassageEdits
from aios.core.training.auto_training_orchestrator import AutoTrainingOrchestrator, TrainingData
from aios.core.training.expert_trainer import TrainedExpert
from aios.core.training.expert_trainer import train_expert as fit_expert
from aios.core.types import Expert, Passage, TrainingResult
from aios.storage.experts import FileExpertStore
from aios.storage.journal import Journal

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "training.json")
_MAX_ADAPTER_BYTES = 8 << 30


@dataclass(frozen=True, slots=True)
class ExpertReport:
    """What an expert's training gave.

    Attributes:
        expert: The expert as registered.
        folder: Its folder, in PEFT layout.
        run_dir: The run directory: events, augmented data, rejects.
        result: The training's result.
        dataset_stats: See `core.training.expert_trainer.log_dataset_stats`.
        notes: What a person should know.
    """

    expert: Expert
    folder: Path
    run_dir: Path
    result: TrainingResult
    dataset_stats: dict[str, Any]
    notes: tuple[str, ...]


def train_expert(
    config: Config,
    expert_id: str,
    dataset: Path,
    *,
    name: str | None = None,
    description: str = "",
    category: str = "",
    goals: Sequence[str] = (),
    use_self_edits: bool = True,
    overwrite: bool = False,
    resume: bool = False,
    emit: Emit = ignore,
    should_stop: ShouldStop = never,
    model: LanguageModel | None = None,
) -> ExpertReport:
    """Trains an expert on a file of passages and registers it.

    Args:
        config: The resolved config.
        expert_id: The new expert's id, also the name of its folder.
        dataset: Passages, maybe with questions, which are then what validation is done on.
        name: Name for people; the id by default.
        description: What it knows.
        category: A word to group experts by.
        goals: What it is for.
        use_self_edits: Whether to train on self-edits besides the passages.
        overwrite: Replace an expert, or an interrupted training, of that id.
        resume: Go on with an interrupted training of that id.
        emit: Shows events.
        should_stop: Asked at every step.
        model: The base model; loaded from the config by default.

    Raises:
        ExpertExistsError: The id is taken, or an interrupted training of it is there.
        UsageError: Input or config cannot be used; nothing was started.
        RunInterrupted: `should_stop` said so; the training can be resumed.
    """
    store = FileExpertStore(config.paths.artifacts / "experts", config.model.name)
    path = _run_path(config, store, expert_id, overwrite=overwrite, resume=resume)
    check_input(dataset)
    use_self_edits = use_self_edits and is_enabled("enable_seal_self_edits", config.features)
    if overwrite:
        _set_aside(path)
    with started_run(config, "train-expert", emit, path=path, resume=resume) as run:
        model = model or load_model(config, emit=run.emit)
        recipe = recipe_for(config, model)
        with cache_in_use(config, run.emit) as cache:
            data = _prepare(
                config, run, model, recipe, dataset, cache, use_self_edits, should_stop
            )
        _save_data(run, data, use_self_edits)
        trained = fit_expert(
            data,
            trainer=load_trainer(config, model),
            recipe=recipe,
            seed=config.seed,
            output_dir=run.directory.checkpoints / expert_id,
            use_self_edits=use_self_edits,
            resume=resume,
            emit=run.emit,
            should_stop=should_stop,
        )
        atomic_write_json(run.directory.path / "dataset_stats.json", trained.dataset_stats)
        expert = _expert(
            store, expert_id, name, description, category, goals, dataset, model, recipe, trained
        )
        provenance = _provenance(config, model, recipe, dataset, data, trained, use_self_edits)
        _publish(store, expert, trained, provenance)
        shutil.rmtree(run.directory.checkpoints / expert_id, ignore_errors=True)
        run.directory.commit_state({"finished": True})
        notes = _notes(data, recipe, use_self_edits)
        for note in notes:
            run.emit(Notice(note))
    return ExpertReport(
        expert, store.folder(expert_id), path, trained.result, trained.dataset_stats, notes
    )


def _run_path(
    config: Config, store: FileExpertStore, expert_id: str, *, overwrite: bool, resume: bool
) -> Path:
    """The run directory of an expert's training, after all refusals."""
    if overwrite and resume:
        raise UsageError("--overwrite and --resume exclude each other", "give one of them")
    store.folder(expert_id)  # refuses an id that is not valid
    path = config.paths.artifacts / "runs" / f"train-expert-{expert_id}"
    interrupted = (path / "run.json").exists() and not (path / "state.json").exists()
    known = store.get(expert_id)
    if known is not None and known.is_frozen:
        raise ExpertExistsError(
            f"expert {expert_id!r} is frozen and cannot be trained", "unfreeze it first"
        )
    if resume:
        if not interrupted:
            raise UsageError(
                f"there is no interrupted training of expert {expert_id!r}",
                "start one without --resume",
            )
    elif not overwrite and known is not None:
        raise ExpertExistsError(
            f"expert {expert_id!r} exists already", "choose another id, or give --overwrite"
        )
    elif not overwrite and interrupted:
        raise ExpertExistsError(
            f"a training of expert {expert_id!r} was interrupted",
            "go on with --resume, or start over with --overwrite",
        )
    elif path.exists() and not overwrite:  # the expert is gone, its last run is kept
        _set_aside(path)
    return path


def _set_aside(path: Path) -> None:
    """Keeps an earlier run of the same expert under a name with its time."""
    if path.exists():
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(path.stat().st_mtime))
        target, number = path.with_name(f"{path.name}.{stamp}"), 1
        while target.exists():
            target, number = path.with_name(f"{path.name}.{stamp}-{number}"), number + 1
        path.rename(target)


def _prepare(
    config: Config,
    run: Run,
    model: LanguageModel,
    recipe: ResolvedRecipe,
    dataset: Path,
    cache: SelfEditCache | None,
    use_self_edits: bool,
    should_stop: ShouldStop,
) -> TrainingData:
    """Reads the data and has self-edits written, journalled in the run directory."""
    generator = build_generator(config, model, recipe, cache=cache, emit=run.emit)

    def generate(passages: Sequence[Passage]) -> Iterator[PassageEdits]:
        fingerprint = generation_fingerprint(config, file_digest(dataset), generator)
        began, done, kept = time.monotonic(), 0, 0
        run.emit(StageStarted("self-edits", len(passages), "passages"))
        with Journal(run.directory.path / "edits.journal", fingerprint) as journal:
            batches = journalled_batches(
                generator, iter(passages), journal, should_stop, run.emit
            )
            for batch, _ in batches:
                yield from batch.passages
                done += len(batch.passages)
                kept += sum(len(result.kept) for result in batch.passages)
                run.emit(StageProgress("self-edits", done, f"{kept} edits"))
        run.emit(StageFinished("self-edits", time.monotonic() - began, f"{kept} edits"))

    orchestrator = AutoTrainingOrchestrator(
        config, model=model, generator=generator, generate=generate
    )
    data = orchestrator.prepare_training_data(dataset, augment_with_self_edits=use_self_edits)
    if data.rejects:
        run.directory.add_rejects(*(asdict(reject) for reject in data.rejects))
        run.emit(Notice(f"{len(data.rejects)} records of {dataset} were left out", "warning"))
    return data


def _save_data(run: Run, data: TrainingData, use_self_edits: bool) -> None:
    """Keeps what is trained on, and what was dropped, for inspection."""
    examples = data.augmented if use_self_edits else data.original
    _write_lines(run.directory.path / "augmented.jsonl", [asdict(e) for e in examples])
    _write_lines(run.directory.path / "dropped.jsonl", [asdict(d) for d in data.drops])


def _write_lines(path: Path, records: Sequence[dict[str, Any]]) -> None:
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    atomic_write_text(path, "".join(f"{line}\n" for line in lines))


def _expert(
    store: FileExpertStore,
    expert_id: str,
    name: str | None,
    description: str,
    category: str,
    goals: Sequence[str],
    dataset: Path,
    model: LanguageModel,
    recipe: ResolvedRecipe,
    trained: TrainedExpert,
) -> Expert:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    before = store.get(expert_id)
    first, best = trained.result.curve[0], trained.result.best
    metrics = {
        "validation_loss_before": first.validation_loss,
        "validation_loss": best.validation_loss,
        "train_seconds": trained.result.seconds,
        "tokens": float(trained.result.tokens),
    }
    return Expert(
        expert_id=expert_id,
        name=name or expert_id,
        description=description,
        category=category,
        goals=tuple(goals),
        created_at=before.created_at if before else now,
        last_trained=now,
        training_datasets=(str(dataset),),
        performance_metrics={k: v for k, v in metrics.items() if v is not None},
        model_architecture=model.name,
        checkpoint_path=str(store.folder(expert_id)),
        training_config=asdict(recipe.lora),
    )


def _provenance(
    config: Config,
    model: LanguageModel,
    recipe: ResolvedRecipe,
    dataset: Path,
    data: TrainingData,
    trained: TrainedExpert,
    use_self_edits: bool,
) -> dict[str, object]:
    """What goes into the expert's card besides the registry's fields."""
    return {
        "base_digest": model.digest,
        "adapter_digest": trained.result.adapter.digest,
        "recipe": recipe.name,
        "recipe_source": recipe.measured,
        "strategy": recipe.strategy if use_self_edits else None,
        "strategy_source": describe_strategy(recipe) if use_self_edits else None,
        "seed": config.seed,
        "dataset_sha256": file_digest(dataset),
        "dataset_stats": trained.dataset_stats,
        "passages": [p.id for p in data.passages],
        "edits": len(data.edits),
        "drops": len(data.drops),
        "generation_failures": [asdict(f) for f in data.failures],
        "validation": data.validation.kind,
        "curve": [asdict(point) for point in trained.result.curve],
        "best_step": trained.result.best.step,
    }


def _publish(
    store: FileExpertStore, expert: Expert, trained: TrainedExpert, provenance: dict[str, object]
) -> None:
    """Puts the expert's folder in place, whole, then its registry entry."""
    folder = store.folder(expert.expert_id)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as building:
        for name in _ADAPTER_FILES:
            source = trained.result.adapter.path / name
            if source.exists():
                atomic_write_bytes(building / name, read_bytes(source, _MAX_ADAPTER_BYTES))
        atomic_write_text(building / "README.md", render_model_card(expert, provenance))
    store.save(expert)
    store.write_card(expert.expert_id, provenance)


def _notes(data: TrainingData, recipe: ResolvedRecipe, use_self_edits: bool) -> tuple[str, ...]:
    notes = []
    if use_self_edits:
        notes.append(f"strategy {recipe.strategy} ({describe_strategy(recipe)})")
    if data.failures:
        notes.append(
            f"{len(data.failures)} passages have no self-edits, since generation failed; they "
            "were trained on as they are"
        )
    if data.validation.kind == "none":
        notes.append("nothing was validated: the data has no questions and one passage only")
    return tuple(notes)
