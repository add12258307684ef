"""What an expert has learnt from, and how well: its passages, training texts, curve and scores.

Takes an expert's folder; gives its documents with the change of their losses and its interval, its
training texts a page at a time, and its learning curve. Files are read again only when they have
changed; of the training texts only their places in the file are kept in memory.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from aios.app.charts.svg import Series, line_chart
from aios.app.experts.publishing import EXAMPLES_FILE
from aios.app.experts.registry import read_documents
from aios.app.kept import KeptByStamp
from aios.core.errors import NonFiniteError, UsageError
from aios.core.evaluation.statistics import Interval, difference_interval
from aios.core.experts.provenance import DOCUMENTS_FILE, Document, Documents
from aios.core.files import guarded, parse_json

_MAX_LINE_BYTES = 1 << 20
_MOST_TEXTS = 500_000
_SAMPLES = 2000
_PASSAGE = "passage"  # `TrainExample.source` of a passage itself


@dataclass(frozen=True, slots=True)
class Scores:
    """How the loss of the questions of an expert's passages has changed.

    Attributes:
        passages: Passages whose questions were validated on.
        before: Mean loss (nats a token) over these passages without the expert.
        after: And with it.
        change: The difference with its bootstrap interval over passages; None below two passages.
    """

    passages: int
    before: float
    after: float
    change: Interval | None


@dataclass(frozen=True, slots=True)
class Learnt:
    """The passages of an expert, and how well their questions are answered.

    Attributes:
        documents: What it was made from.
        scores: None where nothing was validated on questions.
    """

    documents: Documents
    scores: Scores | None


@dataclass(frozen=True, slots=True)
class DocumentPage:
    """A page of the passages that match: see `browsing.ExpertPage`."""

    documents: tuple[Document, ...]
    found: int
    page: int
    pages: int


@dataclass(frozen=True, slots=True)
class TrainingText:
    """A text that an expert was trained on.

    Attributes:
        source: ``passage``, or the strategy that made the self-edit.
        passage_id: The passage that it comes from.
        context: Its beginning, which was read and not learnt; mostly empty.
        text: The rest.
    """

    source: str
    passage_id: str
    context: str
    text: str


@dataclass(frozen=True, slots=True)
class TextPage:
    """A page of the training texts that match.

    Attributes:
        texts: Those on it.
        found: How many match.
        page: Its number, from 1.
        pages: How many pages there are, at least 1.
        sources: How many texts there are of each source, of all passages.
        known: Whether the texts were kept at all.
    """

    texts: tuple[TrainingText, ...]
    found: int
    page: int
    pages: int
    sources: Mapping[str, int]
    known: bool = True


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a training text stands in its file."""

    offset: int
    length: int
    source: str
    passage_id: str


class ExpertReader:
    """Reads experts' folders; safe to be asked by several threads."""

    def __init__(self) -> None:
        self._learnt: KeptByStamp[Learnt] = KeptByStamp(4)
        self._places: KeptByStamp[tuple[_Place, ...] | None] = KeptByStamp(4)

    def learnt(self, folder: Path) -> Learnt:
        """The passages of an expert and their scores.

        Raises:
            StorageError: The record is damaged.
        """
        return self._learnt.of_file(folder / DOCUMENTS_FILE, _read_learnt)

    def documents(self, folder: Path, text: str, page: int, size: int) -> DocumentPage:
        """A page of the passages whose id or origin holds a text. Raises what `learnt` does."""
        wanted = text.casefold()
        found = [
            one
            for one in self.learnt(folder).documents.trained
            if wanted in one.id.casefold() or wanted in one.source.casefold()
        ]
        page, pages = _clamped(page, len(found), size)
        return DocumentPage(tuple(found[(page - 1) * size : page * size]), len(found), page, pages)

    def texts(self, folder: Path, *, source: str, passage: str, page: int, size: int) -> TextPage:
        """A page of the texts that an expert was trained on.

        Args:
            folder: The expert's.
            source: ``passage``, a strategy, ``edits`` for all but passages; empty for all.
            passage: Id of a passage, or empty.
            page: The page's number, from 1; one too far is the last one.
            size: Texts on a page.

        Raises:
            StorageError: The file cannot be read.
        """
        path = folder / EXAMPLES_FILE
        places = self._places.of_file(path, _read_places)
        if places is None:
            return TextPage((), 0, 1, 1, {}, known=False)
        sources: dict[str, int] = {}
        for one in places:
            sources[one.source] = sources.get(one.source, 0) + 1
        found = [
            one
            for one in places
            if (not passage or one.passage_id == passage)
            and (
                not source or one.source == source or (source == "edits" and one.source != _PASSAGE)
            )
        ]
        page, pages = _clamped(page, len(found), size)
        texts = _read_texts(path, found[(page - 1) * size : page * size])
        return TextPage(texts, len(found), page, pages, sources)


