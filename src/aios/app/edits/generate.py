"""Generating self-edits for a file of passages: journalled, resumable, nothing dropped silently."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Literal

from aios.app.composition import (
    build_corpus_duplicates,
    build_generator,
    cache_in_use,
    check_strategy,
    describe_strategy,
    recipe_for,
    started_run,
    watched,
)
from aios.app.edits.generation_plan import (
    EarlyEstimate,
    check_input,
    describe_estimate,
    ignore_reject,
    read_input,
)
from aios.app.edits.journal import JournalledEdits, file_digest, generation_fingerprint
from aios.app.generators import check_generator, writing_model
from aios.app.models import load_model
from aios.app.runs.watchdog import Watch
from aios.core.config.recipes import ResolvedRecipe
from aios.core.config.schemas import Config
from aios.core.data.rejects import Reject
from aios.core.data.writers import EditWriter, open_writer, write_rejects
from aios.core.errors import UsageError
from aios.core.estimates import Estimate
from aios.core.events import Dropped, Notice, StageFinished, StageProgress, StageStarted
from aios.core.files import atomic_writer, encode_json, guarded
from aios.core.protocols import Emit, LanguageModel, ShouldStop, ignore, never
from aios.core.seal.passage_edits import PassageEdits
from aios.core.seal.quality import drop_repeats
from aios.core.seal.quality_duplicates import CorpusDuplicates
from aios.core.seal.self_edit_generator import SelfEditGenerator
from aios.core.telemetry import TelemetrySummary
from aios.core.types import Failure, Passage
from aios.storage.journal import Journal

Resume = Literal["never", "always", "if-possible"]


@dataclass(frozen=True, slots=True)
class GenerateReport:
    """What a generation gave.

    Attributes:
        output: The file written.
        passages: Passages read.
        edits: Self-edits kept.
        dropped: What the quality filter dropped, by reason.
        rejected: Input records that could not be used.
        failures: Passages for which generation failed, also when tried again.
        cached: Candidates from the cache.
        generated: Candidates made now.
        tokens: Tokens generated now.
        seconds: Wall time.
        reused: Passages whose edits an earlier, interrupted run had made.
        rejects_path: The list of rejects, or None without any.
        strategy: Strategy in force.
        strategy_source: Where that choice comes from.
        estimate: What the whole was thought to take after the first passages; None where it was
            over by then.
        telemetry: What it cost, in detail: this run's part of the work.
    """

    output: Path
    passages: int
    edits: int
    dropped: dict[str, int]
    rejected: int
    failures: tuple[Failure, ...]
    cached: int
    generated: int
    tokens: int
    seconds: float
    reused: int
    rejects_path: Path | None
    strategy: str
    strategy_source: str
    estimate: Estimate | None = None
    telemetry: TelemetrySummary | None = None


@dataclass(slots=True)
class _Tally:
    """Counts while a generation goes on."""

    passages: int = 0
    edits: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    cached: int = 0
    generated: int = 0
    tokens: int = 0
    reused: int = 0
    estimate: Estimate | None = None

    def add(self, result: PassageEdits, *, reused: bool) -> None:
        self.passages += 1
        self.edits += len(result.kept)
        self.dropped.update(drop.reason for drop in result.drops)
        if result.failure is not None:
            self.failures.append(result.failure)
        if reused:
            self.reused += 1
        else:
            self.cached += result.cached
            self.generated += result.generated
            self.tokens += result.tokens

    def report(
        self,
        output: Path,
        seconds: float,
        rejected: int,
        rejects_path: Path | None,
        recipe: ResolvedRecipe,
        telemetry: TelemetrySummary,
    ) -> GenerateReport:
        return GenerateReport(
            output=output,
            passages=self.passages,
            edits=self.edits,
            dropped=dict(self.dropped.most_common()),
            rejected=rejected,
            failures=tuple(self.failures),
            cached=self.cached,
            generated=self.generated,
            tokens=self.tokens,
            seconds=seconds,
            reused=self.reused,
            rejects_path=rejects_path,
            strategy=recipe.strategy,
            strategy_source=describe_strategy(recipe),
            estimate=self.estimate,
            telemetry=telemetry,
        )


def generate_edits(
    config: Config,
    input: Path,
    output: Path,
    *,
    resume: Resume = "if-possible",
    output_format: str | None = None,
    emit: Emit = ignore,
    should_stop: ShouldStop = never,
    model: LanguageModel | None = None,
) -> GenerateReport:
    """Makes self-edits for every passage of a file.

    The output appears when it is complete, and with it ``<stem>.dropped.jsonl``, what the quality
    filter left out. Until then finished passages are in a journal beside it, so that a run that
    was killed goes on where it was and ends with the same files.

    Args:
        config: The resolved config.
        input: A file of passages.
        output: Where the edits go; its ending gives the format.
        resume: Whether to go on from a journal that is there.
        output_format: Another format than the ending's, e.g. ``messages``.
        emit: Shows events.
        should_stop: Asked before each passage that is begun; those in flight are finished.
        model: The base model; loaded from the config by default.

    Returns:
        Counts of passages, kept and dropped edits and failures, and where the files are.

    Raises:
        UsageError: Input, output or config cannot be used, or the journal is of other work.
        StorageError: The output, the journal or the run's record cannot be written; what was
            finished before is kept.
        RunInterrupted: `should_stop` said so; finished work is kept.
    """
    began = time.monotonic()
    writer = open_writer(output, output_format)
    _check_output(input, output, resume)
    total = check_input(input)
    check_strategy(config)
    check_generator(config)
    rejects: list[Reject] = []
    with started_run(config, "generate", emit) as run, cache_in_use(config, run.emit) as cache:
        model = model or load_model(config, emit=run.emit)
        recipe = recipe_for(config, model)
        with (
            writing_model(config, model, emit=run.emit) as writes,
            watched(config, run, "generate", should_stop) as watch,
        ):
            generator = build_generator(config, writes, recipe, cache=cache, emit=watch.emit)
            with _journal_of(config, input, output, generator, resume) as journal:
                _remove_torn(output)
                passages = read_input(config, input, model, rejects.append)
                watch.emit(StageStarted("generate", total, "passages"))
                early = EarlyEstimate(total, generator.num_edits, time.monotonic() - began)
                results = _results(config, generator, journal, watch, passages)
                with atomic_writer(dropped_path(output)) as dropped, writer as out:
                    tally = _write_edits(watch.emit, results, out, dropped, early)
                rejects_path = _list_rejects(output, rejects)
                journal.discard()
        seconds = time.monotonic() - began
        run.emit(StageFinished("generate", seconds, f"{tally.edits} edits"))
        telemetry = run.telemetry.summary()
        run.emit(telemetry.event())
    return tally.report(output, seconds, len(rejects), rejects_path, recipe, telemetry)


def dropped_path(output: Path) -> Path:
    """Where what the quality filter left out is listed, beside the edits."""
    return output.with_name(f"{output.stem}.dropped.jsonl")


def _rejects_path(output: Path) -> Path:
    return output.with_name(f"{output.stem}.rejects.jsonl")


def _journal_path(output: Path) -> Path:
    return output.with_name(f".{output.name}.journal")


def _journal_of(
    config: Config, input: Path, output: Path, generator: SelfEditGenerator, resume: Resume
) -> Journal:
    fingerprint = generation_fingerprint(config, file_digest(input), generator)
    return Journal(_journal_path(output), fingerprint, start_over=resume == "never")


def _results(
    config: Config,
    generator: SelfEditGenerator,
    journal: Journal,
    watch: Watch,
    passages: Iterator[Passage],
) -> Iterator[tuple[PassageEdits, bool]]:
    """Each passage's self-edits, without those that are left out as repeats across the file."""
    journalled = JournalledEdits(generator, journal, watch.should_stop, watch.emit)
    corpus = build_corpus_duplicates(config, generator.embedder)
    results = journalled.run(passages)
    return results if corpus is None else _without_repeats(results, corpus, watch.emit)


