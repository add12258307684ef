"""An index of self-edits on disk, so that any page of a list of many passages comes at once.

Takes the file of a finished generation with its list of drops, or the journal of one that goes on;
gives which passages have what was asked for, and the edits and drops of some of them. Each line is
read once and its place is noted (about 40 bytes an edit and 16 a score, at most `MOST_RECORDS`);
texts stay on disk and are read again when they are shown. A file that grows is read on from where
the last look ended.
"""

from __future__ import annotations

import json
import os
import threading
import time
from array import array
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from aios.app.edits.inspect_choice import MOST_CHARACTERS, Choice, cut
from aios.app.edits.inspection import Selection, ShownPassage, shown_name
from aios.app.edits.records import FAULTS, Kind, Names, Records, journalled, parsed_line
from aios.app.edits.totals import Columns, EditTotals, totals_of
from aios.app.runs.growing_lines import NewLines
from aios.core.data.edit_files import BrokenLine, parse_drop
from aios.core.data.edit_rows import from_row
from aios.core.data.rejects import one_line
from aios.core.files import guarded, parse_json
from aios.core.types import Drop, SelfEdit

MOST_RECORDS = 2_000_000
MOST_SEARCH_SECONDS = 8.0
KEPT = 0  # among the numbers of reasons

Numbers: TypeAlias = NDArray[np.int64]

_LISTED_BROKEN = 5
_MOST_INDEX = 2**20 - 1
_LOOK_EVERY = 256
_KEPT_SEARCHES = 8


@dataclass(frozen=True, slots=True)
class Found:
    """Passages with what was asked for, in their order.

    Attributes:
        passages: Their numbers in the index.
        whole: Whether all were looked through; a search that takes too long stops.
    """

    passages: Numbers
    whole: bool = True

    def __len__(self) -> int:
        return len(self.passages)


class _LateError(Exception):
    """A search has taken long enough."""


