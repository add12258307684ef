"""ReST-EM as a job: a file of passages in, a better generator of self-edits out.

Takes the config and a file of passages with questions; gives a run directory with everything that
was written, tried and learned, and the best generator in a folder of its own. A run that was
stopped or killed goes on from there (`resume`) and ends with the same numbers.
"""

from __future__ import annotations

import platform
import shlex
from dataclasses import asdict, dataclass
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
from aios.app.edits.generation_plan import check_input
from aios.app.models import load_model, load_trainer
from aios.app.restem.folders import KIND, clear_stop, stop_requested
from aios.app.restem.kept_estimate import estimate_beside_actual, foretell
from aios.app.restem.kept_plan import keep_plan, plan_of
from aios.app.restem.passages import RestemData, facts_of, read_data, tell_left_out
from aios.app.restem.results import publish_best, write_results
from aios.app.restem.rounds import RecordedRounds, RunFacts
from aios.app.restem.settings import arms_of, one_of_each, reward_function, settings_of
from aios.app.restem.trials import executor_of, trial_trainer
from aios.core.config.recipes import ResolvedRecipe
from aios.core.config.schemas import Config
from aios.core.errors import UsageError
from aios.core.events import Notice
from aios.core.protocols import Emit, LanguageModel, ShouldStop, ignore, never
from aios.core.restem import ReSTEMState
from aios.core.seal.restem_optimizer import ReSTEMOptimizer
from aios.storage.generators import refuse_other_files
from aios.storage.runs import package_versions


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
    writing = one_of_each(job.recipe, arms_of(config, job.recipe))
    settings = settings_of(config, job.recipe)
    with (
        watched(config, run, KIND, should_stop) as watch,
        cache_in_use(config, watch.emit) as cache,
        executor_of(config, model) as executor,
    ):
        optimizer = ReSTEMOptimizer(
            build_generator(config, model, writing, cache=cache, emit=watch.emit),
            trial_trainer(config, job.recipe),
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


def _tell(run: Run, data: RestemData, *, again: bool) -> None:
    run.emit(Notice(f"{len(data.train)} passages to optimise on, {len(data.held_out)} held out"))
    tell_left_out(run, data, record=not again)


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
