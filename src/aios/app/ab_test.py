"""The A/B experiment as a job: run directory, one record an arm and seed, metrics and report."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

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
    read_input,
)
from aios.app.models import load_model, load_trainer
from aios.app.report_html import render_report
from aios.core.config.recipes import ResolvedRecipe
from aios.core.config.schemas import Config
from aios.core.data.questions import attach_questions, read_questions
from aios.core.data.rejects import Reject
from aios.core.errors import DataError, StorageError, UsageError
from aios.core.evaluation.ab_test import (
    UNTRAINED,
    ABData,
    ABExperiment,
    ABSettings,
    make_questions,
    retention_requests,
    split_experiment,
)
from aios.core.evaluation.comparison import (
    ArmRun,
    ComparisonSettings,
    available_pairs,
    compare,
)
from aios.core.evaluation.document import metrics_document
from aios.core.evaluation.metrics import AnswerResult
from aios.core.events import Notice, StageFinished, StageProgress, StageStarted
from aios.core.files import atomic_write_json, atomic_write_text, read_json
from aios.core.protocols import Emit, LanguageModel, ShouldStop, ignore, never
from aios.core.seal.self_edit_generator import PassageEdits
from aios.core.training.auto_training_orchestrator import refuse_leakage
from aios.core.types import CurvePoint, Passage, content_hash
from aios.storage.journal import Journal
from aios.storage.runs import package_versions

_MAX_RETENTION_BYTES = 1 << 20
_SHOWN_EDITS = 12  # kept and dropped edits that the report shows, each


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

    Raises:
        UsageError: Input or config cannot be used, or `output` holds another experiment.
        RunInterrupted: `should_stop` said so; finished arms are kept.
    """
    check_input(input)
    if resume and output is None:
        raise UsageError("--resume needs the run to go on with", "name it with --output DIR")
    began = time.monotonic()
    path = output or config.paths.artifacts / "seal_experiments" / _new_name(input)
    with started_run(config, "ab-test", emit, path=path, resume=resume) as run:
        model = model or load_model(config, emit=run.emit)
        recipe = recipe_for(config, model)
        settings = _settings(config, recipe)
        digests = (file_digest(input), file_digest(questions) if questions else "")
        data, results = _prepare(config, run, model, recipe, input, questions, should_stop)
        _claim(run, settings, digests, model)
        experiment = ABExperiment(
            model,
            load_trainer(config, model),
            data,
            settings,
            config.seed,
            run.emit,
            should_stop,
        )
        arms = _run_arms(run, experiment, config, resume)
        info = _info(config, recipe, settings, data, input, model, results, began)
        document = _compare(config, arms, info)
        report = _write(run, document, results)
        run.emit(Notice(document["verdict"]))
    return report


def _settings(config: Config, recipe: ResolvedRecipe) -> ABSettings:
    budget = config.ab_test.budget_tokens or recipe.max_tokens
    return ABSettings(
        recipe=recipe.lora,
        match=config.ab_test.match,
        budget_tokens=budget,
        evaluations=config.ab_test.evaluations,
        passage_copies=recipe.passage_copies,
        loss_on=recipe.loss_on,
        question_template=config.evaluation.question_template,
        max_answer_tokens=config.evaluation.max_answer_tokens,
        selection_fraction=config.evaluation.selection_fraction,
    )


