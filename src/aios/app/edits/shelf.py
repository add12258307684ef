"""Self-edits as pages look at them: indexes and passages' texts that are kept between looks.

Takes sources (`aios.app.edits.sources`) and what is asked for; gives a page of passages beside
their edits. A few indexes and the texts of a few files are kept, those that were asked for last;
both are read again when their files change.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from aios.app.edits.index import EditIndex
from aios.app.edits.inspect_choice import MOST_CHARACTERS, MOST_SOURCE_CHARACTERS, cut
from aios.app.edits.inspection import Selection, ShownPassage
from aios.app.edits.sources import EditSource, written_strategies
from aios.app.edits.totals import EditTotals
from aios.app.kept import KeptByStamp, Stamp
from aios.app.runs.growing_lines import NewLines
from aios.core.data.readers import read_passages
from aios.core.errors import UsageError

MOST_TEXT = 48 * 2**20  # characters of the passages of one file
MOST_FILE_BYTES = 256 * 2**20
SMALL_BYTES = 4 * 2**20  # of a source that is read whole for a row of the list

_KEPT_INDEXES = 4
_KEPT_TEXTS = 2
_KEPT_GLANCES = 2_000
_PART = re.compile(r"#\d+\Z")


@dataclass(frozen=True, slots=True)
class PassageTexts:
    """The passages of a file.

    Attributes:
        passages: Title and text by id.
        whole: Whether all are here; a large file is held in part.
        problem: Why none are; empty where there are some.
    """

    passages: Mapping[str, tuple[str, str]]
    whole: bool = True
    problem: str = ""

    def of(self, passage_id: str) -> tuple[str, str] | None:
        """Title and text of a passage; of the whole one where it is a part of it."""
        found = self.passages.get(passage_id)
        return found or self.passages.get(_PART.sub("", passage_id))

    def with_text(self, wanted: str, ids: list[str]) -> list[str]:
        """Which of these passages have a text in their title or text."""
        wanted = wanted.lower()
        return [
            id
            for id in ids
            if (found := self.of(id)) is not None
            and (wanted in found[1].lower() or wanted in found[0].lower())
        ]


@dataclass(frozen=True, slots=True)
class EditPage:
    """A page of passages beside their self-edits.

    Attributes:
        matching: Passages with what was asked for.
        page: This page's number, from 1.
        pages: How many there are, at least 1.
        shown: The passages.
        searched_all: False where the search was stopped since it took too long.
        texts: Whether the passages' texts are known.
        problem: Why they are not.
    """

    matching: int
    page: int
    pages: int
    shown: tuple[ShownPassage, ...]
    searched_all: bool
    texts: bool
    problem: str


@dataclass(frozen=True, slots=True)
class Glance:
    """A source in a row of a list; what would take long to count is None.

    Attributes:
        passages: Passages with an edit or a drop.
        kept: Kept edits.
        dropped: Drops: whole candidates, and items of kept ones.
        strategies: Names, or the mix.
    """

    passages: int | None
    kept: int | None
    dropped: int | None
    strategies: str


class EditShelf:
    """Keeps what was read. Safe to be asked by several threads."""

    def __init__(self) -> None:
        self._indexes: OrderedDict[Hashable, EditIndex] = OrderedDict()
        self._glances: OrderedDict[Stamp, Glance] = OrderedDict()
        self._guard = threading.Lock()
        self._texts: KeptByStamp[PassageTexts] = KeptByStamp(_KEPT_TEXTS)

    def totals(self, source: EditSource) -> EditTotals:
        """Counts and distributions of a source.

        Raises:
            StorageError: It cannot be read.
        """
        return self._index(source).totals()

    def glance(self, source: EditSource) -> Glance:
        """A source in short; what was counted is kept until its files change.

        Raises:
            StorageError: It cannot be read.
        """
        stamp = source.stamp
        with self._guard:
            known = self._glances.get(stamp)
        if known is None:
            known = _glance(source)
            with self._guard:
                self._glances[stamp] = known
                while len(self._glances) > _KEPT_GLANCES:
                    self._glances.popitem(last=False)
        return known

    def page(
        self, source: EditSource, selection: Selection, text: str = "", page: int = 1
    ) -> EditPage:
        """A page of passages; a number beyond the last page gives the last.

        Args:
            source: The self-edits.
            selection: Which edits and drops are asked for, and how many passages to a page.
            text: Only passages with this text in them, in an edit or in a drop.
            page: The page's number, from 1.

        Raises:
            StorageError: The source cannot be read.
        """
        index = self._index(source)
        texts = PassageTexts({}, problem="The file that the passages came from is not known.")
        if source.input is not None:
            texts = self._texts.of_file(source.input, read_texts)
        every = index.find(Selection())
        own = texts.with_text(text, index.ids(every.passages)) if text else []
        found = index.find(selection, text, own)
        size = max(1, selection.limit)
        pages = max(1, -(-len(found) // size))
        page = min(max(1, page), pages)
        ids = index.ids(found.passages[(page - 1) * size : page * size])
        shown = index.shown(ids, selection)
        return EditPage(
            matching=len(found),
            page=page,
            pages=pages,
            shown=tuple(_with_text(passage, texts) for passage in shown),
            searched_all=found.whole,
            texts=bool(texts.passages),
            problem=texts.problem,
        )

    def _index(self, source: EditSource) -> EditIndex:
        # A complete file is never added to: another stamp is another file. A journal grows.
        key = source.files, source.stamp if source.complete else ()
        with self._guard:
            index = self._indexes.pop(key, None) or source.index()
            self._indexes[key] = index
            while len(self._indexes) > _KEPT_INDEXES:
                self._indexes.popitem(last=False)
            return index


def read_texts(path: Path) -> PassageTexts:
    """The passages of a file, as far as they may be held in memory."""
    found: dict[str, tuple[str, str]] = {}
    room = MOST_TEXT
    try:
        if path.stat().st_size > MOST_FILE_BYTES:
            return PassageTexts({}, False, f"{path.name} is too large to be held in memory.")
        for passage in read_passages(path, on_reject=lambda _: None):
            room -= len(passage.text) + len(passage.title)
            if room < 0:
                return PassageTexts(found, whole=False)
            found[passage.id] = passage.title, passage.text
    except OSError as error:
        return PassageTexts({}, False, f"{path.name} cannot be read: {error.strerror}.")
    except UsageError as error:  # a DataError, say
        return PassageTexts({}, False, error.message.replace(str(path), path.name))
    return PassageTexts(found)


def _with_text(passage: ShownPassage, texts: PassageTexts) -> ShownPassage:
    found = texts.of(passage.id)
    if found is None:
        return passage
    title, text = found
    return replace(
        passage, title=cut(title, MOST_CHARACTERS), text=cut(text, MOST_SOURCE_CHARACTERS)
    )


def _glance(source: EditSource) -> Glance:
    if source.bytes <= SMALL_BYTES:
        totals = source.index().totals()
        names = ", ".join(one.strategy for one in totals.strategies)
        dropped = totals.all.dropped + totals.all.items_dropped
        strategies = names or written_strategies(source)
        return Glance(totals.passages, totals.all.kept, dropped, strategies)
    lines = {kind: sum(1 for _ in NewLines(path)) for path, kind in source.files}
    if "journal" in lines:
        return Glance(max(0, lines["journal"] - 1), None, None, written_strategies(source))
    return Glance(None, lines["edits"], lines["drops"], "")
