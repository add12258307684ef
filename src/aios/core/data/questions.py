"""Questions about passages: parsed from records, read from their own file, given to passages.

A question is an object with ``question`` and ``answer`` or ``answers``, maybe ``category``.
Answers may be a text, a number, a list of those, or SQuAD's ``[{"text": …}]`` and
``{"text": […]}``. Questions without an answer (SQuAD v2) are counted, not used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from aios.core.data.lines import is_encodable
from aios.core.data.rejects import Reject, one_line
from aios.core.data.structured_records import jsonl_values, parse_json, read_json
from aios.core.errors import DataError
from aios.core.types import Passage, Question

_WORD = re.compile(r"\w+")
_LISTED = 10


@dataclass(frozen=True, slots=True)
class ParsedQuestions:
    """What came of a record's questions.

    Attributes:
        questions: The usable ones, in order.
        problems: One line for each unusable one.
        unanswerable: How many have no answer.
    """

    questions: tuple[Question, ...] = ()
    problems: tuple[str, ...] = ()
    unanswerable: int = 0


class Unanswerable(ValueError):
    """The question is marked as having no answer, or its list of answers is empty."""


def plain_text(value: object) -> str:
    """A text or number as a stripped text.

    Raises:
        ValueError: It is something else, blank, not finite, or not writable as UTF-8.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"expected a text, found {one_line(repr(value), 40)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("not a finite number")
    text = str(value).strip()
    if not text:
        raise ValueError("blank")
    if not is_encodable(text):
        raise ValueError("holds a lone surrogate")
    return text


def parse_question(value: object) -> Question:
    """Builds a question from an object of a JSON record.

    Raises:
        Unanswerable: It has no answer, and says so.
        ValueError: It cannot be used; the message says why in one line.
    """
    if not isinstance(value, Mapping):
        raise ValueError("a question is not an object")
    try:
        question = plain_text(value.get("question"))
    except ValueError as error:
        raise ValueError(f"'question': {error}") from error
    if value.get("is_impossible") is True:
        raise Unanswerable(question)
    answers = value.get("answers")
    if answers is None:
        answers = value.get("answer")
    if answers is None:
        raise ValueError(f"no 'answer' or 'answers' for {one_line(question)!r}")
    category = value.get("category")
    try:
        texts = tuple(dict.fromkeys(plain_text(answer) for answer in _answers(answers)))
        category = "" if category is None or category == "" else plain_text(category)
    except ValueError as error:
        raise ValueError(f"answer or category of {one_line(question)!r}: {error}") from error
    if not texts:
        raise Unanswerable(question)
    return Question(question, texts, category)


def _answers(value: object) -> Iterator[object]:
    if isinstance(value, Mapping):  # SQuAD as Hugging Face stores it, or one SQuAD answer
        value = value.get("text")
    for answer in value if isinstance(value, list) else [value]:
        yield answer.get("text") if isinstance(answer, Mapping) else answer


def parse_questions(value: object) -> ParsedQuestions:
    """Parses a record's ``questions``: a list, the same as a JSON text, or nothing."""
    if isinstance(value, str) and value.strip():
        try:
            value = parse_json(value)
        except ValueError as error:
            return ParsedQuestions(problems=(f"'questions' is not JSON: {one_line(error)}",))
    if value is None or value == "":
        return ParsedQuestions()
    if not isinstance(value, list):
        return ParsedQuestions(problems=("'questions' is not a list",))
    questions: list[Question] = []
    problems: list[str] = []
    unanswerable = 0
    for number, item in enumerate(value, start=1):
        try:
            questions.append(parse_question(item))
        except Unanswerable:
            unanswerable += 1
        except ValueError as error:
            problems.append(f"question {number}: {error}")
    return ParsedQuestions(tuple(dict.fromkeys(questions)), tuple(problems), unanswerable)


