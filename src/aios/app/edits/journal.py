"""Self-edits that outlive a kill: finished passages are kept in a journal as they are made.

Takes a generator and passages; gives each passage's edits in the order of the passages, from the
journal where it has them. Every job that has self-edits written goes through here.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from aios.app.composition import Run, watched
from aios.core.config.schemas import Config
from aios.core.data.edit_rows import from_row, to_row
from aios.core.errors import RunInterrupted, StorageError
from aios.core.events import Notice, StageFinished, StageProgress, StageStarted
from aios.core.protocols import Emit, ShouldStop
from aios.core.seal.passage_edits import PassageEdits, Written
from aios.core.seal.self_edit_generator import SelfEditGenerator
from aios.core.types import Drop, Failure, Passage
from aios.storage.journal import Journal

_COSTS = ("cached", "generated", "tokens", "seconds", "retries")
_SYNC_SECONDS = 1.0  # a power cut loses at most so much; a kill, nothing that was finished
_MOST_WAITING = 512  # passages that may wait, in memory, for an earlier one to be finished


def journalled_edits(
    config: Config,
    run: Run,
    generator: SelfEditGenerator,
    passages: tuple[Passage, ...],
    fingerprint: dict[str, object],
    should_stop: ShouldStop,
) -> list[PassageEdits]:
    """Self-edits of the passages of a run, journalled in its directory, shown as a stage.

    Raises:
        UsageError: The run's journal is of other work.
        RunInterrupted: `should_stop` said so; finished passages are kept.
        BackendError: The backend is dead; finished passages are kept.
    """
    began = time.monotonic()
    results: list[PassageEdits] = []
    kept = 0
    journal_path = run.directory.path / "edits.journal"
    with (
        watched(config, run, "self-edits", should_stop) as watch,
        Journal(journal_path, fingerprint) as journal,
    ):
        watch.emit(StageStarted("self-edits", len(passages), "passages"))
        journalled = JournalledEdits(generator, journal, watch.should_stop, watch.emit)
        for result, _ in journalled.run(passages):
            results.append(result)
            kept += len(result.kept)
            watch.emit(StageProgress("self-edits", len(results), f"{kept} edits"))
    cached = sum(result.cached for result in results)
    summary = f"{kept} edits kept" + (f", {cached} candidates from the cache" if cached else "")
    run.emit(StageFinished("self-edits", time.monotonic() - began, summary))
    run.emit(run.telemetry.summary().event("self-edits"))
    return results


class JournalledEdits:
    """Passages through a generator, each recorded as it is finished.

    A passage is journalled before its completions are cached: so one that must be made again
    after a kill meets the same cache as the first time, and comes out the same. What failed is
    tried again when the run goes on, unless trying again cannot help.

    Args:
        generator: The generator.
        journal: Of this work; opened.
        should_stop: Asked before each passage that would be begun.
        emit: Shows a notice where work is reused.
        try_again: Whether what failed is tried again; not where later work was built on it.
    """

    def __init__(
        self,
        generator: SelfEditGenerator,
        journal: Journal,
        should_stop: ShouldStop,
        emit: Emit,
        *,
        try_again: bool = True,
    ) -> None:
        self._generator = generator
        self._journal = journal
        self._should_stop = should_stop
        self._emit = emit
        self._try_again = try_again
        self._waiting: deque[str] = deque()  # keys of what is begun or done, not yet given out
        self._ready: dict[str, tuple[PassageEdits, bool]] = {}  # done, and whether before this run
        self._begun: dict[int, str] = {}  # keys of what the generator has, by its number there
        self._stopped = False
        self._synced = time.monotonic()

    def run(self, passages: Iterable[Passage]) -> Iterator[tuple[PassageEdits, bool]]:
        """Each passage's edits, in order, and whether an earlier run had made them.

        Memory holds the passages in flight and at most `_MOST_WAITING` that wait for one of them.

        Raises:
            RunInterrupted: `should_stop` said so. What was in flight is finished first.
            BackendError: The backend is dead.
        """
        if len(self._journal):
            self._emit(Notice(f"resuming: {len(self._journal)} passages are already done"))
        source = enumerate(passages)
        following = next(source, None)
        while following is not None:
            to_do = self._to_do(chain([following], source))
            for written in self._generator.stream(to_do):
                self._record(written)
                yield from self._in_order()
            yield from self._in_order()
            if self._stopped:
                raise RunInterrupted("stopped on request; finished passages are kept")
            following = next(source, None)

    def _to_do(self, source: Iterator[tuple[int, Passage]]) -> Iterator[Passage]:
        """Passages for the generator, until too many wait; those that are done are set aside."""
        begun = 0
        while len(self._waiting) < _MOST_WAITING:
            following = next(source, None)
            if following is None:
                return
            if self._should_stop():
                self._stopped = True
                return
            number, passage = following
            key = f"{number}:{passage.id}"
            self._waiting.append(key)
            done = self._done_before(key, passage)
            if done is not None:
                self._ready[key] = done, True
            else:
                self._begun[begun] = key
                begun += 1
                yield passage

    def _done_before(self, key: str, passage: Passage) -> PassageEdits | None:
        record = self._journal.get(key)
        if record is None:
            return None
        result = _decode(passage, record)
        failed = result.failure is not None and result.failure.retryable
        return None if failed and self._try_again else result

    def _record(self, written: Written) -> None:
        key = self._begun.pop(written.number)
        now = time.monotonic()
        sync = now - self._synced >= _SYNC_SECONDS
        if sync:
            self._synced = now
        self._journal.append(key, encode_result(written.edits), sync=sync)
        self._generator.remember(written)
        self._ready[key] = written.edits, False

    def _in_order(self) -> Iterator[tuple[PassageEdits, bool]]:
        """What can be given out: passages up to the first that is not finished."""
        while self._waiting and self._waiting[0] in self._ready:
            yield self._ready.pop(self._waiting.popleft())


def encode_result(result: PassageEdits) -> dict[str, object]:
    """A passage's result as the journal keeps it."""
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
        "strategy": generator.strategy_name,
        "parser": [part.strategy.parser_version for part in generator.parts],
        "edits per passage": generator.num_edits,
        "sampling": asdict(generator.sampling),
        "filter": asdict(generator.filter_settings),
        "duplicates by meaning": generator.embedder is not None,
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
