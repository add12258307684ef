"""Training an expert as a job: data, training, evidence, and its entry in the registry."""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from aios.app.composition import Run, build_generator, cache_in_use, recipe_for, started_run
from aios.app.costs.measuring import keep_expert_costs
from aios.app.edits.generation_plan import check_input, ignore_reject, read_input
from aios.app.edits.journal import file_digest, generation_fingerprint, journalled_edits
from aios.app.experts.publishing import (
    EXAMPLES_FILE,
    STATS_FILE,
    ExpertJob,
    expert_notes,
    publish_expert,
    question_losses,
)
from aios.app.generators import check_generator, writing_model
from aios.app.models import load_model, load_trainer
from aios.app.restem.expert import (
    describe_optimisation,
    finished_state,
    optimize_for_expert,
    refuse_other_way,
    restem_run_of,
)
from aios.core.config.feature_flags import is_enabled
from aios.core.config.schemas import Config
from aios.core.errors import ExpertExistsError, UsageError
from aios.core.events import Notice
from aios.core.experts.registry import refuse_frozen, refuse_reserved
from aios.core.files import (
    atomic_write_bytes,
    atomic_write_json,
    encode_json,
    guarded,
    read_json,
)
from aios.core.protocols import Emit, LanguageModel, ShouldStop, ignore, never
from aios.core.seal.passage_edits import PassageEdits
from aios.core.training.auto_training_orchestrator import (
    AutoTrainingOrchestrator,
    Generate,
    TrainingData,
)
from aios.core.training.expert_trainer import TrainedExpert
from aios.core.training.expert_trainer import train_expert as fit_expert
from aios.core.trainings import TrainingResult
from aios.core.types import Expert, Passage
from aios.storage.experts import FileExpertStore

