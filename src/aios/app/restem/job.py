"""ReST-EM as a job: a file of passages in, a better generator of self-edits out.

Takes the config and a file of passages with questions; gives a run directory with everything that
was written, tried and learned, and the best generator in a folder of its own. A run that was
stopped or killed goes on from there (`resume`) and ends with the same numbers.
"""

from __future__ import annotations

import platform
import shlex
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from aios.app.composition import (
    Run,
    build_generator,
    cache_in_use,
    recipe_for,
    recipe_named,
    started_run,
    watched,
)
from aios.app.generation_plan import check_input, read_input
from aios.app.models import load_model, load_trainer
from aios.app.restem.folders import clear_stop, stop_requested
from aios.app.restem.forecast import estimate_beside_actual, foretell
from aios.app.restem.results import publish_best, write_results
from aios.app.restem.rounds import RecordedRounds, RunFacts
from aios.app.restem.settings import arms_of, reward_function, settings_of
from aios.app.trials import open_executor
from aios.core.config.recipes import ResolvedRecipe
from aios.core.config.schemas import Config
from aios.core.data.rejects import Reject
from aios.core.data.splits import split_by_group
from aios.core.errors import DataError, StorageError, UsageError
from aios.core.events import Notice
from aios.core.files import atomic_write_json, read_json
from aios.core.protocols import Emit, Executor, LanguageModel, ShouldStop, ignore, never
from aios.core.restem import ReSTEMState
from aios.core.seal.generator_card import passage_hash
from aios.core.seal.restem_optimizer import ReSTEMOptimizer
from aios.core.seal.test_time_training import TTTTrainer, own_bench
from aios.core.types import Passage, content_hash
from aios.storage.generators import refuse_other_files
from aios.storage.runs import package_versions

KIND = "restem"
_PLAN = "plan.json"
_MOST_NAMES = 3  # of what differs
_BANK = 8  # trials that a worker is handed at a time: a batch of passages keeps several busy


@dataclass(frozen=True, slots=True)
class ReSTEMReport:
    """What a run gave.

    Attributes:
        run_dir: The run directory.
        state: Its last state.
        generator: Folder of the best generator; None where the untrained one is best.
        report_html: The report, one self-contained page.
        metrics_json: All numbers.
        metrics: The content of that file.
    """

    run_dir: Path
    state: ReSTEMState
    generator: Path | None
    report_html: Path
    metrics_json: Path
    metrics: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RestemData:
    """The passages of a run.

    Attributes:
        train: Passages that are optimised on.
        held_out: Passages that generators are compared on.
        without_questions: Passages that were left out, since nothing can be rewarded on them.
        rejects: Records of the file that could not be used.
    """

    train: tuple[Passage, ...]
    held_out: tuple[Passage, ...]
    without_questions: int = 0
    rejects: tuple[Reject, ...] = ()


def optimize(
    config: Config,
    dataset: Path,
    output_generator: Path | None,
    *,
    run_dir: Path | None = None,
    resume: bool = False,
    emit: Emit = ignore,
    should_stop: ShouldStop = never,
    model: LanguageModel | None = None,
) -> ReSTEMReport:
    """Improves the generator of self-edits by ReST-EM.

    Args:
        config: The resolved config; `seal`, `restem`, `training`, `data`, `evaluation` count.
        dataset: Passages with questions.
        output_generator: Where the best generator is put besides the run directory; None: nowhere.
        run_dir: The run directory; by default a new one below ``<artifacts>/runs``.
        resume: Go on with the run in `run_dir`.
        emit: Shows events.
        should_stop: Asked between and during trials and trainings.
        model: The base model; loaded from the config by default.

    Raises:
        UsageError: Data or config cannot be used, or the run is on other data or settings.
        BackendError: Writing or training failed, or too many trials did; what is done is kept.
        StorageError: The run or the generator cannot be written.
        RunInterrupted: `should_stop` said so, or `aios seal restem stop`; the run can be resumed.
    """
    if resume and run_dir is None:
        raise UsageError("to resume needs the run to go on with", "name it with --resume RUN")
    if config.seal.generator is not None:
        raise UsageError(
            "seal.generator is set, and ReST-EM begins with the base model", "leave it out"
        )
    arms_of(config, recipe_named(config, config.model.name))
    check_input(dataset)
    if output_generator is not None:
        refuse_other_files(output_generator)
    with started_run(config, KIND, emit, path=run_dir, resume=resume) as run:
        clear_stop(run.directory.path)
        model = model or load_model(config, emit=run.emit)
        recipe = recipe_for(config, model)
        data = read_data(config, dataset, model)
        facts = facts_of(dataset, data)
        begun = keep_plan(run, plan_of(facts, config, model, recipe))
        _tell(run, data, again=begun)
        job = _Job(config, run, model, recipe, data, facts)
        if config.restem.estimate and not resume:
            foretell(config, dataset, model, run)

        def asked_to_stop() -> bool:
            return should_stop() or stop_requested(run.directory.path)

        state = _optimize(job, asked_to_stop)
        return _finish(job, state, output_generator)


