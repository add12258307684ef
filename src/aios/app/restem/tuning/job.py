"""Tuning of ReST-EM: short runs with different settings, and which of them serve best.

Takes the config and a file of passages; gives a folder with an Optuna study, a run directory for
each trial, a report, and the best settings as a config file. A tuning that was stopped or killed
goes on from there (`resume`): what is done is kept, the trial that was begun goes on where it was,
and the trials that follow are those that would have followed anyway.

A trial is a ReST-EM run of one round (`rounds`); its value is the mean improvement over the
baseline that its generator's self-edits bring on the held-out passages (`restem_tune_trial`).

Deviations from the plan's grid search: a small grid is tried whole, a larger one by TPE, no
combination twice; trials that are clearly worse are stopped.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aios.app.composition import Run, recipe_for, started_run
from aios.app.edits.generation_plan import check_input
from aios.app.models import load_model
from aios.app.restem.kept_plan import keep_plan, plan_of
from aios.app.restem.passages import facts_of, read_data
from aios.app.restem.tuning.plan import (
    DEFAULT_TRIALS,
    check_tuning,
    with_rounds,
)
from aios.app.restem.tuning.space import Space, choose_space, describe, set_lines
from aios.core.config.recipes import ResolvedRecipe
from aios.core.config.schemas import Config
from aios.core.errors import BackendError, DataError, RunInterrupted
from aios.core.events import Notice
from aios.core.protocols import Emit, LanguageModel, ShouldStop, ignore, never
from aios.core.stages import shown_stage

if TYPE_CHECKING:
    from aios.app.restem.tuning.results import Confirmation, Found
    from aios.app.restem.tuning.study import TrialRecord, TuneStudy
    from aios.app.restem.tuning.trial import TuneJob

TUNE_KIND = "restem-tune"
STUDY_FILE = "study.journal"

_STAGE = "tune"
_MOST_FAILURES = 3  # trials in a row, after which something is broken


@dataclass(frozen=True, slots=True)
class TuneReport:
    """What a tuning gave.

    Attributes:
        folder: Its folder.
        best: The best trial; None if none is complete.
        trials: All trials, by number.
        settings: The best settings as config keys.
        set_lines: The same as texts for ``--set``.
        best_yaml: The same as a config file; None if no trial is complete.
        importance: How much each parameter matters; empty with too few trials.
        report_html: The report, one self-contained page.
        tuning_json: All numbers.
        document: The content of that file.
    """

    folder: Path
    best: TrialRecord | None
    trials: tuple[TrialRecord, ...]
    settings: Mapping[str, Any]
    set_lines: tuple[str, ...]
    best_yaml: Path | None
    importance: Mapping[str, float]
    report_html: Path
    tuning_json: Path
    document: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Limits:
    """How far a tuning goes."""

    trials: int
    deadline: float | None

    def late(self) -> bool:
        """Whether time is up."""
        return self.deadline is not None and time.monotonic() >= self.deadline


def tune(
    config: Config,
    dataset: Path,
    *,
    output: Path,
    trials: int = DEFAULT_TRIALS,
    rounds: int = 1,
    resume: bool = False,
    timeout_seconds: float | None = None,
    space: str | Space | None = None,
    confirm: int = 0,
    emit: Emit = ignore,
    should_stop: ShouldStop = never,
    model: LanguageModel | None = None,
) -> TuneReport:
    """Searches settings of ReST-EM.

    Args:
        config: The resolved config; what is not searched is taken from it.
        dataset: Passages with questions.
        output: The tuning's folder.
        trials: Trials in all, those of an earlier call included; from the size of the space on,
            every combination is tried.
        rounds: ReST-EM rounds of a trial.
        resume: Go on with the tuning in `output`, if there is one.
        timeout_seconds: After so long nothing new is begun; what was begun can be resumed.
        space: ``plan``, ``small`` or a space of one's own; by default what suits the model.
        confirm: Other seeds to repeat the best settings with, and the present ones.
        emit: Shows events.
        should_stop: Asked between and during trials.
        model: The base model; loaded from the config by default.

    Raises:
        UsageError: Optuna is missing, data or config cannot be used, or `output` holds another
            tuning.
        BackendError: Several trials in a row failed.
        StorageError: Something cannot be written, or is damaged.
        RunInterrupted: `should_stop` said so; what is done is kept, with a report on it.
    """
    check_tuning(config, trials, rounds, confirm, timeout_seconds)
    check_input(dataset)
    began = time.monotonic()
    config = with_rounds(config, rounds)
    model = model or load_model(config, emit=emit)
    recipe = recipe_for(config, model)
    chosen = space if isinstance(space, Space) else choose_space(config, recipe, space)
    data = read_data(config, dataset, model)
    if not data.held_out:
        raise DataError(
            "no passage is held out, so settings cannot be compared",
            "give more passages, or raise restem.held_out_fraction",
        )
    from aios.app.restem.tuning.study import TuneStudy
    from aios.app.restem.tuning.trial import TuneJob

    deadline = None if timeout_seconds is None else began + timeout_seconds
    limits = _Limits(trials, deadline)
    with started_run(config, TUNE_KIND, emit, path=output, resume=resume) as run:
        folder = run.directory.path
        plan = plan_of(facts_of(dataset, data), config, model, recipe)
        keep_plan(run, {**plan, "search space": {n: [*v] for n, v in chosen.choices.items()}})
        run.emit(Notice(f"search space {chosen.name}, {chosen.size} combinations: {chosen.why}"))
        study = TuneStudy(folder / STUDY_FILE, chosen, config.seed)
        job = TuneJob(
            config,
            dataset,
            folder,
            model,
            data,
            emit,
            lambda: should_stop() or limits.late(),
        )
        return _carry_out(run, job, study, limits, confirm, should_stop, recipe)


# ---------------------------------------------------------------- the search


def _carry_out(
    run: Run,
    job: TuneJob,
    study: TuneStudy,
    limits: _Limits,
    confirm: int,
    should_stop: ShouldStop,
    recipe: ResolvedRecipe,
) -> TuneReport:
    """Trials, then repetitions, then the report; this one in any case."""
    confirmations: list[Confirmation] = []
    notes: list[str] = []
    info = _info(job, recipe)

    def write() -> TuneReport:
        return _write(job, study, confirmations, notes, info)

    try:
        _search(run, job, study, limits)
        confirmations += _confirm(run, job, _found(job, study, [], notes, info), confirm)
    except RunInterrupted:
        if should_stop() or not limits.late():
            write()
            raise
        notes.append("Time was up before all was done; --resume goes on.")
        run.emit(Notice("time is up; go on with --resume", "warning"))
    except BackendError:
        write()
        raise
    return write()


def _search(run: Run, job: TuneJob, study: TuneStudy, limits: _Limits) -> None:
    """Runs trials until there are enough.

    Raises:
        RunInterrupted: The job was asked to stop, or time is up.
        BackendError: Several trials in a row failed.
    """
    from aios.app.restem.tuning.trial import run_trial, tidy

    wanted = min(limits.trials, study.space.size)
    with shown_stage(run.emit, _STAGE, wanted, "trials") as done:
        while len(ended := [r for r in study.records() if r.ended]) < wanted:
            done(len(ended))
            if job.should_stop():
                raise RunInterrupted("the tuning was stopped", "run the same command with --resume")
            begun = study.begin(limits.trials)
            if begun is None:
                break
            run.emit(Notice(f"trial {begun.number} of {wanted}: {describe(begun.parameters)}"))
            trial = run_trial(job, begun.number, begun.parameters, ended, study.untrained)
            if trial.untrained is not None and study.untrained is None:
                study.keep_untrained(trial.untrained)
            study.end(begun, trial.record, trial.course)
            tidy(job, begun.number)
            run.emit(_told(trial.record))
            _refuse_to_go_on(study.records())


def _told(record: TrialRecord) -> Notice:
    if record.value is not None:
        shared = f", {record.reused:,} trials of self-edits taken over" if record.reused else ""
        return Notice(f"trial {record.number}: {record.value:+.4f}{shared}")
    level = "warning" if record.state == "failed" else "info"
    return Notice(f"trial {record.number} {record.state}: {record.note}", level)


def _refuse_to_go_on(records: list[TrialRecord]) -> None:
    last = records[-_MOST_FAILURES:]
    if len(last) == _MOST_FAILURES and all(record.state == "failed" for record in last):
        raise BackendError(
            f"{_MOST_FAILURES} trials in a row failed; the last: {last[-1].note}",
            "see to the reason; --resume goes on with other settings",
        )


def _confirm(run: Run, job: TuneJob, found: Found, count: int) -> list[Confirmation]:
    """Repeats the best settings and the present ones with other seeds.

    Another seed splits the passages anew, writes other self-edits and trains from other numbers.

    Raises:
        BackendError: One of them failed.
        RunInterrupted: The job was asked to stop, or time is up.
    """
    from aios.app.restem.tuning.results import Confirmation
    from aios.app.restem.tuning.trial import run_once

    best, confirmations = found.best, list[Confirmation]()
    if best is None:
        return confirmations
    for seed in range(job.config.seed + 1, job.config.seed + 1 + count):
        config = job.config.model_copy(update={"seed": seed})
        one = replace(job, config=config, data=read_data(config, job.dataset, job.model))
        if not one.data.held_out:
            continue
        run.emit(Notice(f"confirming with seed {seed}"))
        value = run_once(one, f"best-{best.number:04d}-seed-{seed}", best.parameters)
        confirmations.append(Confirmation(seed, value, run_once(one, f"present-seed-{seed}", {})))
    return confirmations


# ---------------------------------------------------------------- what is kept


def _found(
    job: TuneJob,
    study: TuneStudy,
    confirmations: list[Confirmation],
    notes: list[str],
    info: Mapping[str, Any],
) -> Found:
    from aios.app.restem.tuning.results import Found

    return Found(
        job.config,
        study.space,
        study.records(),
        study.untrained,
        study.importance(),
        confirmations,
        info,
        notes,
    )


def _write(
    job: TuneJob,
    study: TuneStudy,
    confirmations: list[Confirmation],
    notes: list[str],
    info: Mapping[str, Any],
) -> TuneReport:
    from aios.app.restem.tuning import results

    found = _found(job, study, confirmations, notes, info)
    document = results.write_tuning(job.folder, found)
    return TuneReport(
        folder=job.folder,
        best=found.best,
        trials=tuple(found.records),
        settings=found.settings,
        set_lines=tuple(set_lines(found.settings)),
        best_yaml=job.folder / results.SETTINGS_FILE if found.settings else None,
        importance=found.importance,
        report_html=job.folder / results.PAGE_FILE,
        tuning_json=job.folder / results.NUMBERS_FILE,
        document=document,
    )


def _info(job: TuneJob, recipe: ResolvedRecipe) -> dict[str, Any]:
    """The set-up, for the report."""
    config = job.config
    return {
        "model": job.model.name,
        "recipe": recipe.name,
        "dataset": str(job.dataset),
        "passages": len(job.data.train),
        "held_out_passages": len(job.data.held_out),
        "rounds_of_a_trial": config.seal.restem_iterations,
        "reward": config.restem.reward,
        "baseline": config.restem.baseline,
        "seed": config.seed,
    }