_SELECTED_FILE = "passages.jsonl"


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
        restem: What ReST-EM came to (`restem.expert.describe_optimisation`); None without it.
    """

    expert: Expert
    folder: Path
    run_dir: Path
    result: TrainingResult
    dataset_stats: dict[str, Any]
    notes: tuple[str, ...]
    restem: dict[str, Any] | None = None


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
    restem: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    only: Collection[str] | None = None,
    emit: Emit = ignore,
    should_stop: ShouldStop = never,
    model: LanguageModel | None = None,
) -> ExpertReport:
    """Trains an expert on a file of passages and registers it.

    An expert that is replaced is kept as an older version; name, description, category and goals
    that are not given stay as they were.

    Args:
        config: The resolved config.
        expert_id: The new expert's id, also the name of its folder.
        dataset: Passages, maybe with questions, which are then what validation is done on.
        name: Name for people; the id by default.
        description: What it knows.
        category: A word to group experts by.
        goals: What it is for.
        use_self_edits: Whether to train on self-edits besides the passages.
        restem: Whether to optimise the generator by ReST-EM first, on part of the passages, as
            ``seal.enable_rl_optimization`` does; the rest is validated on.
        overwrite: Replace an expert, or an interrupted training, of that id.
        resume: Go on with an interrupted training of that id.
        only: Ids of the passages of the file that are used; None for all.
        emit: Shows events.
        should_stop: Asked at every step.
        model: The base model; loaded from the config by default.

    Returns:
        The expert as registered, its folder, and the training's result.

    Raises:
        ExpertExistsError: The id is taken, or an interrupted training of it is there.
        FrozenExpertError: The expert of that id is frozen.
        UsageError: Input or config cannot be used; nothing was started.
        StorageError: The run or the expert cannot be written.
        RunInterrupted: `should_stop` said so; the training can be resumed.
    """
    store = FileExpertStore(config.paths.artifacts / "experts", config.model.name)
    path = _run_path(config, store, expert_id, overwrite=overwrite, resume=resume)
    check_input(dataset)
    use_self_edits = use_self_edits and _may_write(config)
    restem = _wants_restem(config, use_self_edits=use_self_edits, asked=restem)
    if resume:
        refuse_other_way(path, restem=restem, has_work=_has_work(path))
    if use_self_edits:
        check_generator(config)
    else:  # none writes
        config = _with_generator(config, None)
    if not resume:
        _set_aside(path)
    began = time.monotonic()
    card = Expert(expert_id, name or "", description, category, tuple(goals))
    with started_run(config, "train-expert", emit, path=path, resume=resume) as run:
        model = model or load_model(config, emit=run.emit)
        recipe = recipe_for(config, model)
        job = ExpertJob(
            config,
            run,
            model,
            recipe,
            dataset,
            use_self_edits,
            resume,
            should_stop,
            data_file=dataset if only is None else _selected(config, run, model, dataset, only),
            overwrite=overwrite,
        )
        if restem:
            return _train_with_restem(job, store, card, emit)
        data = _prepare(job)
        trained = _fit(job, expert_id, data)
        keep_expert_costs(job, data, trained, time.monotonic() - began)
        return _register(job, store, card, data, trained)


def _may_write(config: Config) -> bool:
    """Whether the settings allow self-edits at all."""
    return config.seal.enabled and is_enabled("enable_seal_self_edits", config.features)


def _wants_restem(config: Config, *, use_self_edits: bool, asked: bool) -> bool:
    """Whether the generator is to be optimised first.

    Raises:
        UsageError: It is asked for, and nothing is to be written, or a generator is given.
    """
    if asked and not use_self_edits:
        raise UsageError(
            "ReST-EM optimises the writing of self-edits, and none are to be written",
            "leave out --restem, or allow self-edits",
        )
    wanted = use_self_edits and (asked or config.seal.enable_rl_optimization)
    if wanted and config.seal.generator is not None:
        raise UsageError(
            "ReST-EM begins with the base model, and a generator is given",
            "leave out seal.generator (--seal-generator), or ReST-EM (--restem)",
        )
    return wanted


def _with_generator(config: Config, folder: Path | None) -> Config:
    seal = config.seal.model_copy(update={"generator": folder})
    return config.model_copy(update={"seal": seal})


def _train_with_restem(
    job: ExpertJob, store: FileExpertStore, card: Expert, display: Emit
) -> ExpertReport:
    """Optimises the generator, then has the best one write, and trains and publishes the expert."""
    optimisation: dict[str, Any] = {}

    def optimize(passages: Sequence[Passage]) -> Generate:
        nonlocal job
        report = optimize_for_expert(
            job.config,
            job.run,
            job.model,
            passages,
            display=display,
            should_stop=job.should_stop,
        )
        optimisation.update(describe_optimisation(report, len(passages)))
        config = _with_generator(job.config, report.generator)
        job = replace(job, config=config, recipe=recipe_for(config, job.model))
        return partial(_write, job)

    def fit(expert_id: str, data: TrainingData) -> TrainedExpert:
        _keep(job, data)
        return _fit(job, expert_id, data)

    made = AutoTrainingOrchestrator(
        job.config, model=job.model, optimize=optimize, fit=fit
    ).train_expert_with_restem(
        card.expert_id, job.data_file, job.config.training.validation_fraction
    )
    optimisation["validated_on"] = len(made.validated_on)
    return _register(job, store, card, made.data, made.trained, optimisation)


def _fit(job: ExpertJob, expert_id: str, data: TrainingData) -> TrainedExpert:
    """Trains the adapter; its checkpoints stay until the expert is registered."""
    return fit_expert(
        data,
        trainer=load_trainer(job.config, job.model),
        recipe=job.recipe,
        seed=job.config.seed,
        output_dir=job.run.directory.checkpoints / expert_id,
        use_self_edits=job.use_self_edits,
        resume=job.resume,
        emit=job.run.emit,
        should_stop=job.should_stop,
    )


def _register(
    job: ExpertJob,
    store: FileExpertStore,
    card: Expert,
    data: TrainingData,
    trained: TrainedExpert,
    optimisation: dict[str, Any] | None = None,
) -> ExpertReport:
    """Publishes the expert; the state is committed last."""
    run = job.run
    atomic_write_json(run.directory.path / STATS_FILE, trained.dataset_stats)
    losses = question_losses(job, load_trainer(job.config, job.model), data, trained)
    expert = publish_expert(job, store, card, data, trained, losses, optimisation)
    run.directory.commit_state(finished_state(restem_run_of(run.directory.path)))
    shutil.rmtree(run.directory.checkpoints / card.expert_id, ignore_errors=True)
    notes = expert_notes(job, data, optimisation)
    for note in notes:
        run.emit(Notice(note))
    return ExpertReport(
        expert,
        store.folder(card.expert_id),
        run.directory.path,
        trained.result,
        trained.dataset_stats,
        notes,
        optimisation,
    )


def _run_path(
    config: Config, store: FileExpertStore, expert_id: str, *, overwrite: bool, resume: bool
) -> Path:
    """The run directory of an expert's training, after all refusals."""
    if overwrite and resume:
        raise UsageError("--overwrite and --resume exclude each other", "give one of them")
    store.folder(expert_id)  # refuses an id that is not valid
    path = config.paths.artifacts / "runs" / f"train-expert-{expert_id}"
    unfinished = (path / "run.json").exists() and not _is_finished(path)
    known = store.get(expert_id)
    if known is None:
        refuse_reserved(expert_id)
    else:
        refuse_frozen(known, "trained")
    if resume and not unfinished:
        raise UsageError(
            f"there is no interrupted training of expert {expert_id!r}",
            "start one without --resume",
        )
    if resume or overwrite:
        return path
    if known is not None:
        raise ExpertExistsError(
            f"expert {expert_id!r} exists already", "choose another id, or give --overwrite"
        )
    if store.folder(expert_id).exists() and not unfinished:
        raise ExpertExistsError(
            f"{store.folder(expert_id)} is there, but not in the registry",
            "move it away, choose another id, or give --overwrite",
        )
    if unfinished and _has_work(path):
        raise ExpertExistsError(
            f"a training of expert {expert_id!r} was interrupted",
            "go on with --resume, or start over with --overwrite",
        )
    return path


