"""Builds collaborators from the config: generator, quality filter, prompts, recipe, runs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from aios.app.models import is_offline
from aios.app.runs.watchdog import Watch, watching
from aios.app.trackers.choice import check_trackers, run_params, tracked
from aios.backends.embeddings import open_embedder
from aios.backends.scripted import SCRIPTED_NAME
from aios.core.config.loader import dump
from aios.core.config.recipes import ResolvedRecipe, resolve_recipe
from aios.core.config.schemas import Config
from aios.core.errors import AIOSError, RunInterrupted, StorageError, UsageError
from aios.core.events import Notice, RunFinished, RunStarted
from aios.core.protocols import Emit, LanguageModel, ShouldStop, ignore, never
from aios.core.seal.cache import SelfEditCache
from aios.core.seal.prompt_templates import AUTO
from aios.core.seal.prompts import PromptBuilder
from aios.core.seal.quality import FilterSettings
from aios.core.seal.quality_duplicates import CorpusDuplicates, Embedder
from aios.core.seal.self_edit_generator import SelfEditGenerator
from aios.core.seal.strategy_mix import resolve_mix
from aios.core.telemetry import GenerationTelemetry
from aios.storage.event_log import fan_out
from aios.storage.generators import read_card
from aios.storage.runs import RunDirectory

_GENERATOR = "generator "  # and its folder: where a strategy comes from


@dataclass(frozen=True, slots=True)
class Run:
    """A run in progress: its directory, an `Emit` that records and shows, and what it cost."""

    directory: RunDirectory
    emit: Emit
    telemetry: GenerationTelemetry


@contextmanager
def started_run(
    config: Config, kind: str, display: Emit, *, path: Path | None = None, resume: bool = False
) -> Iterator[Run]:
    """A run directory for the time of a job; its end is recorded, however it ends.

    Args:
        config: The resolved config, kept in the directory.
        kind: What sort of run, e.g. ``ab-test``.
        display: Shows events; a broken display is dropped, a broken record stops the run.
        path: The directory; without it a new one below ``<artifacts>/runs``.
        resume: Go on with the run at `path` if there is one.

    Raises:
        UsageError: `path` exists and is not to be resumed, or holds a run of another kind.
        StorageError: The directory or the record of events cannot be written.
    """
    offline = is_offline(config)
    check_trackers(config.telemetry.trackers, offline=offline, environ=os.environ)
    directory, resumed = _run_directory(config, kind, path, resume)
    telemetry = GenerationTelemetry()
    trackers = tracked(
        config.telemetry.trackers,
        run_id=directory.id,
        kind=kind,
        params=run_params(config.model_dump(mode="json")),
        folder=config.paths.artifacts / "trackers",
        offline=offline,
        environ=os.environ,
    )
    with directory, trackers as subscribers:
        emit = fan_out(directory.emit, display, telemetry, *subscribers)
        began = time.monotonic()

        def end(status: str, summary: str = "") -> None:
            emit(RunFinished(directory.id, status, time.monotonic() - began, summary))

        emit(RunStarted(directory.id, kind, resumed))
        try:
            yield Run(directory, emit, telemetry)
        except BaseException as error:
            stopped = isinstance(error, (RunInterrupted, KeyboardInterrupt))
            with suppress(StorageError):  # on a full disk, the error itself is what counts
                end("interrupted" if stopped else "failed", _in_a_line(error))
            raise
        end("done")


def _run_directory(
    config: Config, kind: str, path: Path | None, resume: bool
) -> tuple[RunDirectory, bool]:
    """The run's directory, and whether an earlier run had made it."""
    if path is not None and resume and (path / "run.json").exists():
        return _reopened(path, kind), True
    made = RunDirectory.create(
        path.parent if path is not None else config.paths.artifacts / "runs",
        kind,
        run_id=path.name if path is not None else None,
        config_yaml=dump(config),
        seed=config.seed,
    )
    return made, False


@contextmanager
def watched(
    config: Config, run: Run, stage: str, should_stop: ShouldStop = never
) -> Iterator[Watch]:
    """A watchdog over a stage of a run, as the config sets it; emit and ask to stop through it."""
    settings = config.telemetry
    with watching(
        run.emit,
        stage=stage,
        stall_seconds=settings.stall_seconds,
        heartbeat_seconds=settings.heartbeat_seconds,
        abort_after_seconds=settings.abort_after_seconds,
        should_stop=should_stop,
        dump_to=run.directory.path,
    ) as watch:
        yield watch


def _in_a_line(error: BaseException) -> str:
    return error.message if isinstance(error, AIOSError) else type(error).__name__


def _reopened(path: Path, kind: str) -> RunDirectory:
    directory = RunDirectory.open(path)
    if directory.kind != kind:
        directory.close()
        raise UsageError(
            f"{path} is a run of {directory.kind}, not of {kind}", "check the path of the run"
        )
    return directory


