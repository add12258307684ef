"""What the contestants of the trials benchmark train on, and what their adapters are asked.

A *lesson* is a passage with its candidates (self-edits that a model wrote) and its questions. A
file of the SEAL release has both; its completions are made into training texts as the release does
(knowledge-incorporation/src/utils.py with ``split_newlines``, which its published runs had set):
each line that is not empty is a text of its own, a first line that only introduces the list that
follows is dropped, the passage itself is the last text, and the title stands before each on a line
of its own. Left out: completions in the form of questions and answers, which that file has none of.

Without such a file the passages of ``examples/`` are used, with fill-in-the-blank questions made
from their sentences as candidates, eight each.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aios.core.data.probes import Probe, make_probes
from aios.core.data.readers import read_passages
from aios.core.seal.grounded import cloze_items
from aios.core.seeds import derive
from aios.core.types import Passage

_CLOZE_ITEMS = 8  # of a candidate: about as many lines as a completion of the release has
RELEASE, EXAMPLES = "SEAL release", "cloze of examples/passages.jsonl"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A self-edit as texts to train on.

    Attributes:
        id: Unique among all lessons.
        texts: At least one; the last is the passage.
        lengths: Tokens of each.
    """

    id: str
    texts: tuple[str, ...]
    lengths: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Tokens of all texts: one pass over them."""
        return sum(self.lengths)


@dataclass(frozen=True, slots=True)
class Lesson:
    """A passage's candidates and questions."""

    passage_id: str
    candidates: tuple[Candidate, ...]
    questions: tuple[Probe, ...]


def release_texts(title: str, passage: str, completion: str) -> tuple[str, ...]:
    """The training texts that the release makes of a completion; the passage comes last."""
    lines = [
        line.strip()
        for segment in completion.split("---")
        for line in segment.splitlines()
        if line.strip()
    ]
    if len(lines) > 1 and lines[1].startswith("1."):
        del lines[0]
    return tuple(f"{title}\n{text}" for text in (*lines, passage.strip()))


def read_lessons(
    release: Path | None, examples: Path, candidates: int, count_tokens: Callable[[str], int]
) -> list[Lesson]:
    """The lessons of a file of the release, or of the examples where `release` is None.

    Args:
        release: SEAL-release JSON: title, context, questions and completions.
        examples: Passages with questions.
        candidates: Of each passage; those with fewer are left out, and those with one question.
        count_tokens: Number of tokens of a text.

    Raises:
        DataError: The file cannot be read.
    """
    path = examples if release is None else release
    lessons = []
    for passage in read_passages(path, on_reject=print):
        texts = _cloze(passage, candidates) if release is None else _written(passage, candidates)
        lesson = _lesson(passage, texts, count_tokens)
        if len(texts) == candidates and len(lesson.questions) > 1:
            lessons.append(lesson)
    return lessons


def choose(lessons: Sequence[Lesson], rounds: int, passages: int, seed: int) -> list[list[Lesson]]:
    """For each round other lessons, drawn by a seed; with too few, all rounds have the same.

    Raises:
        ValueError: There are fewer lessons than one round needs.
    """
    if len(lessons) < passages:
        raise ValueError(f"{passages} passages are asked for, and {len(lessons)} can be used")
    order = random.Random(derive(seed, "lessons")).sample(lessons, len(lessons))
    if len(order) < rounds * passages:
        return [order[:passages]] * rounds
    return [order[i * passages : (i + 1) * passages] for i in range(rounds)]


def all_candidates(lessons: Iterable[Lesson]) -> list[tuple[Lesson, Candidate]]:
    """Every candidate with its lesson, in order."""
    return [(lesson, candidate) for lesson in lessons for candidate in lesson.candidates]


def padding_share(lengths: Sequence[int], padded: int) -> float:
    """Share of the tokens that are padding where each text is padded to so many."""
    return 1 - sum(lengths) / (padded * len(lengths))


def _written(passage: Passage, candidates: int) -> list[tuple[str, ...]]:
    return [
        release_texts(passage.title, passage.text, completion)
        for completion in passage.completions[:candidates]
    ]


def _cloze(passage: Passage, candidates: int) -> list[tuple[str, ...]]:
    found = []
    for number in range(candidates):
        seed = derive(0, "cloze", passage.id, number)
        items = cloze_items(passage.text, seed)
        drawn = random.Random(seed).sample(items, min(_CLOZE_ITEMS, len(items)))
        found.append((*drawn, passage.text))
    return found


def _lesson(
    passage: Passage, texts: Sequence[tuple[str, ...]], count_tokens: Callable[[str], int]
) -> Lesson:
    candidates = tuple(
        Candidate(f"{passage.id}/{number}", each, tuple(count_tokens(text) for text in each))
        for number, each in enumerate(texts)
    )
    return Lesson(passage.id, candidates, make_probes({passage.id: passage.questions}))