def _prepare(
    config: Config,
    run: Run,
    model: LanguageModel,
    recipe: ResolvedRecipe,
    input: Path,
    questions: Path | None,
    should_stop: ShouldStop,
) -> tuple[ABData, list[PassageEdits]]:
    """Reads the passages, splits the questions, and has the self-edits made."""
    rejects: list[Reject] = []
    everything = tuple(read_input(config, input, model, rejects.append))
    if rejects:
        run.directory.add_rejects(*(asdict(reject) for reject in rejects))
        run.emit(Notice(f"{len(rejects)} records of {input} were left out", "warning"))
    if questions is not None:
        everything = tuple(attach_questions(everything, read_questions(questions)))
    arms = config.ab_test.arms
    with_control = "passage+other-edits" in arms
    limit = config.ab_test.max_passages
    passages, others = split_experiment(everything, limit, with_control=with_control)
    if with_control and len(passages) + len(others) == len(everything) and limit is None:
        run.emit(
            Notice(
                f"{len(passages)} passages are learned; the self-edits of the other {len(others)} "
                "are the control for format"
            )
        )
    selection, report = make_questions(passages, _settings(config, recipe), config.seed)
    if not selection or not report:
        raise DataError(
            f"{len(selection)} questions to choose checkpoints on and {len(report)} to report on "
            "are too few",
            "give every passage at least two questions",
        )
    needs_edits = any(arm.startswith("passage+") for arm in arms)
    results = (
        _make_edits(config, run, model, recipe, (*passages, *others), should_stop)
        if needs_edits
        else []
    )
    ours = {p.id for p in passages}
    data = ABData(
        passages=passages,
        selection=selection,
        report=report,
        edits=tuple(e for r in results if r.passage.id in ours for e in r.kept),
        other_edits=tuple(e for r in results if r.passage.id not in ours for e in r.kept),
        retention=_retention(config),
    )
    if needs_edits and not data.edits:
        raise DataError(
            "no self-edit passed the quality filter, so there is nothing to compare",
            "look at dropped.jsonl in the run directory, or choose another strategy",
        )
    return data, [r for r in results if r.passage.id in ours]


def _make_edits(
    config: Config,
    run: Run,
    model: LanguageModel,
    recipe: ResolvedRecipe,
    passages: Sequence[Passage],
    should_stop: ShouldStop,
) -> list[PassageEdits]:
    began = time.monotonic()
    results: list[PassageEdits] = []
    with cache_in_use(config, run.emit) as cache:
        generator = build_generator(config, model, recipe, cache=cache, emit=run.emit)
        digest = content_hash([asdict(p) for p in passages])
        fingerprint = generation_fingerprint(config, digest, generator)
        run.emit(StageStarted("self-edits", len(passages), "passages"))
        with Journal(run.directory.path / "edits.journal", fingerprint) as journal:
            batches = journalled_batches(
                generator, iter(passages), journal, should_stop, run.emit
            )
            for batch, _ in batches:
                results += batch.passages
                run.emit(StageProgress("self-edits", len(results)))
    cached = sum(r.cached for r in results)
    summary = f"{sum(len(r.kept) for r in results)} edits, {cached} of them from the cache"
    run.emit(StageFinished("self-edits", time.monotonic() - began, summary))
    return results


