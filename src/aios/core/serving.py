"""Texts written for people while they wait: what is asked, and what comes back piece by piece.

`Writer` is the seam between conversations (chat, server) and the model. Requests may come from any
thread and for different experts at once; each is answered as if it were alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol

from aios.core.protocols import LanguageModel, TemporaryExpert
from aios.core.types import AdapterRef, SamplingParams

EndReason = Literal["stop", "length", "cancelled", "timeout"]


@dataclass(frozen=True, slots=True)
class Part:
    """An adapter's part in what writes a text.

    Attributes:
        adapter: An expert's adapter, or a temporary one of a session. A temporary one that was
            trained over an expert brings that expert with it.
        weight: What its update is multiplied with; parts add up.
    """

    adapter: AdapterRef | TemporaryExpert
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """A text that is wanted.

    Attributes:
        prompt: The full text given to the model (chat template already applied).
        parts: The adapters that write it, together; none: the base model alone.
        sampling: How tokens are drawn.
        seed: Seed of the draws.
        top_logprobs: How many likeliest tokens are reported at each place, besides the one drawn;
            None: no log-probabilities at all.
        timeout_seconds: It ends, with what is written, so long after it was submitted.
    """

    prompt: str
    parts: tuple[Part, ...] = ()
    sampling: SamplingParams = field(default_factory=SamplingParams)
    seed: int = 0
    top_logprobs: int | None = None
    timeout_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token as text, with its log-probability (nats, at temperature 1, before top-p)."""

    text: str
    logprob: float
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class WrittenToken:
    """A token that was drawn, and the likeliest ones at its place (most likely first)."""

    token: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """The next part of a text.

    Attributes:
        text: Whole characters only, and nothing that may yet turn out to be a stop text.
        tokens: The tokens since the piece before, where log-probabilities were asked for.
    """

    text: str
    tokens: tuple[WrittenToken, ...] = ()


@dataclass(frozen=True, slots=True)
class Ending:
    """How a text ended, and what it took.

    Attributes:
        reason: Why it ended.
        prompt_tokens: Tokens of the prompt.
        completion_tokens: Tokens written, the end token included.
        seconds_to_first: From submission to the first token, waiting included.
        seconds: From submission to the end.
    """

    reason: EndReason
    prompt_tokens: int
    completion_tokens: int
    seconds_to_first: float
    seconds: float


class Writing(Protocol):
    """A text in the making. Iterate over it once, from one thread."""

    def __iter__(self) -> Iterator[Piece]:
        """The pieces, as they are written.

        Raises:
            BackendError: It cannot be written (any more).
        """
        ...

    @property
    def ending(self) -> Ending | None:
        """How it ended; None before the last piece was taken."""
        ...

    def cancel(self) -> None:
        """Nobody wants it any more: its place is free after the token in hand. From any thread."""
        ...


@dataclass(frozen=True, slots=True)
class WriterLoad:
    """What a writer has to do now.

    Attributes:
        writing: Texts that are being written.
        waiting: Texts that wait for a place.
        tokens: Tokens written since it was opened.
    """

    writing: int
    waiting: int
    tokens: int


class Writer(Protocol):
    """Writes texts for many at once, under different adapters."""

    @property
    def model(self) -> LanguageModel:
        """The base model, for its name, chat template and token counts.

        It writes, scores and is trained on, as its views are, inside `between` alone.
        """
        ...

    def submit(self, request: WriteRequest) -> Writing:
        """Begins a text, or lets it wait for its turn.

        Raises:
            QueueFullError: As many wait as may.
            BackendError: The prompt is empty or leaves no room in the context, or it is closed.
            AdapterMismatchError: An adapter is of another base model.
            StorageError: An adapter cannot be read.
        """
        ...

    def between(self) -> AbstractContextManager[LanguageModel]:
        """The base model for the time of a block in which nothing is written.

        Waits until no text is being written or waits, and holds back new ones until the block
        ends: keep it short (one step of a training). From any thread; must not be nested.

        Raises:
            BackendError: The writer is closed.
        """
        ...

    def load(self) -> WriterLoad:
        """What it has to do now."""
        ...

    def close(self) -> None:
        """Ends all texts (reason ``cancelled``); nothing can be submitted any more."""
        ...
