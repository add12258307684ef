"""Looking at generated self-edits: what was kept, what was dropped and why, and some of each.

Takes a file of self-edits with the lists beside it (`aios.core.data.edit_files`); gives one
`Inspection` with totals over everything and a choice of passages with their edits and drops. Each
file is read once, front to back. Memory does not grow with the texts: of an edit that is not shown
only hashes are kept (about 100 bytes an edit), and what is shown is cut (`inspect_choice`).
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from aios.app.edits.inspect_choice import (
    MOST_CHARACTERS,
    MOST_SCORES,
    MOST_SOURCE_CHARACTERS,
    Choice,
    cut,
    hash8,
)
from aios.app.edits.inspection import (
    OTHERS,
    Inspection,
    ReasonCount,
    Selection,
    StrategyCount,
    Values,
    WithoutEdits,
    count_name,
    shown_name,
)
from aios.core.data.edit_files import (
    BrokenLine,
    EditFiles,
    files_of,
    read_drops,
    read_edit_rows,
    read_rejects,
)
from aios.core.data.readers import read_passages
from aios.core.data.rejects import Reject
from aios.core.errors import UsageError
from aios.core.events import Event, StageFinished, StageProgress, StageStarted
from aios.core.types import Drop, SelfEdit

LISTED_BROKEN = 5
LISTED_WITHOUT_EDITS = 50

_ROWS_BETWEEN_EVENTS = 20_000
_PART = re.compile(r"#\d+\Z")
_Record = TypeVar("_Record")


def inspect_edits(
    path: Path,
    selection: Selection | None = None,
    *,
    dropped: Path | None = None,
    passages: Path | None = None,
    emit: Callable[[Event], None] = lambda event: None,
) -> Inspection:
    """Reads what a generation left.

    Args:
        path: The self-edits, ``.jsonl`` or ``.parquet``.
        selection: What is shown; the first ten passages by default.
        dropped: The list of drops, where it is not beside `path`.
        passages: The file that the edits were made from, to show the passages' texts.
        emit: Is told how many rows of a large file were read.

    Raises:
        DataError: A file cannot be read, or is not one of self-edits or passages.
        UsageError: Something was asked for by name that is not there; or a Parquet file, and
            pyarrow is not installed.
    """
    files = files_of(path, dropped)
    reading = _Reading(files, selection or Selection())
    for edit in _told(read_edit_rows(files.edits), files.edits, emit):
        reading.edit(edit)
    reading.edits_end()
    if files.dropped is not None:
        for drop in _told(read_drops(files.dropped), files.dropped, emit):
            reading.drop(drop)
    if files.rejects is not None:
        for reject in read_rejects(files.rejects):
            reading.reject(reject)
    reading.check_names()
    inspection = reading.inspection()
    return inspection if passages is None else reading.with_passages(inspection, passages)


def _told(
    records: Iterator[_Record], path: Path, emit: Callable[[Event], None]
) -> Iterator[_Record]:
    """The records; a file with many of them is a stage whose progress is told."""
    began, rows = time.monotonic(), 0
    stage = f"read {path.name}"
    for rows, record in enumerate(records, start=1):
        if rows == _ROWS_BETWEEN_EVENTS:
            emit(StageStarted(stage, unit="rows"))
        if rows % _ROWS_BETWEEN_EVENTS == 0:
            emit(StageProgress(stage, rows))
        yield record
    if rows >= _ROWS_BETWEEN_EVENTS:
        emit(StageFinished(stage, time.monotonic() - began, f"{rows:,} rows"))


class _Reading:
    """One pass over the files: totals, and what is shown."""

    def __init__(self, files: EditFiles, selection: Selection) -> None:
        self._files = files
        self._selection = selection
        self._choice = Choice(selection)
        self._with_edits: set[int] = set()  # hashes of passage ids
        self._without_edits: set[int] = set()
        self._listed: dict[int, tuple[str, Counter[str]]] = {}  # the first of these
        self._candidates: set[int] = set()  # hashes of kept candidates
        self._matching: set[int] = set()
        self._parents: set[int] = set()  # passages that were split into parts
        self._kept: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._whole: Counter[str] = Counter()
        self._items: Counter[str] = Counter()
        self._models: Counter[str] = Counter()
        self._rejects: Counter[str] = Counter()
        self._scores: dict[str, Values] = {}
        self._tokens = Values("tokens generated")
        self._broken = 0
        self._broken_listed: list[BrokenLine] = []

    def edit(self, edit: SelfEdit | BrokenLine) -> None:
        """Counts a kept edit."""
        if isinstance(edit, BrokenLine):
            self._note(edit)
            return
        passage = hash8(edit.passage_id)
        self._with_edits.add(passage)
        self._note_parent(edit.passage_id)
        self._candidates.add(hash8(edit.passage_id, edit.strategy, edit.index))
        count_name(self._kept, edit.strategy)
        count_name(self._models, edit.model)
        if edit.tokens:
            self._tokens.add(edit.tokens)
        for name, value in edit.scores.items():
            values = self._scores.get(name)
            if values is None:
                if len(self._scores) >= MOST_SCORES:
                    continue
                values = self._scores[name] = Values(shown_name(name))
            values.add(value)
        if self._selection.wants(edit):
            self._matching.add(passage)
            self._choice.edit(edit)

    def edits_end(self) -> None:
        """Says that all kept edits were counted, and drops come now."""
        self._choice.edits_end()

    def drop(self, drop: Drop | BrokenLine) -> None:
        """Counts a drop."""
        if isinstance(drop, BrokenLine):
            self._note(drop)
            return
        passage = hash8(drop.passage_id)
        whole = hash8(drop.passage_id, drop.strategy, drop.index) not in self._candidates
        count_name(self._whole if whole else self._items, drop.reason)
        if whole:
            count_name(self._dropped, drop.strategy)
        if passage not in self._with_edits:
            self._note_parent(drop.passage_id)
            self._without_edits.add(passage)
            if passage in self._listed or len(self._listed) < LISTED_WITHOUT_EDITS:
                named = self._listed.setdefault(passage, (shown_name(drop.passage_id), Counter()))
                count_name(named[1], drop.reason)
        if self._selection.wants(drop):
            self._choice.drop(drop, whole=whole, is_new=passage not in self._matching)
            self._matching.add(passage)

    def reject(self, reject: Reject | BrokenLine) -> None:
        """Counts a reject."""
        if isinstance(reject, BrokenLine):
            self._note(reject)
        else:
            count_name(self._rejects, reject.reason)

    def _note(self, broken: BrokenLine) -> None:
        self._broken += 1
        if len(self._broken_listed) < LISTED_BROKEN:
            self._broken_listed.append(broken)

    def _note_parent(self, passage_id: str) -> None:
        if part := _PART.search(passage_id):
            self._parents.add(hash8(passage_id[: part.start()]))

    def check_names(self) -> None:
        """Refuses a selection that names what is not there.

        Raises:
            UsageError: It does.
        """
        edits, selection = self._files.edits, self._selection
        reasons, strategies = self._whole + self._items, self._kept + self._dropped
        for passage in selection.passages:
            key = hash8(passage)
            if key not in self._with_edits and key not in self._without_edits:
                raise UsageError(
                    f"{edits} has no self-edit of a passage {shown_name(passage)!r}, and none "
                    "of it was dropped",
                    "Give the id as it stands under passage_id; parts of a long passage end in "
                    "#1, #2, ….",
                )
        if selection.reasons and self._files.dropped is None:
            raise UsageError(
                f"there is no list of what was dropped beside {edits}", "Name it with --dropped."
            )
        for what, asked, known in (
            ("reason", selection.reasons, reasons),
            ("strategy", selection.strategies, strategies),
        ):
            for name in asked:
                if shown_name(name) not in known and OTHERS not in known:
                    there = ", ".join(sorted(known)) or "none"
                    raise UsageError(
                        f"nothing in {edits} has the {what} {shown_name(name)!r}",
                        f"What is there: {there}.",
                    )

    def inspection(self) -> Inspection:
        """What was read, without the passages' texts."""
        scores = tuple(s for v in self._scores.values() if (s := v.summary()) is not None)
        bad = {score.name: score.is_bad for score in scores}
        kept, whole = self._kept.total(), self._whole.total()
        return Inspection(
            files=self._files,
            passages=len(self._with_edits) + len(self._without_edits),
            kept=kept,
            dropped=whole,
            items_dropped=self._items.total(),
            share_dropped=whole / (kept + whole) if kept + whole else None,
            reasons=tuple(
                ReasonCount(reason, self._whole[reason], self._items[reason])
                for reason, _ in (self._whole + self._items).most_common()
            ),
            strategies=tuple(
                StrategyCount(
                    name,
                    self._kept[name],
                    self._dropped[name],
                    self._dropped[name] / (self._kept[name] + self._dropped[name]),
                )
                for name, _ in (self._kept + self._dropped).most_common()
            ),
            models=dict(self._models.most_common()),
            tokens_generated=self._tokens.summary(),
            scores=scores,
            without_edits=len(self._without_edits),
            without_edits_listed=tuple(
                WithoutEdits(name, dict(reasons.most_common()))
                for name, reasons in self._listed.values()
            ),
            input_passages=None,
            untouched=None,
            rejects=dict(self._rejects.most_common()),
            broken=self._broken,
            broken_listed=tuple(self._broken_listed),
            matching=len(self._matching),
            shown=self._choice.passages(bad),
        )

    def with_passages(self, inspection: Inspection, path: Path) -> Inspection:
        """Adds titles and texts, puts the passages in their order, and counts those left out."""
        wanted = {_PART.sub("", p.id): "" for p in inspection.shown}
        wanted |= {p.id: "" for p in inspection.shown}
        found: dict[str, tuple[int, str, str]] = {}
        number = untouched = 0
        for number, passage in enumerate(read_passages(path, on_reject=lambda _: None), start=1):
            known = hash8(passage.id)
            if not any(
                known in hashes for hashes in (self._with_edits, self._without_edits, self._parents)
            ):
                untouched += 1
            if passage.id in wanted:
                text = cut(passage.text, MOST_SOURCE_CHARACTERS)
                found[passage.id] = number, cut(passage.title, MOST_CHARACTERS), text
        nowhere = (number + 1, "", "")
        sources = [
            found.get(p.id, found.get(_PART.sub("", p.id), nowhere)) for p in inspection.shown
        ]
        shown = [
            (place, replace(passage, title=title, text=text))
            for passage, (place, title, text) in zip(inspection.shown, sources, strict=True)
        ]
        shown.sort(key=lambda entry: entry[0])
        return replace(
            inspection,
            input_passages=number,
            untouched=untouched,
            shown=tuple(passage for _, passage in shown),
        )
