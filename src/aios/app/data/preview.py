"""What a file of passages holds, looked at before anything is done with it.

Takes a path; gives counts, the first passages, and what was left out with its reason. Read with
the same reader as the jobs use; passages are counted as they stand in the file, before long ones
are split. A look is bounded: by time, by passages, and by a file's size where it is parsed whole.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aios.app.kept import KeptByStamp
from aios.core.data.readers import PASSAGE_KEPT, REASONS, Reject, read_passages
from aios.core.errors import UsageError
from aios.core.types import Passage, Question

SHOWN = 6  # passages
SHOWN_TEXT = 1_500  # characters of each
SHOWN_QUESTIONS = 4
SHOWN_REJECTS = 20
MOST_SECONDS = 4.0
MOST_PASSAGES = 200_000
MOST_JSON_BYTES = 64 * 2**20  # a .json file is parsed whole
_MOST_KEPT = 64
_LOOK_EVERY = 64


@dataclass(frozen=True, slots=True)
class ShownPassage:
    """A passage as it is shown: its text may be cut.

    Attributes:
        id: Its id.
        title: Its title; may be empty.
        text: The text's beginning.
        cut: Whether there is more of it.
        questions: The first questions with their answers.
        asked: How many questions there are.
    """

    id: str
    title: str
    text: str
    cut: bool
    questions: tuple[Question, ...]
    asked: int


@dataclass(frozen=True, slots=True)
class DataPreview:
    """What a file holds.

    Attributes:
        passages: Passages.
        with_questions: How many of them have questions.
        questions: Questions in all.
        characters: Characters of all texts.
        first: The first passages.
        rejected: How many records, or parts of records, were left out, by reason.
        rejects: The first of them.
        whole: Whether the whole file was looked at; else the counts are of its beginning.
        problem: Why the file cannot be used; empty where it can.
        remedy: What to do about that.
    """

    passages: int
    with_questions: int
    questions: int
    characters: int
    first: tuple[ShownPassage, ...]
    rejected: Mapping[str, int]
    rejects: tuple[Reject, ...]
    whole: bool
    problem: str = ""
    remedy: str = ""

    @property
    def lost(self) -> int:
        """Records that became no passage."""
        return sum(n for reason, n in self.rejected.items() if reason not in PASSAGE_KEPT)

    def reasons(self) -> tuple[tuple[str, str, int], ...]:
        """Reason, what it means, and how often; the most frequent first."""
        found = sorted(self.rejected.items(), key=lambda item: (-item[1], item[0]))
        return tuple((reason, REASONS.get(reason, ""), count) for reason, count in found)


class _EnoughError(Exception):
    """As much was looked at as may be."""


class _Look:
    """One look at a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._end = time.monotonic() + MOST_SECONDS
        self._steps = 0
        self.passages = self.with_questions = self.questions = self.characters = 0
        self.first: list[ShownPassage] = []
        self.rejected: Counter[str] = Counter()
        self.rejects: list[Reject] = []

    def take_all(self) -> bool:
        """Counts until the end, or until it is enough; gives whether it was the end."""
        try:
            for passage in read_passages(self._path, on_reject=self._reject):
                self._passage(passage)
        except _EnoughError:
            return False
        return True

    def preview(self, *, whole: bool, problem: str = "", remedy: str = "") -> DataPreview:
        """What was found."""
        return DataPreview(
            self.passages,
            self.with_questions,
            self.questions,
            self.characters,
            tuple(self.first),
            dict(self.rejected),
            tuple(self.rejects),
            whole,
            problem,
            remedy,
        )

    def _passage(self, passage: Passage) -> None:
        self.passages += 1
        self.questions += len(passage.questions)
        self.with_questions += bool(passage.questions)
        self.characters += len(passage.text)
        if len(self.first) < SHOWN:
            self.first.append(_shown(passage))
        self._step(self.passages >= MOST_PASSAGES)

    def _reject(self, reject: Reject) -> None:
        self.rejected[reject.reason] += 1
        if len(self.rejects) < SHOWN_REJECTS:
            self.rejects.append(reject)
        self._step()

    def _step(self, enough: bool = False) -> None:
        self._steps += 1
        if enough or (self._steps % _LOOK_EVERY == 0 and time.monotonic() > self._end):
            raise _EnoughError


class Previews:
    """Looks at files; what was seen of a file is kept until the file changes."""

    def __init__(self) -> None:
        self._kept: KeptByStamp[DataPreview] = KeptByStamp(_MOST_KEPT)

    def of(self, path: Path) -> DataPreview:
        """What a file holds; what makes it unusable is in the preview."""
        return self._kept.of_file(path, look_at)


def look_at(path: Path) -> DataPreview:
    """What a file holds, read now."""
    look = _Look(path)
    try:
        if path.suffix.lower() == ".json" and path.stat().st_size > MOST_JSON_BYTES:
            return look.preview(whole=False)
        return look.preview(whole=look.take_all())
    except OSError as error:
        return look.preview(whole=True, problem=f"cannot read the file: {error.strerror}")
    except UsageError as error:
        problem = error.message.replace(str(path), path.name)
        return look.preview(whole=True, problem=problem, remedy=error.remedy)


def _shown(passage: Passage) -> ShownPassage:
    return ShownPassage(
        passage.id,
        passage.title,
        passage.text[:SHOWN_TEXT],
        len(passage.text) > SHOWN_TEXT,
        passage.questions[:SHOWN_QUESTIONS],
        len(passage.questions),
    )
