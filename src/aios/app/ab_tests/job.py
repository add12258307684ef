"""The A/B experiment as a job: run directory, one record an arm and seed, metrics and report."""

from __future__ import annotations

import hashlib
import platform
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from aios.app.ab_tests.data import ABJob, prepare_ab_data, read_ab_input
from aios.app.ab_tests.progress import planned_arms
from aios.app.ab_tests.report_html import render_report
from aios.app.composition import describe_strategy, recipe_for, started_run
from aios.app.costs.measuring import keep_ab_costs
from aios.app.generators import check_generator, describe_generator
from aios.app.models import load_model, load_trainer
from aios.core.config.recipes import ResolvedRecipe
from aios.core.config.schemas import Config
from aios.core.errors import RunInterrupted, StorageError, UsageError
from aios.core.evaluation.ab_test import UNTRAINED, ABData, ABExperiment, ABSettings
from aios.core.evaluation.comparison import (
    ArmRun,
    ComparisonSettings,
    available_pairs,
    compare,
)
from aios.core.evaluation.document import metrics_document
from aios.core.evaluation.metrics import AnswerResult
from aios.core.events import Notice, StageFinished, StageProgress, StageStarted
from aios.core.files import atomic_write_bytes, atomic_write_text, encode_json, parse_json
from aios.core.protocols import Emit, LanguageModel, ShouldStop, ignore, never
from aios.core.seal.passage_edits import PassageEdits
from aios.core.trainings import CurvePoint
from aios.core.types import content_hash
from aios.storage.journal import Journal
from aios.storage.runs import package_versions


@dataclass(frozen=True, slots=True)
class ABReport:
    """Where an A/B experiment's results are, and the results.

    Attributes:
        run_dir: The run directory.
        report_html: The report, one self-contained page.
        metrics_json: All numbers.
        metrics: The content of that file.
    """

    run_dir: Path
    report_html: Path
    metrics_json: Path
    metrics: dict[str, Any]


def run_ab_test(
    config: Config,
    input: Path,
    *,
    questions: Path | None = None,
    output: Path | None = None,
    resume: bool = False,
    emit: Emit = ignore,
    should_stop: ShouldStop = never,
    model: LanguageModel | None = None,
) -> ABReport:
    """Compares experts trained on passages with and without self-edits.

    Args:
        config: The resolved config; `ab_test`, `seal`, `training` and `evaluation` count.
        input: Passages, with questions unless `questions` is given.
        questions: A file of questions by passage id.
        output: The run directory; by default a new one below ``<artifacts>/seal_experiments``.
        resume: Go on with the run in `output`.
        emit: Shows events.
        should_stop: Asked between and during trainings.
        model: The base model; loaded from the config by default.

    Returns:
        All figures, the verdict among them, and where the run and its report are.

    Raises:
        UsageError: Input or config cannot be used, or `output` holds another experiment.
        BackendError: A training or an examination failed; finished arms are kept.
        StorageError: The run cannot be written.
        RunInterrupted: `should_stop` said so; finished arms are kept.
    """
    if resume and output is None:
        raise UsageError("--resume needs the run to go on with", "name it with --output DIR")
    given = read_ab_input(config, input, questions)
    check_generator(config)
    began = time.monotonic()
    path = output or config.paths.artifacts / "seal_experiments" / _new_name(input)
    is_new = not (path / "run.json").exists()
    with started_run(config, "ab-test", emit, path=path, resume=resume) as run:
        if resume and is_new:
            run.emit(Notice(f"there is no run in {path} yet: this one is new", "warning"))
        model = model or load_model(config, emit=run.emit)
        recipe = recipe_for(config, model)
        job = ABJob(config, run, model, recipe, ab_settings(config, recipe), should_stop)
        data, results = prepare_ab_data(job, given)
        arms = _run_arms(job, data, resume)
        keep_ab_costs(job, data, results, arms, None if resume else time.monotonic() - began)
        info = {
            **_set_up(job, data),
            "input": str(input),
            "command": shlex.join(map(str, run.directory.info.get("argv", []))),
            **_generation_costs(results),
            "wall_seconds": time.monotonic() - began,
        }
        return _write(job, data, results, arms, info)


def ab_settings(config: Config, recipe: ResolvedRecipe) -> ABSettings:
    """How the config says that an A/B experiment is run."""
    return ABSettings(
        recipe=recipe.lora,
        match=config.ab_test.match,
        budget_tokens=config.ab_test.budget_tokens or recipe.max_tokens,
        evaluations=config.ab_test.evaluations,
        passage_copies=recipe.passage_copies,
        loss_on=recipe.loss_on,
        question_template=config.evaluation.question_template,
        max_answer_tokens=config.evaluation.max_answer_tokens,
        selection_fraction=config.evaluation.selection_fraction,
    )