def learning_curve(card: Mapping[str, Any]) -> Markup | None:
    """The losses during an expert's training as a chart; None where they are not recorded.

    Args:
        card: The content of the expert's ``expert.json``.
    """
    points = card.get("curve")
    points = [one for one in points if isinstance(one, dict)] if isinstance(points, list) else []
    trained = _line(points, "train_loss")
    validated = _line(points, "validation_loss")
    best = card.get("best_step")
    series = []
    if len(trained) > 1:
        series.append(Series("training texts", 0, trained))
    if len(validated) > 1:
        marks = [point for point in validated if point[0] == best]
        series.append(Series("validation", 1, validated, marks=marks))
    if not series:
        return None
    first, last = series[-1].points[0][1], series[-1].points[-1][1]
    return line_chart(
        series,
        id="learning-curve",
        title="Learning curve",
        desc=f"Loss of the {series[-1].name} by step of the training: {first:.3f} at first, "
        f"{last:.3f} at the end.",
        x_label="steps",
        y_label="loss (nats a token)",
    )


def _line(points: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    found = [
        (float(one["step"]), float(one[name]))
        for one in points
        if _is_number(one.get("step")) and _is_number(one.get(name))
    ]
    return sorted(found)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _read_learnt(path: Path) -> Learnt:
    documents = read_documents(path.parent)
    names: list[str] = []
    before: list[float] = []
    after: list[float] = []
    for one in documents.trained:
        if one.validation_loss_before is not None and one.validation_loss is not None:
            names.append(one.id)
            before.append(float(one.validation_loss_before))
            after.append(float(one.validation_loss))
    if not names:
        return Learnt(documents, None)
    change = None
    if len(set(names)) > 1:
        try:
            change = difference_interval(after, before, names, samples=_SAMPLES)
        except (UsageError, NonFiniteError):  # in a record that another program wrote
            change = None
    scores = Scores(len(names), sum(before) / len(before), sum(after) / len(after), change)
    return Learnt(documents, scores)


def _read_places(path: Path) -> tuple[_Place, ...] | None:
    """Where each text stands; lines that are none are left out. None where there is no file."""
    places: list[_Place] = []
    with guarded("read", path):
        if not path.is_file():
            return None
        with path.open("rb") as stream:
            offset = 0
            while len(places) < _MOST_TEXTS and (line := stream.readline(_MAX_LINE_BYTES + 1)):
                if len(line) > _MAX_LINE_BYTES:  # the rest of it is no record either
                    offset += len(line)
                    continue
                record = _record(line)
                if record is not None:
                    source, passage_id = str(record["source"]), str(record["passage_id"])
                    places.append(
                        _Place(offset, len(line), sys.intern(source), sys.intern(passage_id))
                    )
                offset += len(line)
    return tuple(places)


def _read_texts(path: Path, places: Sequence[_Place]) -> tuple[TrainingText, ...]:
    found: list[TrainingText] = []
    with guarded("read", path):
        if not places:
            return ()
        with path.open("rb") as stream:
            for one in places:
                stream.seek(one.offset, os.SEEK_SET)
                record = _record(stream.read(one.length))
                if record is not None:  # else it was replaced since
                    found.append(_training_text(record))
    return tuple(found)


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = parse_json(line)
    except ValueError:
        return None
    if not isinstance(record, dict):
        return None
    good = all(isinstance(record.get(key), str) for key in ("text", "source", "passage_id"))
    return record if good else None


def _training_text(record: Mapping[str, Any]) -> TrainingText:
    text, begin = record["text"], 0
    spans = record.get("loss_spans")
    if isinstance(spans, list) and len(spans) == 1:
        match spans[0]:
            case [int(start), int()] if 0 < start < len(text):
                begin = start
    return TrainingText(record["source"], record["passage_id"], text[:begin], text[begin:])


def _clamped(page: int, found: int, size: int) -> tuple[int, int]:
    pages = max(1, -(-found // size))
    return min(max(page, 1), pages), pages


def require_document(documents: Documents, expert_id: str, passage_id: str) -> Document:
    """A passage that an expert was trained on.

    Raises:
        UsageError: It was not trained on it, or that is not recorded.
    """
    found = next((one for one in documents.trained if one.id == passage_id), None)
    if found is None:
        raise UsageError(
            f"there is no passage {passage_id!r:.200} in expert {expert_id!r}",
            "choose one of the list of its passages",
        )
    return found
