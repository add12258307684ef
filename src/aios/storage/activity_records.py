"""What the activity database holds, as records, and the limits of what it takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from aios.core.errors import UsageError

MAX_ID = 512
MAX_TEXT = 100_000
_MAX_REASON = 2_000


class Counter(NamedTuple):
    """How often an expert answered, and the mean of its weights in those answers."""

    activations: int
    mean_weight: float


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A conversation.

    Attributes:
        id: The caller's text for it.
        created: When its first answer was recorded, in seconds since 1970.
        last_used: When its last one was.
        model: What was asked for last: ``base``, ``auto``, or an expert's id.
        answers: Answers of it that are still there.
    """

    id: str
    created: float
    last_used: float
    model: str
    answers: int


@dataclass(frozen=True, slots=True)
class AnswerRecord:
    """An answer that was given.

    Attributes:
        id: Its id.
        session: The conversation; empty without one.
        time: When it was recorded, in seconds since 1970.
        model: What was asked for: ``base``, ``auto``, or an expert's id.
        reason: Why these.
        prompt_tokens: Tokens of the prompt.
        completion_tokens: Tokens written.
        seconds: From submission to the end.
        finish_reason: How it ended.
        message: What was asked; empty unless texts are stored.
        text: The answer; empty unless texts are stored.
        experts: Who answered, with their weights; empty: the base model alone.
    """

    id: str
    session: str
    time: float
    model: str
    reason: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    finish_reason: str
    message: str = ""
    text: str = ""
    experts: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class FeedbackRecord:
    """What a person said about an answer.

    Attributes:
        answer_id: The answer.
        time: When, in seconds since 1970.
        rating: From -1 (bad) to 1 (good); None: none was given.
        correction: What should have been answered; empty: none was given.
        comment: Anything else.
        message: What the correction answers, where it was sent along.
        experts: Who gave the answer.
    """

    answer_id: str
    time: float
    rating: float | None
    correction: str
    comment: str
    message: str
    experts: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class AdaptationRecord:
    """A test-time adaptation of a session. Losses in nats a token; None: not measured.

    Attributes:
        session: The conversation.
        expert: What it was trained over; empty: the base model.
        started: When, in seconds since 1970.
        seconds: How long it took.
        examples_before: Loss on the texts that it was trained on, before.
        examples_after: The same, after.
        retention_before: Loss on unrelated text, before.
        retention_after: The same, after.
        turns_before: Loss on the conversation's last turns, before.
        turns_after: The same, after.
        kept: Whether it is in use from then on.
        reason: Why, or why not.
    """

    session: str
    expert: str
    started: float
    seconds: float
    examples_before: float | None
    examples_after: float | None
    retention_before: float | None
    retention_after: float | None
    turns_before: float | None
    turns_after: float | None
    kept: bool
    reason: str = ""


def checked_id(text: str, what: str) -> str:
    """An id that is not empty and not longer than `MAX_ID` characters.

    Raises:
        UsageError: It is not.
    """
    if not text or len(text) > MAX_ID:
        raise UsageError(f"the {what} has {len(text)} characters", f"Give 1 to {MAX_ID}.")
    return stored(text)


def checked_text(text: str, what: str) -> str:
    """A text of at most `MAX_TEXT` characters.

    Raises:
        UsageError: It is longer.
    """
    if len(text) > MAX_TEXT:
        raise UsageError(
            f"the {what} has {len(text)} characters", f"At most {MAX_TEXT} are stored."
        )
    return stored(text)


def checked_experts(experts: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Experts with their weights, each once.

    Raises:
        UsageError: One is named twice, has no valid id, or a weight that is not a finite number.
    """
    found: dict[str, float] = {}
    for expert, weight in experts:
        if expert in found:
            raise UsageError(f"expert {expert!r} is named twice")
        found[checked_id(expert, "expert id")] = finite(weight, f"weight of {expert!r}")
    return found


def finite(value: float, what: str) -> float:
    """A number that is neither NaN nor infinite.

    Raises:
        UsageError: It is not.
    """
    if not math.isfinite(value):
        raise UsageError(f"the {what} is {value}, not a finite number")
    return float(value)


def counted(value: int, what: str) -> int:
    """A count that the database can hold.

    Raises:
        UsageError: It is negative or too large.
    """
    if not 0 <= value < 2**63:
        raise UsageError(f"the {what} is {value}, not a count")
    return int(value)


def shortened(reason: str) -> str:
    """A reason as it is stored: the first 2,000 characters."""
    return stored(reason[:_MAX_REASON])


def stored(text: str) -> str:
    """A text without lone surrogates, which no database takes."""
    return text.encode("utf-8", "replace").decode("utf-8")