def _is_finished(path: Path) -> bool:
    """Whether a run has committed its last state."""
    state = read_json(path / "state.json", default=None)
    return isinstance(state, dict) and state.get("finished") is True


def _has_work(path: Path) -> bool:
    """Whether a run has finished anything that would be lost; one that was refused has not."""
    begun = (path / "edits.journal").exists() or any((path / "checkpoints").glob("*"))
    return begun or restem_run_of(path) is not None


def _set_aside(path: Path) -> None:
    """Keeps an earlier run of the same expert under a name with its time."""
    if not path.exists():
        return
    with guarded("move aside", path):
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(path.stat().st_mtime))
        target, number = path.with_name(f"{path.name}.{stamp}"), 1
        while target.exists():
            target, number = path.with_name(f"{path.name}.{stamp}-{number}"), number + 1
        path.rename(target)


def _selected(
    config: Config, run: Run, model: LanguageModel, dataset: Path, only: Collection[str]
) -> Path:
    """Writes the chosen passages of a file, as they were read, into the run's directory."""
    chosen = [
        {
            "id": passage.id,
            "title": passage.title,
            "text": passage.text,
            "questions": [asdict(question) for question in passage.questions],
        }
        for passage in read_input(config, dataset, model, ignore_reject)
        if passage.id in only
    ]
    path = run.directory.path / _SELECTED_FILE
    _write_lines(path, chosen)
    return path


def _prepare(job: ExpertJob) -> TrainingData:
    """Reads the data, has self-edits written, and keeps both in the run directory."""
    orchestrator = AutoTrainingOrchestrator(
        job.config, model=job.model, generate=partial(_write, job)
    )
    data = orchestrator.prepare_training_data(job.data_file, job.use_self_edits)
    _keep(job, data)
    return data


def _write(job: ExpertJob, passages: Sequence[Passage]) -> list[PassageEdits]:
    """Has self-edits written, by the base model or the config's generator; journalled."""
    config, run = job.config, job.run
    with (
        cache_in_use(config, run.emit) as cache,
        writing_model(config, job.model, emit=run.emit) as writes,
    ):
        generator = build_generator(config, writes, job.recipe, cache=cache, emit=run.emit)
        fingerprint = generation_fingerprint(config, file_digest(job.data_file), generator)
        return journalled_edits(
            config, run, generator, tuple(passages), fingerprint, job.should_stop
        )


def _keep(job: ExpertJob, data: TrainingData) -> None:
    """Keeps the data of a training in its run directory."""
    run = job.run
    if data.rejects:
        run.directory.add_rejects(*(asdict(reject) for reject in data.rejects))
        run.emit(Notice(f"{len(data.rejects)} records of {job.dataset} were left out", "warning"))
    examples = data.augmented if job.use_self_edits else data.original
    _write_lines(run.directory.path / EXAMPLES_FILE, [asdict(e) for e in examples])
    _write_lines(run.directory.path / "dropped.jsonl", [asdict(d) for d in data.drops])


def _write_lines(path: Path, records: Sequence[dict[str, Any]]) -> None:
    atomic_write_bytes(path, b"".join(encode_json(record) + b"\n" for record in records))