@dataclass(frozen=True, slots=True)
class _Job:
    """What every step needs."""

    config: Config
    run: Run
    model: LanguageModel
    recipe: ResolvedRecipe
    data: RestemData
    facts: RunFacts

    def rounds(self, should_stop: ShouldStop) -> RecordedRounds:
        """The run's directory as a store."""
        settings = settings_of(self.config, self.recipe)
        return RecordedRounds(self.config, self.run, self.model, settings, self.facts, should_stop)


def read_data(config: Config, dataset: Path, model: LanguageModel) -> RestemData:
    """Reads the passages and holds some of them out, whole near-duplicate groups at a time.

    Raises:
        DataError: The file cannot be used, or no passage has questions.
    """
    rejects: list[Reject] = []
    passages = list(read_input(config, dataset, model, rejects.append))
    asked = [passage for passage in passages if passage.questions]
    if not asked:
        raise DataError(
            f"no passage of {dataset} has questions, so no self-edit can be rewarded",
            "add questions to the passages",
        )
    fraction = config.restem.held_out_fraction
    train, held_out = split_by_group(
        asked, fraction, config.seed, threshold=config.data.near_duplicate_threshold
    )
    return RestemData(train, held_out, len(passages) - len(asked), tuple(rejects))


@dataclass(frozen=True, slots=True)
class RestemPlan:
    """What a run would do.

    Attributes:
        passages: Passages to optimise on.
        held_out: Held-out passages.
        without_questions: Passages left out.
        rejected: Records that could not be used.
        arms: Strategies.
        rounds: Rounds at most.
        passages_per_round: Passages of a round.
        candidates: Candidates of a round.
        trials: Trials of a round, baselines included, if every candidate can be tried.
        held_out_trials: The same for the examination on held-out passages.
    """

    passages: int
    held_out: int
    without_questions: int
    rejected: int
    arms: tuple[str, ...]
    rounds: int
    passages_per_round: int
    candidates: int
    trials: int
    held_out_trials: int


def plan_restem(
    config: Config, dataset: Path, *, model: LanguageModel | None = None, emit: Emit = ignore
) -> RestemPlan:
    """Reads the data and counts the work of a run; nothing is written.

    Raises:
        UsageError: Data or config cannot be used.
    """
    check_input(dataset)
    model = model or load_model(config, emit=emit)
    data = read_data(config, dataset, model)
    arms = arms_of(config, recipe_for(config, model))
    restem, count = config.restem, config.seal.restem_candidates_per_passage
    passages = min(config.seal.restem_batch_size, len(data.train))

    def trials(candidates: int) -> int:
        again = min(2, candidates) if restem.racing and restem.repeats > 1 else candidates
        baselines = restem.repeats if restem.baseline == "passage" else 0
        return baselines + candidates + (restem.repeats - 1) * again

    return RestemPlan(
        passages=len(data.train),
        held_out=len(data.held_out),
        without_questions=data.without_questions,
        rejected=len(data.rejects),
        arms=arms,
        rounds=config.seal.restem_iterations,
        passages_per_round=passages,
        candidates=passages * count,
        trials=passages * trials(count),
        held_out_trials=len(data.held_out) * trials(restem.held_out_candidates),
    )


def _optimize(job: _Job, should_stop: ShouldStop) -> ReSTEMState:
    config, run, model = job.config, job.run, job.model
    arms = arms_of(config, job.recipe)
    mix = ",".join(f"{arm}:1" for arm in arms)
    writing = replace(job.recipe, strategy=mix, num_edits_per_passage=len(arms))
    settings = settings_of(config, job.recipe)
    with (
        watched(config, run, KIND, should_stop) as watch,
        cache_in_use(config, watch.emit) as cache,
        executor_of(config, model) as executor,
    ):
        optimizer = ReSTEMOptimizer(
            build_generator(config, model, writing, cache=cache, emit=watch.emit),
            TTTTrainer(
                recipe=replace(job.recipe.lora, dropout=0.0),
                passage_copies=job.recipe.passage_copies,
                loss_on=job.recipe.loss_on,
                seed=config.seed,
            ),
            reward_function(config),
            config.seal.restem_iterations,
            config.seal.restem_batch_size,
            config.seal.restem_candidates_per_passage,
            trainer=load_trainer(config, model),
            executor=executor,
            settings=settings,
            emit=watch.emit,
            should_stop=watch.should_stop,
        )
        store = job.rounds(watch.should_stop)
        return optimizer.optimize(job.data.train, job.data.held_out, store)