class EditIndex:
    """An index of one generation. Safe to be asked by several threads, which take turns.

    Args:
        files: What to read, in this order: edits before drops.
    """

    def __init__(self, *files: tuple[Path, Kind]) -> None:
        self._files = files
        self._guard = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._lines = [NewLines(path) for path, _ in self._files]
        self._records = Records()
        self._numbers: dict[str, int] = {}  # of passages, by id
        self._ids: list[str] = []
        self._first: tuple[dict[int, int], dict[int, int]] = ({}, {})  # where each came first
        self._strategies, self._reasons, self._models = Names(), Names(""), Names()
        self._model_of = array("B")  # of each record
        self._keys: dict[str, tuple[int, int]] = {}  # a journal's records, by its key
        self._dead: list[tuple[int, int]] = []  # records that a later line has replaced
        self._failed: set[str] = set()
        self._broken = 0
        self._broken_listed: list[BrokenLine] = []
        self._left_out = 0
        self._line = [0] * len(self._files)
        self._columns: Columns | None = None
        self._order: Numbers = np.zeros(0, np.int64)
        self._searched: OrderedDict[str, tuple[int, Found]] = OrderedDict()

    # ------------------------------------------------------------ asking

    def totals(self) -> EditTotals:
        """Counts and distributions over everything.

        Raises:
            StorageError: A file cannot be read.
        """
        with self._guard:
            self._refresh()
            return totals_of(self._now())

    def find(self, selection: Selection, text: str = "", also: Collection[str] = ()) -> Found:
        """The passages with an edit or a drop that was asked for.

        Args:
            selection: Which edits and drops are asked for, by strategy, reason, kept or dropped.
            text: Only passages with this text in their id or in one of these edits and drops,
                whatever its capitals.
            also: Ids of passages that have the text in their own.

        Raises:
            StorageError: A file cannot be read.
        """
        with self._guard:
            self._refresh()
            wanted = self._wanted(self._now(), selection)
            whole = True
            if text:
                hits = self._search(text)
                whole = hits.whole
                own = [n for id in also if (n := self._numbers.get(id)) is not None]
                in_ids = [n for n, id in enumerate(self._ids) if text.lower() in id.lower()]
                of_records = np.isin(wanted, hits.passages)
                of_passages = np.isin(self._now().passage[wanted], np.array(own + in_ids, np.int64))
                wanted = wanted[of_records | of_passages]
            there = np.zeros(len(self._ids), bool)
            there[self._now().passage[wanted]] = True
            return Found(self._order[there[self._order]], whole)

    def ids(self, numbers: Sequence[int] | Numbers) -> list[str]:
        """The ids of passages."""
        with self._guard:
            return [self._ids[int(number)] for number in numbers if number < len(self._ids)]

    def shown(self, ids: Sequence[str], selection: Selection) -> tuple[ShownPassage, ...]:
        """Some passages with what was asked for of them, cut to what a page can hold.

        Raises:
            StorageError: A file cannot be read.
        """
        with self._guard:
            self._refresh()
            columns = self._now()
            numbers = [self._numbers[id] for id in ids if id in self._numbers]
            wanted = self._wanted(columns, selection)
            wanted = wanted[np.isin(columns.passage[wanted], np.array(numbers, np.int64))]
            choice = Choice(Selection(passages=tuple(ids)))
            records = list(self._read(wanted))
            for _, found in records:
                if isinstance(found, SelfEdit):
                    choice.edit(found)
            choice.edits_end()
            for record, found in records:
                if isinstance(found, Drop):
                    choice.drop(found, whole=bool(columns.whole[record]), is_new=True)
            bad = {score.name: score.is_bad for score in totals_of(columns).scores}
            made = {passage.id: passage for passage in choice.passages(bad)}
        cut_ids = (cut(id, MOST_CHARACTERS) for id in ids)
        return tuple(made[id] for id in cut_ids if id in made)

    # ------------------------------------------------------------ reading on

    def _refresh(self) -> None:
        """Reads what was added since; all of it anew where a file was replaced."""
        if any(lines.replaced() for lines in self._lines):
            self._begin()
        for number, ((path, kind), lines) in enumerate(zip(self._files, self._lines, strict=True)):
            for line in lines:
                self._line[number] += 1
                self._columns = None
                if len(self._records) >= MOST_RECORDS:
                    self._left_out += 1
                    continue
                try:
                    self._take(number, kind, line, lines.position - len(line) - 1)
                except FAULTS as error:
                    self._note(path, self._line[number], error)

    def _take(self, file: int, kind: Kind, line: bytes, offset: int) -> None:
        if not line.strip():
            return
        row = parse_json(line)
        if not isinstance(row, dict):
            raise ValueError("no JSON object")
        if kind != "journal":
            record = from_row(row) if kind == "edits" else parse_drop(row)
            self._add(file, offset, len(line), 0, record)
            return
        if "journal" in row:  # its first line
            return
        key, value = str(row["key"]), row["value"]
        records = list(journalled(value))
        if key in self._keys:
            self._dead.append(self._keys.pop(key))
            self._failed.discard(key)
        start = len(self._records)
        for place, record in enumerate(records):
            self._add(file, offset, len(line), place, record, key)
        self._keys[key] = start, len(self._records)
        if value.get("failure") is not None:
            self._failed.add(key)

    def _add(
        self, file: int, offset: int, length: int, place: int, found: SelfEdit | Drop, key: str = ""
    ) -> None:
        records, kept = self._records, isinstance(found, SelfEdit)
        number = self._numbers.get(found.passage_id)
        if number is None:
            number = self._numbers[found.passage_id] = len(self._ids)
            self._ids.append(found.passage_id)
        rank = int(head) if (head := key.partition(":")[0]).isdecimal() else len(records)
        self._first[0 if kept or key else 1].setdefault(number, rank)
        records.passage.append(number)
        records.file.append(file)
        records.offset.append(offset)
        records.length.append(length)
        records.place.append(place)
        records.strategy.append(self._strategies.number(found.strategy))
        records.index.append(min(found.index, _MOST_INDEX))
        if isinstance(found, Drop):
            records.reason.append(self._reasons.number(found.reason))
            self._model_of.append(0)
            return
        records.reason.append(KEPT)
        self._model_of.append(self._models.number(found.model))
        records.score("words", len(found.text.split()))
        if found.tokens:
            records.score("tokens generated", found.tokens)
        for name, value in found.scores.items():
            records.score(shown_name(name), value)

    def _note(self, path: Path, line: int, error: Exception) -> None:
        self._broken += 1
        if len(self._broken_listed) < _LISTED_BROKEN:
            self._broken_listed.append(BrokenLine(path, line, one_line(error, 120)))

    def _now(self) -> Columns:
        """The columns as they are now, with what follows from them."""
        if self._columns is None:
            records = self._records
            alive = np.ones(len(records), bool)
            for start, end in self._dead:
                alive[start:end] = False
            passage = np.array(records.passage, np.int64)
            strategy = np.array(records.strategy, np.int64)
            reason = np.array(records.reason, np.int64)
            candidate = passage << 28 | strategy << 20 | np.array(records.index, np.int64)
            whole = ~np.isin(candidate, candidate[alive & (reason == KEPT)])
            self._columns = Columns(
                passage=passage,
                strategy=strategy,
                reason=reason,
                model=np.array(self._model_of, np.int64),
                whole=whole | (reason == KEPT),
                alive=alive,
                scores={
                    name: (np.array(at, np.int64), np.array(values, np.float64))
                    for name, (at, values) in records.scores.items()
                },
                strategies=tuple(self._strategies.names),
                reasons=tuple(self._reasons.names),
                models=tuple(self._models.names),
                failed=len(self._failed),
                broken=self._broken,
                broken_listed=tuple(self._broken_listed),
                too_long=sum(lines.too_long for lines in self._lines),
                left_out=self._left_out,
            )
            self._order = self._in_order()
        return self._columns

    def _in_order(self) -> Numbers:
        """Passages in the order of the edits; those with drops alone where the drops have them."""
        first, drops = self._first
        keys: dict[int, tuple[float, int, int]] = {n: (rank, 1, 0) for n, rank in first.items()}
        following = float("inf")
        for number, rank in reversed(drops.items()):
            if number in first:
                following = first[number]
            else:
                keys[number] = (following, 0, rank)
        return np.array(sorted(keys, key=keys.__getitem__), np.int64)

    def _wanted(self, columns: Columns, selection: Selection) -> Numbers:
        """The records that a selection wants."""
        kept = columns.reason == KEPT
        fits = kept & (selection.kept and not selection.reasons)
        dropped = ~kept & selection.dropped
        if selection.reasons:
            dropped &= np.isin(columns.reason, self._reasons.find(selection.reasons))
        fits = (fits | dropped) & columns.alive
        if selection.strategies:
            fits &= np.isin(columns.strategy, self._strategies.find(selection.strategies))
        return np.flatnonzero(fits)

    # ------------------------------------------------------------ texts

    def _read(
        self, records: Numbers, needle: str = "", end: float = float("inf")
    ) -> Iterator[tuple[int, SelfEdit | Drop]]:
        """Edits and drops from disk; what was changed since is left out.

        Args:
            records: Their numbers.
            needle: Lines that cannot hold this text in JSON are passed over.
            end: When it is time to stop.

        Raises:
            _LateError: It is past that.
        """
        column = self._records
        for number, (path, kind) in enumerate(self._files):
            mine = [record for record in map(int, records) if column.file[record] == number]
            last, found = -1, list[SelfEdit | Drop]()
            with guarded("read", path), ExitStack() as stack:
                try:
                    file = stack.enter_context(open(path, "rb")).fileno()
                except FileNotFoundError:
                    continue
                for step, record in enumerate(mine):
                    if step % _LOOK_EVERY == 0 and time.monotonic() > end:
                        raise _LateError
                    if column.offset[record] != last:
                        last = column.offset[record]
                        found = parsed_line(
                            kind, os.pread(file, column.length[record], last), needle
                        )
                    if column.place[record] < len(found):
                        yield record, found[column.place[record]]

    def _search(self, text: str) -> Found:
        """The records that hold a text, not passages.

        Of the last searches they are kept: in a file that grows only what was added is read.
        """
        known, before = self._searched.pop(text, (0, Found(np.zeros(0, np.int64))))
        wanted, hits, whole = text.lower(), array("I"), before.whole
        needle = json.dumps(wanted, ensure_ascii=False)[1:-1]
        every, end = np.flatnonzero(self._now().alive), time.monotonic() + MOST_SEARCH_SECONDS
        every = every[every >= known]
        try:
            for record, found in self._read(every, needle, end):
                told = (
                    found.text if isinstance(found, SelfEdit) else f"{found.text}\n{found.detail}"
                )
                if wanted in told.lower():
                    hits.append(record)
        except _LateError:
            whole = False
        made = Found(np.concatenate([before.passages, np.array(hits, np.int64)]), whole)
        self._searched[text] = len(self._records), made
        while len(self._searched) > _KEPT_SEARCHES:
            self._searched.popitem(last=False)
        return made