def read_questions(path: Path) -> dict[str, tuple[Question, ...]]:
    """Reads questions from a file of their own, by passage id.

    Args:
        path: A ``.jsonl`` file, or a ``.json`` list, of objects with ``passage_id`` (or ``id``)
            and either one question (``question``, ``answer`` or ``answers``) or ``questions``.

    Raises:
        DataError: The ending is unknown, the file is unreadable or empty, or an entry is bad
            (the message gives its line).
    """
    found: dict[str, list[Question]] = {}
    for line, entry in _question_entries(path):
        key = entry.get("passage_id")
        try:
            passage_id = plain_text(entry.get("id") if key is None else key)
        except ValueError as error:
            raise _bad_entry(path, line, f"'passage_id': {error}") from error
        parsed = parse_questions(entry.get("questions", [entry]))
        if parsed.problems:
            raise _bad_entry(path, line, parsed.problems[0])
        found.setdefault(passage_id, []).extend(parsed.questions)
    result = {key: tuple(dict.fromkeys(questions)) for key, questions in found.items() if questions}
    if not result:
        raise DataError(f"{path} holds no questions", "Add questions with answers.")
    return result


def _question_entries(path: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    ending = path.suffix.lower()
    if ending == ".jsonl":
        for item in jsonl_values(path):
            if isinstance(item, Reject):
                raise _bad_entry(path, item.line, f"{item.reason}: {item.detail}")
            yield item
    elif ending == ".json":
        entries = read_json(path)
        if not isinstance(entries, list):
            raise DataError(f"{path} is not a list of questions", "Write [{…}, {…}].")
        for number, entry in enumerate(entries, start=1):
            if not isinstance(entry, dict):
                raise _bad_entry(path, number, "not an object")
            yield number, entry
    else:
        raise DataError(
            f"{path}: unknown ending {ending!r} for questions", "Known endings: .jsonl, .json."
        )


def _bad_entry(path: Path, line: int, detail: str) -> DataError:
    return DataError(
        f"{path}:{line}: {detail}",
        'Each entry needs "passage_id", "question" and "answer" or "answers".',
    )


def assign_questions(
    texts: Sequence[str], questions: Iterable[Question]
) -> list[tuple[Question, ...]]:
    """Gives each question to the part of a split passage that it belongs to.

    That is, among the parts that hold an accepted answer (as whole words, or else anywhere), the
    one that shares most words with the question; the first part if none holds an answer.

    Args:
        texts: The parts' texts, at least one.
        questions: Questions about the whole.

    Returns:
        The questions of each part.
    """
    parts = [f" {' '.join(_words(text))} " for text in texts]
    words = [frozenset(part.split()) for part in parts]
    given: list[list[Question]] = [[] for _ in texts]
    for question in questions:
        answers = [f" {' '.join(_words(answer))} " for answer in question.answers]
        holders = [
            i for i, part in enumerate(parts) if any(a.strip() and a in part for a in answers)
        ] or [
            i
            for i, text in enumerate(texts)
            if any(a.casefold() in text.casefold() for a in question.answers)
        ]
        asked = set(_words(question.question))
        best = max(holders, key=lambda i: (len(asked & words[i]), -i), default=0)
        given[best].append(question)
    return [tuple(part) for part in given]


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def attach_questions(
    passages: Iterable[Passage], questions: Mapping[str, Sequence[Question]]
) -> tuple[Passage, ...]:
    """Adds questions to passages, after those that they have; equal ones count once.

    Questions for a passage that was split into ``<id>#1``, ``<id>#2``, … go to its parts.

    Raises:
        DataError: Questions name passages that are not there; the message lists them.
    """
    passages = tuple(passages)
    extra: dict[str, tuple[Question, ...]] = {}
    by_id = {passage.id: passage for passage in passages}
    parts: dict[str, list[Passage]] = {}
    for passage in passages:
        parent, mark, number = passage.id.rpartition("#")
        if mark and number.isdecimal():
            parts.setdefault(parent, []).append(passage)
    unknown = []
    for key, added in questions.items():
        if key in by_id:
            extra[key] = (*extra.get(key, ()), *added)
        elif key in parts:
            given = assign_questions([part.text for part in parts[key]], added)
            for part, its_questions in zip(parts[key], given, strict=True):
                extra[part.id] = (*extra.get(part.id, ()), *its_questions)
        else:
            unknown.append(key)
    if unknown:
        listed = ", ".join(repr(one_line(key, 40)) for key in unknown[:_LISTED])
        more = f" and {len(unknown) - _LISTED} more" if len(unknown) > _LISTED else ""
        raise DataError(
            f"questions name unknown passages: {listed}{more}",
            "Use the passages' own ids as passage_id.",
        )
    return tuple(
        replace(p, questions=tuple(dict.fromkeys((*p.questions, *extra[p.id]))))
        if p.id in extra
        else p
        for p in passages
    )