def build_generator(
    config: Config,
    model: LanguageModel,
    recipe: ResolvedRecipe,
    *,
    cache: SelfEditCache | None,
    emit: Emit = ignore,
    prompts: PromptBuilder | None = None,
) -> SelfEditGenerator:
    """The self-edit generator that the config describes; with other prompts, if there are any."""
    seal = config.seal
    return SelfEditGenerator(
        model,
        strategy=recipe.strategy,
        num_edits=recipe.num_edits_per_passage,
        temperature=seal.temperature,
        max_length=seal.max_new_tokens,
        top_p=seal.top_p,
        cache=cache,
        filter_settings=filter_settings(config),
        embedder=build_embedder(config, model),
        prompts=prompts or build_prompts(config),
        batch_size=seal.batch_size,
        deadline_seconds=seal.max_generation_time,
        max_retries=seal.max_retries,
        seed=config.seed,
        emit=emit,
    )


def open_cache(config: Config, emit: Emit = ignore) -> SelfEditCache:
    """The cache in ``seal.cache_dir``; its problems are shown as warnings and stop nothing."""
    return SelfEditCache(
        config.seal.cache_dir,
        int(config.seal.max_cache_size_gb * 10**9),
        on_corrupt=lambda path, reason: emit(
            Notice(f"a corrupt cache entry was set aside as {path} ({reason})", "warning")
        ),
        on_problem=lambda message: emit(Notice(message, "warning")),
    )


def cache_in_use(
    config: Config, emit: Emit = ignore
) -> AbstractContextManager[SelfEditCache | None]:
    """The cache for the time of a block, or None where the config switches it off."""
    return open_cache(config, emit) if config.seal.enable_cache else nullcontext()


def build_prompts(config: Config) -> PromptBuilder:
    """Built-in prompts and the user's own."""
    variables = {"domain": config.seal.domain} if config.seal.domain else {}
    return PromptBuilder(config.seal.prompts_file, variables)


def filter_settings(config: Config) -> FilterSettings:
    """The quality filter's settings."""
    seal = config.seal
    return FilterSettings(
        min_length=seal.min_length,
        max_length=seal.max_length,
        enable_deduplication=seal.enable_deduplication,
        similarity_threshold=seal.similarity_threshold,
        enable_quality_filter=seal.enable_quality_filter,
        enable_grounding=seal.enable_grounding,
        max_loss=seal.max_loss,
        embedding_threshold=seal.embedding_threshold,
    )


def build_embedder(config: Config, model: LanguageModel) -> Embedder | None:
    """What finds duplicates by meaning, if anything does; its model is loaded at first use.

    The scripted model has none with ``auto``: it is for tests, and needs no torch.

    Raises:
        UsageError: It is switched on, and the embedding model is not installed.
    """
    mode = config.seal.embedding_deduplication
    if not config.seal.enable_deduplication or (mode == "auto" and model.name == SCRIPTED_NAME):
        return None
    return open_embedder(mode)


def build_corpus_duplicates(
    config: Config, embedder: Embedder | None = None
) -> CorpusDuplicates | None:
    """What finds duplicates across the passages of a file; None where they are not looked for."""
    seal = config.seal
    if not seal.enable_deduplication or seal.deduplicate_across == "passage":
        return None
    return CorpusDuplicates(seal.similarity_threshold, embedder, seal.embedding_threshold)


def check_strategy(config: Config) -> None:
    """Looks the configured strategy up, before a model is loaded for it.

    Raises:
        UsageError: It is not known, or cannot be loaded.
    """
    if config.seal.strategy != AUTO:
        resolve_mix(config.seal.strategy, 1, build_prompts(config))


def recipe_for(config: Config, model: LanguageModel) -> ResolvedRecipe:
    """The recipe in force for a loaded model; see `recipe_named`."""
    return recipe_named(config, model.name)


def recipe_named(config: Config, model_name: str) -> ResolvedRecipe:
    """The recipe in force for a base model of this name.

    A generator (``seal.generator``) writes by the strategy that its card gives the largest share,
    unless the user has chosen one; the number of edits is then, as for any strategy that is
    chosen, the user's or that of the recipe whose strategy it is.

    Raises:
        UsageError: As `resolve_recipe`, or ``seal.generator`` is no generator.
        StorageError: The generator is damaged.
    """
    folder = config.seal.generator
    if folder is None or config.seal.strategy != AUTO:
        return resolve_recipe(config, model_name)
    seal = config.seal.model_copy(update={"strategy": read_card(folder).strategy})
    recipe = resolve_recipe(config.model_copy(update={"seal": seal}), model_name)
    return replace(recipe, sources={**recipe.sources, "seal.strategy": _GENERATOR + str(folder)})


def describe_strategy(recipe: ResolvedRecipe) -> str:
    """Where the strategy in force comes from, for people."""
    source = recipe.sources["seal.strategy"]
    if source.startswith(_GENERATOR):
        return source
    return "chosen by you" if source == "user" else f"{recipe.name}: {recipe.measured}"
