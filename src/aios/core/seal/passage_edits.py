"""What the generator gives for a passage: the self-edits kept, what was dropped, what it cost."""

from __future__ import annotations

from dataclasses import dataclass

from aios.core.types import Completion, Drop, Failure, Passage, SelfEdit


@dataclass(frozen=True, slots=True)
class PassageEdits:
    """What generation gave for one passage.

    Attributes:
        passage: The passage.
        kept: Edits that passed the filter.
        drops: What did not, with reasons.
        failure: Why something could not be generated or read, or None.
        cached: Candidates that came from the cache.
        generated: Candidates that were made now.
        tokens: Tokens generated now.
        seconds: The backend's time for it; passages written at once share it.
        retries: How often it was tried again.
    """

    passage: Passage
    kept: tuple[SelfEdit, ...] = ()
    drops: tuple[Drop, ...] = ()
    failure: Failure | None = None
    cached: int = 0
    generated: int = 0
    tokens: int = 0
    seconds: float = 0.0
    retries: int = 0


@dataclass(frozen=True, slots=True)
class Fresh:
    """A completion that was generated now, and its place in the cache."""

    key: str
    completion: Completion
    strategy: str


@dataclass(frozen=True, slots=True)
class Written:
    """A finished passage of a stream.

    Attributes:
        number: Its position among the passages given, from 0.
        edits: What generation gave for it.
        fresh: What of it belongs into the cache.
    """

    number: int
    edits: PassageEdits
    fresh: tuple[Fresh, ...] = ()