def _run_arms(job: ABJob, data: ABData, resume: bool) -> dict[str, list[ArmRun]]:
    """Runs every arm with every seed, one seed of all arms after the other; skips what is done."""
    config, run = job.config, job.run
    trainer = load_trainer(config, job.model)
    experiment = ABExperiment(
        job.model, trainer, data, job.settings, config.seed, run.emit, job.should_stop
    )
    arms: dict[str, list[ArmRun]] = {arm: [] for arm in config.ab_test.arms}
    for arm in arms:
        if arm not in UNTRAINED:
            job.refuse_leakage(experiment.examples(arm), (*data.selection, *data.report))
    planned = list(planned_arms(config.ab_test.arms, config.ab_test.seeds))
    began = time.monotonic()
    run.emit(StageStarted("arms", len(planned), "arms and seeds"))
    with Journal(run.directory.path / "arms.journal", _fingerprint(job, data)) as journal:
        for done, (arm, number) in enumerate(planned, start=1):
            key = f"{arm}.{number}"
            checkpoints = run.directory.checkpoints / key
            record = journal.get(key)
            if record is not None:
                arms[arm].append(_decode_arm(record, journal.path))
            elif job.should_stop():
                raise RunInterrupted("stopped on request; finished arms are kept")
            else:
                result = experiment.run_arm(arm, number, checkpoints, resume=resume)
                journal.append(key, asdict(result))
                arms[arm].append(result)
            shutil.rmtree(checkpoints, ignore_errors=True)
            run.emit(StageProgress("arms", done, f"{arm}, seed {number}"))
    run.emit(StageFinished("arms", time.monotonic() - began))
    return arms


def _fingerprint(job: ABJob, data: ABData) -> dict[str, object]:
    """Everything that determines an arm's numbers, by names for people."""
    settings = asdict(job.settings)
    recipe = settings.pop("recipe")
    return {
        "model": job.model.digest,
        "seed": job.config.seed,
        **{f"training.{name}": value for name, value in recipe.items()},
        **{name.replace("_", " "): value for name, value in settings.items()},
        "passages": content_hash([(p.id, p.title, p.text) for p in data.passages]),
        "questions": content_hash([asdict(p) for p in (*data.selection, *data.report)]),
        "self-edits": content_hash([edit.id for edit in data.edits]),
        "other self-edits": content_hash([edit.id for edit in data.other_edits]),
        "retention": content_hash([asdict(request) for request in data.retention]),
    }


def _decode_arm(record: dict[str, Any], path: Path) -> ArmRun:
    try:
        curve = tuple(CurvePoint(**point) for point in record["curve"])
        results = tuple(
            AnswerResult(**{**result, "answers": tuple(result["answers"])})
            for result in record["results"]
        )
        return ArmRun(**{**record, "curve": curve, "results": results})
    except (KeyError, TypeError) as error:
        raise StorageError(
            f"{path} holds a record of another form: {error}", "start a new run"
        ) from error


def _set_up(job: ABJob, data: ABData) -> dict[str, Any]:
    """What the numbers follow from, and where they were made."""
    recipe = job.recipe
    return {
        "model": job.model.name,
        "model_digest": job.model.digest,
        "recipe": asdict(job.settings.recipe),
        "recipe_source": f"{recipe.name}: {recipe.measured}",
        "strategy": recipe.strategy,
        "strategy_source": describe_strategy(recipe),
        **_generator(job),
        "match": job.settings.match,
        "seed": job.config.seed,
        "passages": len(data.passages),
        "selection_questions": len(data.selection),
        "report_questions": len(data.report),
        "versions": package_versions(),
        "hardware": f"{psutil.cpu_count()} CPU cores, {platform.machine()}, {platform.system()}",
    }


def _generator(job: ABJob) -> dict[str, Any]:
    """Which generator wrote the self-edits, where one did."""
    known = describe_generator(job.config) if job.needs_edits else None
    if known is None:
        return {}
    return {"generator": known["folder"], "generator_digest": known["adapter_digest"]}


def _generation_costs(results: Sequence[PassageEdits]) -> dict[str, Any]:
    return {
        "edits_kept": sum(len(r.kept) for r in results),
        "items_kept": sum(len(edit.items) for r in results for edit in r.kept),
        "items_dropped": sum(len(r.drops) for r in results),
        "edits_from_cache": sum(r.cached for r in results),
        "generation_seconds": sum(r.seconds for r in results),
    }


def _write(
    job: ABJob,
    data: ABData,
    results: Sequence[PassageEdits],
    arms: Mapping[str, Sequence[ArmRun]],
    info: Mapping[str, Any],
) -> ABReport:
    """Compares the arms, and saves the numbers and the page."""
    config, folder = job.config, job.run.directory.path
    settings = ComparisonSettings(config.evaluation.bootstrap_samples, config.seed)
    document = metrics_document(arms, compare(arms, available_pairs(arms), settings), info=info)
    html = render_report(
        document,
        title="Self-edits: A/B report",
        edits_kept=data.edits,
        edits_dropped=[drop for result in results for drop in result.drops],
        run_info=_for_people(info),
        log_link=job.run.directory.events_file.name,
        passages=data.passages,
    )
    metrics, page = folder / "metrics.json", folder / "report.html"
    numbers = encode_json(document, indent=2) + b"\n"
    atomic_write_bytes(metrics, numbers)
    atomic_write_text(page, html)
    return ABReport(folder, page, metrics, parse_json(numbers))


def _for_people(info: Mapping[str, Any]) -> dict[str, Any]:
    """The set-up as the report shows it: times in seconds, digests cut, no empty lines."""
    shown: dict[str, Any] = {}
    for name, value in info.items():
        if name.endswith("_seconds"):
            shown[name.removesuffix("_seconds") + "_time"] = f"{value:,.1f} s"
        elif name.endswith("_digest"):
            shown[name] = value[:12]
        elif value not in ("", None):
            shown[name] = value
    return shown


def _new_name(input: Path) -> str:
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    tag = hashlib.sha256(f"{input}{time.time_ns()}".encode()).hexdigest()[:4]
    return f"ab-test-{stamp}-{tag}"
