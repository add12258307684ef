"""Generating self-edits for a file of passages: journalled, resumable, nothing dropped silently."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

from aios.app.composition import (
    Run,
    build_generator,
    cache_in_use,
    describe_strategy,
    open_cache,
    recipe_for,
    started_run,
)
from aios.app.edit_journal import file_digest, generation_fingerprint, journalled_batches
from aios.app.models import load_model
from aios.core.config.recipes import ResolvedRecipe
from aios.core.config.schemas import Config
from aios.core.data.readers import read_passages
from aios.core.data.rejects import Reject
from aios.core.data.writers import EditWriter, open_writer, write_rejects
from aios.core.errors import UsageError
from aios.core.events import StageFinished, StageProgress, StageStarted
from aios.core.files import append_jsonl, guarded
from aios.core.protocols import Emit, LanguageModel, ShouldStop, ignore, never
from aios.core.seal.self_edit_generator import EditBatch, PassageEdits
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


@dataclass(frozen=True, slots=True)
class GeneratePlan:
    """What a generation would do.

    Attributes:
        passages: Passages to read.
        rejected: Records that cannot be used.
        candidates: Self-edits to make.
        cached: How many of them the cache has.
        prompt_tokens: Tokens of all prompts.
        max_new_tokens: Most tokens that could be generated.
        strategy: Strategy in force.
        strategy_source: Where that choice comes from.
    """

    passages: int
    rejected: int
    candidates: int
    cached: int
    prompt_tokens: int
    max_new_tokens: int
    strategy: str
    strategy_source: str


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

    The output appears when it is complete. Until then finished batches are in a journal beside
    it, so that a run that was killed goes on where it was and ends with the same file.

    Args:
        config: The resolved config.
        input: A file of passages.
        output: Where the edits go; its ending gives the format.
        resume: Whether to go on from a journal that is there.
        output_format: Another format than the ending's, e.g. ``messages``.
        emit: Shows events.
        should_stop: Asked between batches.
        model: The generator; loaded from the config by default.

    Raises:
        UsageError: Input, output or config cannot be used, or the journal is of other work.
        StorageError: The output, the journal or the run's record cannot be written; what was
            finished before is kept.
        RunInterrupted: `should_stop` said so; finished work is kept.
    """
    began = time.monotonic()
    writer = open_writer(output, output_format)
    _check_output(input, output)
    journal_path = output.with_name(f".{output.name}.journal")
    if resume == "always" and not journal_path.exists():
        raise UsageError(
            f"there is no interrupted run for {output}", "use --resume if-possible or never"
        )
    total = check_input(input)
    rejects: list[Reject] = []
    with started_run(config, "generate", emit) as run, cache_in_use(config, run.emit) as cache:
        model = model or load_model(config, emit=run.emit)
        recipe = recipe_for(config, model)
        generator = build_generator(config, model, recipe, cache=cache, emit=run.emit)
        fingerprint = generation_fingerprint(config, file_digest(input), generator)
        with Journal(journal_path, fingerprint, start_over=resume == "never") as journal:
            _remove_torn(output)
            passages = read_input(config, input, model, rejects.append)
            batches = journalled_batches(generator, passages, journal, should_stop, run.emit)
            run.emit(StageStarted("generate", total, "passages"))
            with writer as out:
                tally = _write_edits(run, batches, out)
            rejects_path = _list_rejects(output, rejects)
            journal.discard()
        seconds = time.monotonic() - began
        run.emit(StageFinished("generate", seconds, f"{tally.edits} edits"))
    return tally.report(output, seconds, len(rejects), rejects_path, recipe)


def _write_edits(run: Run, batches: Iterator[tuple[EditBatch, bool]], out: EditWriter) -> _Tally:
    """Writes the edits of all batches, and lists what was dropped in the run directory."""
    tally = _Tally()
    dropped = run.directory.path / "dropped.jsonl"
    for batch, reused in batches:
        for result in batch.passages:
            tally.add(result, reused=reused)
            for edit in result.kept:
                out.write(edit, result.passage)
        drops = [asdict(drop) for result in batch.passages for drop in result.drops]
        append_jsonl(dropped, drops, sync=False)
        run.emit(StageProgress("generate", tally.passages, f"{tally.edits} edits"))
    return tally


def plan_generation(config: Config, input: Path) -> GeneratePlan:
    """Counts what a generation would do; writes nothing.

    Raises:
        UsageError: Input or config cannot be used.
    """
    check_input(input)
    model = load_model(config)
    recipe = recipe_for(config, model)
    rejects: list[Reject] = []
    passages = cached = prompt_tokens = 0
    # Not closed, so that looking into the cache does not count as using it.
    cache = open_cache(config) if config.seal.enable_cache else None
    generator = build_generator(config, model, recipe, cache=cache)
    for passage in read_input(config, input, model, rejects.append):
        passages += 1
        cached += generator.count_cached(passage)
        prompt_tokens += generator.count_prompt_tokens(passage)
    candidates = passages * generator.num_edits
    return GeneratePlan(
        passages=passages,
        rejected=len(rejects),
        candidates=candidates,
        cached=cached,
        prompt_tokens=prompt_tokens,
        max_new_tokens=(candidates - cached) * config.seal.max_new_tokens,
        strategy=recipe.strategy,
        strategy_source=describe_strategy(recipe),
    )


def preview_edits(
    config: Config, input: Path, num_samples: int, *, emit: Emit = ignore
) -> list[PassageEdits]:
    """Self-edits of the first passages of a file; nothing is saved.

    Raises:
        UsageError: Input or config cannot be used.
    """
    check_input(input)
    model = load_model(config, emit=emit)
    generator = build_generator(config, model, recipe_for(config, model), cache=None, emit=emit)
    passages = read_input(config, input, model, _ignore_reject)
    return list(generator.generate(islice(passages, num_samples)))


def check_input(path: Path) -> int:
    """Reads an input once, before anything else is done; gives its passages, none split yet.

    Raises:
        DataError: It is missing, a folder, empty, of an unknown ending, or holds no passage.
    """
    return sum(1 for _ in read_passages(path, on_reject=_ignore_reject))


def _check_output(input: Path, output: Path) -> None:
    if output.is_dir():
        raise UsageError(f"{output} is a folder", "name a file for the self-edits")
    if output.exists() and input.exists() and output.samefile(input):
        raise UsageError(f"{output} is the input itself", "name another output")


def read_input(
    config: Config, path: Path, model: LanguageModel, on_reject: Callable[[Reject], None]
) -> Iterator[Passage]:
    """The passages of a file, long ones split as the config says."""
    return read_passages(
        path,
        on_reject=on_reject,
        count_tokens=model.count_tokens,
        max_tokens=config.data.max_passage_tokens,
    )


def _ignore_reject(reject: Reject) -> None:
    """Rejects are listed by the run that uses the passages, not by a look ahead."""


def _remove_torn(output: Path) -> None:
    """Removes what a killed run left of this output; whoever holds the journal is the only one."""
    torn = re.compile(rf"\.{re.escape(output.name[:128])}\.[0-9a-f]{{16}}\.tmp")
    with guarded("list", output.parent):
        for path in output.parent.iterdir():
            if torn.fullmatch(path.name):
                path.unlink(missing_ok=True)


def _list_rejects(output: Path, rejects: list[Reject]) -> Path | None:
    path = output.with_name(f"{output.stem}.rejects.jsonl")
    if rejects:
        write_rejects(path, rejects)
        return path
    with guarded("remove", path):
        path.unlink(missing_ok=True)
    return None
