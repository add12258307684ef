"""Rejects: what was left out of an input file, where, and why.

A reader hands every record that it cannot use to its caller as a `Reject` instead of skipping it.
Reasons are short codes, so that they can be counted; `REASONS` says what each means.
"""

from __future__ import annotations

from dataclasses import dataclass

REASONS: dict[str, str] = {
    "bad_columns": "a table row has more cells than the header has columns",
    "bad_completions": "the completions are not a list of texts; the passage is kept without them",
    "bad_csv": "a table row is not valid CSV",
    "bad_encoding": "the bytes are not UTF-8 text",
    "bad_id": "the id is not a short printable text or an integer",
    "bad_json": "the line is not valid JSON",
    "bad_questions": "a question cannot be used; the passage is kept without it",
    "bad_text": "the text is not a string",
    "bad_title": "the title is not a string",
    "duplicate_id": "an earlier record has the same id",
    "duplicate_text": "an earlier record has the same text",
    "empty_text": "the text is blank",
    "missing_text": "the record has no text, context or passage",
    "non_finite": "a value is NaN or infinite",
    "not_an_object": "the record is not a JSON object",
    "too_long": "the record is larger than the limit",
    "unanswerable_question": "questions without an answer; the passages are kept without them",
}

PASSAGE_KEPT = frozenset({"bad_completions", "bad_questions", "unanswerable_question"})
"""Reasons that leave out a part of a record, not the passage itself."""


@dataclass(frozen=True, slots=True)
class Reject:
    """A record, or a part of one, that was left out.

    Attributes:
        file: The file's path as it was given.
        line: Line of the record's start, or its number where records are not lines; from 1.
        reason: A key of `REASONS`.
        detail: What exactly is wrong, in one line.
    """

    file: str
    line: int
    reason: str
    detail: str = ""


def one_line(text: object, limit: int = 80) -> str:
    """A text as one printable line of at most `limit` characters, for a message."""
    flat = " ".join(str(text)[: 4 * limit].split())
    flat = "".join(c if c.isprintable() else "?" for c in flat)
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"