def _without_repeats(
    results: Iterator[tuple[PassageEdits, bool]], corpus: CorpusDuplicates, emit: Emit
) -> Iterator[tuple[PassageEdits, bool]]:
    """The same without edits that repeat one of an earlier passage."""
    for result, reused in results:
        kept, drops = drop_repeats(result.kept, corpus)
        for drop in drops:
            emit(Dropped(drop.passage_id, drop.strategy, drop.index, drop.reason, drop.detail))
        yield replace(result, kept=kept, drops=(*result.drops, *drops)), reused


def _write_edits(
    emit: Emit,
    results: Iterator[tuple[PassageEdits, bool]],
    out: EditWriter,
    dropped: BinaryIO,
    early: EarlyEstimate,
) -> _Tally:
    """Writes the edits of all passages, and what was dropped."""
    tally = _Tally()
    for result, reused in results:
        tally.add(result, reused=reused)
        for edit in result.kept:
            out.write(edit, result.passage)
        for drop in result.drops:
            dropped.write(encode_json(asdict(drop)) + b"\n")
        emit(StageProgress("generate", tally.passages, f"{tally.edits} edits"))
        if tally.estimate is None:
            tally.estimate = early.after(result, reused=reused)
            if tally.estimate is not None:
                emit(Notice(describe_estimate(tally.estimate)))
    return tally


def preview_edits(
    config: Config, input: Path, num_samples: int, *, emit: Emit = ignore
) -> list[PassageEdits]:
    """Self-edits of the first passages of a file; nothing is saved.

    Raises:
        UsageError: Input or config cannot be used.
    """
    check_input(input)
    check_strategy(config)
    check_generator(config)
    model = load_model(config, emit=emit)
    recipe = recipe_for(config, model)
    with writing_model(config, model, emit=emit) as writes:
        generator = build_generator(config, writes, recipe, cache=None, emit=emit)
        passages = read_input(config, input, model, ignore_reject)
        return list(generator.generate(islice(passages, num_samples)))


def _check_output(input: Path, output: Path, resume: Resume) -> None:
    if output.is_dir():
        raise UsageError(f"{output} is a folder", "name a file for the self-edits")
    for path in (output, dropped_path(output), _rejects_path(output)):
        if path.exists() and input.exists() and path.samefile(input):
            raise UsageError(
                f"{path}, which is written, is the input itself", "name another output"
            )
    if resume == "always" and not _journal_path(output).exists():
        raise UsageError(
            f"there is no interrupted run for {output}", "use --resume if-possible or never"
        )


def _remove_torn(output: Path) -> None:
    """Removes what a killed run left of this output; whoever holds the journal is the only one."""
    written = (output, dropped_path(output), _rejects_path(output), _journal_path(output))
    names = "|".join(re.escape(path.name[:128]) for path in written)
    torn = re.compile(rf"\.({names})\.[0-9a-f]{{16}}\.tmp")
    with guarded("list", output.parent):
        for path in output.parent.iterdir():
            if torn.fullmatch(path.name):
                path.unlink(missing_ok=True)


def _list_rejects(output: Path, rejects: list[Reject]) -> Path | None:
    path = _rejects_path(output)
    if rejects:
        write_rejects(path, rejects)
        return path
    with guarded("remove", path):
        path.unlink(missing_ok=True)
    return None