def _retention(config: Config) -> Any:
    path = config.training.retention_file
    if path is None:
        return ()
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_RETENTION_BYTES + 1)
        if len(data) > _MAX_RETENTION_BYTES:
            raise UsageError(f"{path} is larger than 1 MiB", "a few pages of text are enough")
        return retention_requests(data.decode("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"cannot read training.retention_file {path}: {error}", "name a UTF-8 text file"
        ) from error


def _claim(
    run: Run, settings: ABSettings, digests: tuple[str, str], model: LanguageModel
) -> None:
    """Notes what the run is about, and refuses to go on with something else."""
    mine = content_hash(asdict(settings), digests, model.digest, run.directory.seed)
    state = run.directory.read_state()
    if state is not None and state.get("fingerprint") != mine:
        raise UsageError(
            f"{run.directory.path} holds an experiment with other data or settings",
            "choose another --output, or the settings of before",
        )
    run.directory.commit_state({"fingerprint": mine})


def _run_arms(
    run: Run, experiment: ABExperiment, config: Config, resume: bool
) -> dict[str, list[ArmRun]]:
    """Runs every arm with every seed, one seed of all arms after the other; skips what is done."""
    arms: dict[str, list[ArmRun]] = {arm: [] for arm in config.ab_test.arms}
    planned = list(_plan(config))
    folder = run.directory.path / "arms"
    folder.mkdir(exist_ok=True)
    run.emit(StageStarted("arms", len(planned), "trainings"))
    refuse_leakage(
        experiment.examples("passage+edits"),
        [probe.question for probe in (*experiment.data.selection, *experiment.data.report)],
        config.data.near_duplicate_threshold,
    )
    began = time.monotonic()
    for done, (arm, number) in enumerate(planned):
        record = folder / f"{arm}.{number}.json"
        if record.exists():
            arms[arm].append(_read_arm(record))
            continue
        checkpoints = run.directory.checkpoints / f"{arm}.{number}"
        result = experiment.run_arm(arm, number, checkpoints, resume=resume)
        atomic_write_json(record, asdict(result), indent=None)
        shutil.rmtree(checkpoints, ignore_errors=True)
        arms[arm].append(result)
        run.emit(StageProgress("arms", done + 1, f"{arm}, seed {number}"))
    run.emit(StageFinished("arms", time.monotonic() - began))
    return arms


def _plan(config: Config) -> Iterator[tuple[str, int]]:
    for number in range(config.ab_test.seeds):
        for arm in config.ab_test.arms:
            if number == 0 or arm not in UNTRAINED:
                yield arm, number


def _read_arm(path: Path) -> ArmRun:
    record = read_json(path)
    try:
        record["curve"] = tuple(CurvePoint(**point) for point in record["curve"])
        record["results"] = tuple(
            AnswerResult(**{**r, "answers": tuple(r["answers"])}) for r in record["results"]
        )
        return ArmRun(**record)
    except (KeyError, TypeError) as error:
        raise StorageError(f"{path} is damaged: {error}", "delete it to run this arm again") from error


def _compare(
    config: Config, arms: Mapping[str, Sequence[ArmRun]], info: Mapping[str, Any]
) -> dict[str, Any]:
    settings = ComparisonSettings(config.evaluation.bootstrap_samples, config.seed)
    comparisons = compare(arms, available_pairs(arms), settings)
    return metrics_document(arms, comparisons, info=info)


def _info(
    config: Config,
    recipe: ResolvedRecipe,
    settings: ABSettings,
    data: ABData,
    input: Path,
    model: LanguageModel,
    results: Sequence[PassageEdits],
    began: float,
) -> dict[str, Any]:
    return {
        "model": model.name,
        "model_digest": model.digest,
        "recipe": asdict(settings.recipe),
        "recipe_source": f"{recipe.name}: {recipe.measured}",
        "strategy": recipe.strategy,
        "strategy_source": describe_strategy(recipe),
        "match": settings.match,
        "seed": config.seed,
        "input": str(input),
        "passages": len(data.passages),
        "selection_questions": len(data.selection),
        "report_questions": len(data.report),
        "edits_kept": sum(len(r.kept) for r in results),
        "items_kept": sum(len(e.items) for r in results for e in r.kept),
        "items_dropped": sum(len(r.drops) for r in results),
        "edits_from_cache": sum(r.cached for r in results),
        "generation_seconds": sum(r.seconds for r in results),
        "versions": package_versions(),
        "hardware": f"{psutil.cpu_count()} CPU cores, {platform.machine()}, {platform.system()}",
        "wall_seconds": time.monotonic() - began,
    }


def _write(run: Run, document: dict[str, Any], results: Sequence[PassageEdits]) -> ABReport:
    folder = run.directory.path
    kept = [edit for r in results for edit in r.kept]
    drops = [drop for r in results for drop in r.drops]
    titles = {r.passage.id: r.passage for r in results}
    html = render_report(
        document,
        title="Self-edits: A/B report",
        edits_kept=kept,
        edits_dropped=drops,
        run_info={"run": run.directory.id, "passages": len(titles)},
    )
    metrics, page = folder / "metrics.json", folder / "report.html"
    atomic_write_json(metrics, document)
    atomic_write_text(page, html)
    return ABReport(folder, page, metrics, json.loads(metrics.read_text(encoding="utf-8")))


def _new_name(input: Path) -> str:
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    tag = hashlib.sha256(f"{input}{time.time_ns()}".encode()).hexdigest()[:4]
    return f"ab-test-{stamp}-{tag}"