@contextmanager
def executor_of(config: Config, model: LanguageModel) -> Iterator[Executor]:
    """The executor that the config asks for, for the time of a block.

    In this process trials run over the model that is loaded already; its bench stays with it.
    """
    restem = config.restem
    if restem.executor == "serial":
        yield own_bench(model)
        return
    with closing(
        open_executor(config, restem.executor, workers=restem.workers, bank=_BANK)
    ) as executor:
        yield executor


def facts_of(dataset: Path, data: RestemData) -> RunFacts:
    """What a run on a file's passages is on."""
    fingerprint = content_hash([[asdict(p) for p in part] for part in (data.train, data.held_out)])
    return RunFacts(
        str(dataset),
        tuple(p.id for p in data.train),
        tuple(p.id for p in data.held_out),
        fingerprint,
        tuple(map(passage_hash, data.train)),
    )


def keep_plan(run: Run, plan: Mapping[str, Any]) -> bool:
    """Keeps what results follow from; a run that goes on must be on the same.

    Args:
        run: The run.
        plan: JSON values by names for people.

    Returns:
        Whether the run had a plan already.

    Raises:
        UsageError: It is not; the message names what differs.
        StorageError: The plan that it was started with cannot be read.
    """
    path = run.directory.path / _PLAN
    before = read_json(path, default=None)
    if before is None:
        atomic_write_json(path, dict(plan))
        return False
    if not isinstance(before, dict):
        raise StorageError(f"{path} is corrupt: not a JSON object", "start a new run")
    changed = [name for name in plan if before.get(name) != plan[name]]
    if changed:
        more = ", …" if len(changed) > _MOST_NAMES else ""
        raise UsageError(
            f"the run in {run.directory.path} was started with another "
            f"{', '.join(changed[:_MOST_NAMES])}{more}",
            "give the same data and settings, or start a new run",
        )
    return True


def plan_of(
    facts: RunFacts, config: Config, model: LanguageModel, recipe: ResolvedRecipe
) -> dict[str, Any]:
    """What a run's results follow from, by names for people, as JSON values."""
    restem = config.restem.model_dump(mode="json")
    for name in ("estimate", "executor", "workers"):  # where, not what
        del restem[name]
    seal = {
        name: value
        for name, value in config.seal.model_dump(mode="json").items()
        if not name.startswith(("enable_cache", "cache_", "max_cache", "batch_size"))
    }
    return {
        "model": model.digest,
        "seed": config.seed,
        **{f"restem.{name}": value for name, value in restem.items()},
        **{f"seal.{name}": value for name, value in seal.items()},
        "training recipe": asdict(recipe.lora),
        "training.loss_on": recipe.loss_on,
        "training.passage_copies": recipe.passage_copies,
        "question template": config.evaluation.question_template,
        "evaluation.max_answer_tokens": config.evaluation.max_answer_tokens,
        "data.near_duplicate_threshold": config.data.near_duplicate_threshold,
        "dataset": facts.data_fingerprint,  # the passages of each side: last, since others name why
    }


def _tell(run: Run, data: RestemData, *, again: bool) -> None:
    run.emit(Notice(f"{len(data.train)} passages to optimise on, {len(data.held_out)} held out"))
    if data.without_questions:
        run.emit(
            Notice(f"{data.without_questions} passages have no questions: left out", "warning")
        )
    if data.rejects:
        if not again:
            run.directory.add_rejects(*(asdict(reject) for reject in data.rejects))
        run.emit(Notice(f"{len(data.rejects)} records could not be used", "warning"))


def _finish(job: _Job, state: ReSTEMState, output_generator: Path | None) -> ReSTEMReport:
    """Publishes the best generator and writes report and numbers."""
    run = job.run
    generator = publish_best(job.rounds(never), state, output_generator)
    if generator is None:
        run.emit(Notice("no round's generator was better than the untrained one", "warning"))
    passages = {p.id: p for p in (*job.data.train, *job.data.held_out)}
    info = {**_info(job), "estimate": estimate_beside_actual(run.directory.path, state)}
    page, numbers, metrics = write_results(run.directory.path, state, passages, info)
    return ReSTEMReport(run.directory.path, state, generator, page, numbers, metrics)


def _info(job: _Job) -> dict[str, Any]:
    """What the numbers follow from, and where they were made."""
    config = job.config
    return {
        "model": job.model.name,
        "arms": ", ".join(arms_of(config, job.recipe)),
        "recipe": asdict(job.recipe.lora),
        "recipe_source": f"{job.recipe.name}: {job.recipe.measured}",
        "dataset": job.facts.dataset,
        "passages": len(job.data.train),
        "held_out_passages": len(job.data.held_out),
        "seed": config.seed,
        "reward": config.restem.reward,
        "baseline": config.restem.baseline,
        "command": shlex.join(map(str, job.run.directory.info.get("argv", []))),
        "versions": package_versions(),
        "hardware": f"{psutil.cpu_count()} CPU cores, {platform.machine()}, {platform.system()}",
        "log_link": "events.jsonl",
    }
