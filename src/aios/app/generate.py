"""Generating self-edits for a file of passages: journalled, resumable, nothing dropped silently."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from aios.app.composition import (
    build_generator,
    cache_in_use,
    describe_strategy,
    recipe_for,
    started_run,
)
from aios.app.models import load_model
from aios.core.config.schemas import Config
from aios.core.data.edit_rows import from_row, to_row
from aios.core.data.readers import read_passages
from aios.core.data.rejects import Reject
from aios.core.data.writers import open_writer, write_rejects
from aios.core.errors import RunInterrupted, StorageError, UsageError
from aios.core.events import Notice, StageFinished, StageProgress, StageStarted
from aios.core.files import append_jsonl
from aios.core.protocols import Emit, LanguageModel, ShouldStop, ignore, never
from aios.core.seal.self_edit_generator import (
    EditBatch,
    PassageEdits,
    SelfEditGenerator,
    batched,
)
from aios.core.types import Drop, Failure, Passage
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
        RunInterrupted: `should_stop` said so; finished work is kept.
    """
    began = time.monotonic()
    writer = open_writer(output, output_format)
    journal_path = output.with_name(f".{output.name}.journal")
    if resume == "always" and not journal_path.exists():
        raise UsageError(
            f"there is no interrupted run for {output}", "use --resume if-possible or never"
        )
    check_input(input)
    with started_run(config, "generate", emit) as run:
        model = model or load_model(config, emit=run.emit)
        recipe = recipe_for(config, model)
        rejects: list[Reject] = []
        with cache_in_use(config, run.emit) as cache:
            generator = build_generator(config, model, recipe, cache=cache, emit=run.emit)
            passages = read_input(config, input, model, rejects.append)
            journal = Journal(
                journal_path, generation_fingerprint(config, file_digest(input), generator), start_over=resume == "never"
            )
            with journal, writer as out:
                tally = _Tally()
                run.emit(StageStarted("generate", unit="passages"))
                for batch, reused in journalled_batches(generator, passages, journal, should_stop, run.emit):
                    for result in batch.passages:
                        tally.add(result, reused=reused)
                        for edit in result.kept:
                            out.write(edit, result.passage)
                        append_jsonl(
                            run.directory.path / "dropped.jsonl",
                            [asdict(drop) for drop in result.drops],
                            sync=False,
                        )
                    run.emit(StageProgress("generate", tally.passages, f"{tally.edits} edits"))
            _forget(journal_path)
        rejects_path = _list_rejects(output, rejects)
        seconds = time.monotonic() - began
        run.emit(StageFinished("generate", seconds, f"{tally.edits} edits"))
    return GenerateReport(
        output=output,
        passages=tally.passages,
        edits=tally.edits,
        dropped=dict(tally.dropped.most_common()),
        rejected=len(rejects),
        failures=tuple(tally.failures),
        cached=tally.cached,
        generated=tally.generated,
        tokens=tally.tokens,
        seconds=seconds,
        reused=tally.reused,
        rejects_path=rejects_path,
        strategy=recipe.strategy,
        strategy_source=describe_strategy(recipe),
    )


def plan_generation(config: Config, input: Path) -> GeneratePlan:
    """Counts what a generation would do; writes nothing."""
    check_input(input)
    model = load_model(config)
    recipe = recipe_for(config, model)
    rejects: list[Reject] = []
    passages = cached = prompt_tokens = 0
    with cache_in_use(config) as cache:
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
    """Self-edits of the first passages of a file; nothing is saved."""
    check_input(input)
    model = load_model(config, emit=emit)
    generator = build_generator(config, model, recipe_for(config, model), cache=None, emit=emit)
    passages = read_input(config, input, model, _ignore_reject)
    return list(generator.generate(islice(passages, num_samples)))


def check_input(path: Path) -> None:
    """Refuses an input that cannot be read as passages before anything else is done.

    Raises:
        DataError: It is missing, a folder, empty, or of an unknown ending.
    """
    next(iter(read_passages(path, on_reject=_ignore_reject)))


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


def journalled_batches(
    generator: SelfEditGenerator,
    passages: Iterator[Passage],
    journal: Journal,
    should_stop: ShouldStop,
    emit: Emit,
) -> Iterator[tuple[EditBatch, bool]]:
    """Batches in order, from the journal where it has them.

    A batch is journalled before it is cached: so a batch that must be made again after a kill
    meets the same cache as the first time, and comes out the same.
    """
    if len(journal):
        emit(Notice(f"resuming: {len(journal)} batches are already done"))
    for number, group in enumerate(batched(passages, generator.batch_size)):
        key = f"{number}:{group[0].id}"
        done = journal.get(key)
        if done is not None:
            yield EditBatch(tuple(_decode(p, r) for p, r in zip(group, done, strict=True))), True
            continue
        if should_stop():
            raise RunInterrupted("stopped on request; finished batches are kept")
        batch = generator.generate_batch(group)
        journal.append(key, [_encode(result) for result in batch.passages])
        generator.remember(batch)
        yield batch, False


def _encode(result: PassageEdits) -> dict[str, object]:
    return {
        "kept": [to_row(edit) for edit in result.kept],
        "drops": [asdict(drop) for drop in result.drops],
        "failure": None if result.failure is None else asdict(result.failure),
    }


def _decode(passage: Passage, record: dict[str, Any]) -> PassageEdits:
    try:
        failure = record["failure"]
        return PassageEdits(
            passage,
            kept=tuple(from_row(row) for row in record["kept"]),
            drops=tuple(Drop(**drop) for drop in record["drops"]),
            failure=None if failure is None else Failure(**failure),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(
            f"the journal's record of passage {passage.id} is of another form: {error}",
            "start over with --resume never",
        ) from error


def generation_fingerprint(
    config: Config, input_digest: str, generator: SelfEditGenerator
) -> dict[str, object]:
    """Everything that determines the self-edits of an input, by names for people."""
    return {
        "input": input_digest,
        "model": generator.model.digest,
        "adapter": generator.model.adapter_digest,
        "strategy": generator.strategy.name,
        "parser": generator.strategy.parser_version,
        "edits per passage": generator.num_edits,
        "sampling": asdict(generator.sampling),
        "filter": asdict(generator.filter_settings),
        "batch size": generator.batch_size,
        "passage tokens": config.data.max_passage_tokens,
        "prompts": "" if not config.seal.prompts_file else file_digest(config.seal.prompts_file),
        "domain": config.seal.domain,
        "seed": config.seed,
    }


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _forget(journal_path: Path) -> None:
    journal_path.unlink(missing_ok=True)
    journal_path.with_name(f".{journal_path.name}.lock").unlink(missing_ok=True)


def _list_rejects(output: Path, rejects: list[Reject]) -> Path | None:
    path = output.with_name(f"{output.stem}.rejects.jsonl")
    if not rejects:
        path.unlink(missing_ok=True)
        return None
    write_rejects(path, rejects)
    return path

