"""Self-edits that outlive a kill: finished batches are kept in a journal as they are made.

Takes a generator and passages; gives the same batches again, from the journal where it has them.
Every job that has self-edits written goes through here.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aios.app.composition import Run
from aios.core.config.schemas import Config
from aios.core.data.edit_rows import from_row, to_row
from aios.core.errors import RunInterrupted, StorageError
from aios.core.events import Notice, StageFinished, StageProgress, StageStarted
from aios.core.protocols import Emit, ShouldStop
from aios.core.seal.self_edit_generator import (
    EditBatch,
    PassageEdits,
    SelfEditGenerator,
    batched,
)
from aios.core.types import Drop, Failure, Passage
from aios.storage.journal import Journal

_COSTS = ("cached", "generated", "tokens", "seconds", "retries")


def journalled_edits(
    run: Run,
    generator: SelfEditGenerator,
    passages: tuple[Passage, ...],
    fingerprint: dict[str, object],
    should_stop: ShouldStop,
) -> list[PassageEdits]:
    """Self-edits of the passages of a run, journalled in its directory, shown as a stage.

    Raises:
        UsageError: The run's journal is of other work.
        RunInterrupted: `should_stop` said so; finished batches are kept.
    """
    began = time.monotonic()
    results: list[PassageEdits] = []
    run.emit(StageStarted("self-edits", len(passages), "passages"))
    with Journal(run.directory.path / "edits.journal", fingerprint) as journal:
        for batch, _ in journalled_batches(generator, passages, journal, should_stop, run.emit):
            results += batch.passages
            kept = sum(len(result.kept) for result in results)
            run.emit(StageProgress("self-edits", len(results), f"{kept} edits"))
    cached = sum(result.cached for result in results)
    kept = sum(len(result.kept) for result in results)
    summary = f"{kept} edits kept" + (f", {cached} candidates from the cache" if cached else "")
    run.emit(StageFinished("self-edits", time.monotonic() - began, summary))
    return results


def journalled_batches(
    generator: SelfEditGenerator,
    passages: Iterable[Passage],
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
        **{name: getattr(result, name) for name in _COSTS},
    }


def _decode(passage: Passage, record: dict[str, Any]) -> PassageEdits:
    try:
        failure = record["failure"]
        return PassageEdits(
            passage,
            kept=tuple(from_row(row) for row in record["kept"]),
            drops=tuple(Drop(**drop) for drop in record["drops"]),
            failure=None if failure is None else Failure(**failure),
            **{name: record[name] for name in _COSTS},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(
            f"the journal's record of passage {passage.id} is of another form: {error}",
            "start over without resuming",
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
