"""The self-edit cache as the config describes it, and filling it ahead of time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from aios.app.composition import (
    Run,
    build_generator,
    cache_in_use,
    describe_strategy,
    open_cache,
    recipe_for,
    started_run,
)
from aios.app.edits.generation_plan import check_input, read_input
from aios.app.generators import check_generator, writing_model
from aios.app.kept import KeptByStamp
from aios.app.models import load_model
from aios.core.config.schemas import Config
from aios.core.data.rejects import Reject
from aios.core.data.writers import write_rejects
from aios.core.errors import RunInterrupted, UsageError
from aios.core.events import StageFinished, StageProgress, StageStarted
from aios.core.protocols import Emit, LanguageModel, ShouldStop, ignore, never
from aios.core.seal.cache import CacheStats, SelfEditCache
from aios.core.seal.cache_usage import past_usage
from aios.core.seal.self_edit_generator import SelfEditGenerator
from aios.core.types import Failure, Passage

__all__ = ["CacheLook", "WarmReport", "open_cache", "warm_cache"]


@dataclass(frozen=True, slots=True)
class WarmReport:
    """What filling the cache gave.

    Attributes:
        folder: The cache's folder.
        passages: Passages read.
        rejected: Input records that could not be used.
        rejects_path: The list of them, or None without any.
        failures: Passages for which generation failed, also when tried again.
        cached: Candidates that the cache had already.
        generated: Candidates made now.
        stored: How many of these the cache has now: not those that a deadline cut off, and none
            where it could not be written.
        tokens: Tokens generated now.
        seconds: Wall time.
        strategy: Strategy in force.
        strategy_source: Where that choice comes from.
    """

    folder: Path
    passages: int
    rejected: int
    rejects_path: Path | None
    failures: tuple[Failure, ...]
    cached: int
    generated: int
    stored: int
    tokens: int
    seconds: float
    strategy: str
    strategy_source: str


class CacheLook:
    """Looks at the cache for pages, which ask often: entries are counted when there are others."""

    def __init__(self) -> None:
        self._counted: KeptByStamp[CacheStats] = KeptByStamp(4)

    def of(self, config: Config) -> CacheStats:
        """What the config's cache holds, and how much it helped.

        Raises:
            StorageError: The folder cannot be listed.
        """
        folder = config.seal.cache_dir
        runs = past_usage(folder)
        return replace(
            self._counted.of_file(folder, lambda folder: SelfEditCache(folder, 0).stats()),
            limit_bytes=open_cache(config).max_bytes,
            hits=sum(run.hits for run in runs),
            misses=sum(run.misses for run in runs),
            runs=tuple(runs),
        )


@dataclass(slots=True)
class _Tally:
    """Counts while the cache is being filled."""

    passages: int = 0
    cached: int = 0
    generated: int = 0
    tokens: int = 0


def warm_cache(
    config: Config,
    input: Path,
    *,
    emit: Emit = ignore,
    should_stop: ShouldStop = never,
    model: LanguageModel | None = None,
) -> WarmReport:
    """Generates the self-edits of a file into the cache, and nowhere else.

    Args:
        config: The resolved config.
        input: A file of passages.
        emit: Shows events.
        should_stop: Asked before each passage that is begun; those in flight are finished.
        model: The base model; loaded from the config by default.

    Raises:
        UsageError: The cache is switched off, or the input cannot be used.
        BackendError: The backend is dead; what was finished is in the cache.
        RunInterrupted: `should_stop` said so; what was finished is in the cache.
    """
    if not config.seal.enable_cache:
        raise UsageError("the cache is switched off", "set seal.enable_cache: true to fill it")
    began = time.monotonic()
    total = check_input(input)
    check_generator(config)
    rejects: list[Reject] = []
    failures: list[Failure] = []
    with started_run(config, "warm-cache", emit) as run, cache_in_use(config, run.emit) as cache:
        model = model or load_model(config, emit=run.emit)
        recipe = recipe_for(config, model)
        passages = read_input(config, input, model, rejects.append)
        with writing_model(config, model, emit=run.emit) as writes:
            generator = build_generator(config, writes, recipe, cache=cache, emit=run.emit)
            run.emit(StageStarted("warm cache", total, "passages"))
            tally = _fill(run, generator, passages, should_stop, failures.append)
        rejects_path = run.directory.path / "rejects.jsonl" if rejects else None
        if rejects_path is not None:
            write_rejects(rejects_path, rejects)
        stored = 0 if cache is None else cache.stored
        seconds = time.monotonic() - began
        run.emit(StageFinished("warm cache", seconds, f"{stored} self-edits cached"))
    return WarmReport(
        folder=config.seal.cache_dir,
        passages=tally.passages,
        rejected=len(rejects),
        rejects_path=rejects_path,
        failures=tuple(failures),
        cached=tally.cached,
        generated=tally.generated,
        stored=stored,
        tokens=tally.tokens,
        seconds=seconds,
        strategy=recipe.strategy,
        strategy_source=describe_strategy(recipe),
    )


def _fill(
    run: Run,
    generator: SelfEditGenerator,
    passages: Iterator[Passage],
    should_stop: ShouldStop,
    on_failure: Callable[[Failure], None],
) -> _Tally:
    """Has all passages written; the generator keeps them as they are finished.

    Raises:
        RunInterrupted: `should_stop` said so.
    """
    tally = _Tally()
    stopped = False

    def until_stopped() -> Iterator[Passage]:
        nonlocal stopped
        for passage in passages:
            stopped = should_stop()
            if stopped:
                return
            yield passage

    for result in generator.generate(until_stopped()):
        tally.passages += 1
        tally.cached += result.cached
        tally.generated += result.generated
        tally.tokens += result.tokens
        if result.failure is not None:
            on_failure(result.failure)
        summary = f"{tally.cached} cached, {tally.generated} generated"
        run.emit(StageProgress("warm cache", tally.passages, summary))
    if stopped:
        raise RunInterrupted("stopped on request; what was finished is in the cache")
    return tally
