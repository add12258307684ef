"""Texts in the forms of the OpenAI API: choices, chunks, log-probabilities, usage.

Takes pieces and endings (`core.serving`); gives the objects of answers. The two APIs differ in
the form of a choice, which is what a `Renderer` knows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from aios.core.serving import Ending, Piece, TokenLogprob, WrittenToken
from aios.web.answers import Texts
from aios.web.errors import ApiError, closing_error
from aios.web.openai_schemas import (
    AnsweredBy,
    AnswerFacts,
    ChatLogprobs,
    CompletionLogprobs,
    Extension,
    FinishReason,
    TopLogprob,
    Usage,
)
from aios.web.openai_schemas import TokenLogprob as ShownToken

if TYPE_CHECKING:
    from aios.app.chat.answering import Answering

_LEAST = -9999.0  # what the OpenAI API has for a token that cannot be drawn


class Renderer(Protocol):
    """The form of a choice in a stream."""

    def first(self, index: int) -> dict[str, Any] | None:
        """What a text begins with; None: nothing."""
        ...

    def piece(self, index: int, piece: Piece) -> dict[str, Any]:
        """The next part of a text."""
        ...

    def last(self, index: int, reason: FinishReason) -> dict[str, Any]:
        """What a text ends with."""
        ...


class ChatRenderer:
    """Choices of ``chat.completion.chunk``."""

    def __init__(self, logprobs: bool) -> None:
        self._logprobs = logprobs

    def first(self, index: int) -> dict[str, Any]:
        """The role, before any text."""
        return self._choice(index, {"role": "assistant", "content": ""})

    def piece(self, index: int, piece: Piece) -> dict[str, Any]:
        """A part of the message."""
        shown = chat_logprobs(piece.tokens).model_dump() if self._logprobs else None
        return self._choice(index, {"content": piece.text}, logprobs=shown)

    def last(self, index: int, reason: FinishReason) -> dict[str, Any]:
        """The end of the message."""
        return self._choice(index, {}, reason=reason)

    def _choice(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        logprobs: dict[str, Any] | None = None,
        reason: FinishReason | None = None,
    ) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


class CompletionRenderer:
    """Choices of ``text_completion`` in a stream."""

    def __init__(self, logprobs: bool) -> None:
        self._logprobs = logprobs
        self._offsets: dict[int, int] = {}

    def first(self, index: int) -> None:
        """Nothing: there is no role."""

    def piece(self, index: int, piece: Piece) -> dict[str, Any]:
        """A part of the text."""
        shown = None
        if self._logprobs:
            offset = self._offsets.get(index, 0)
            shown = completion_logprobs(piece.tokens, offset).model_dump()
            self._offsets[index] = offset + sum(len(token.token.text) for token in piece.tokens)
        return {"index": index, "text": piece.text, "logprobs": shown, "finish_reason": None}

    def last(self, index: int, reason: FinishReason) -> dict[str, Any]:
        """The end of the text."""
        return {"index": index, "text": "", "logprobs": None, "finish_reason": reason}


def check_ending(ending: Ending) -> FinishReason:
    """How a text ended, in the API's words: out of time is cut off at a length.

    Raises:
        ApiError: Nothing was written in time, or the server is stopping.
    """
    if ending.reason == "cancelled":
        raise closing_error()
    if ending.reason == "timeout":
        if ending.completion_tokens == 0:
            message = "no token was written in the time that an answer may take"
            raise ApiError(504, message, code="timeout")
        return "length"
    return "stop" if ending.reason == "stop" else "length"


def facts(answer: Answering, ending: Ending | None = None) -> AnswerFacts:
    """What we say of one text."""
    routed = answer.answered_by
    return AnswerFacts(
        id=answer.id,
        answered_by=[AnsweredBy(expert=expert, weight=weight) for expert, weight in routed.experts],
        reason=routed.reason,
        adapted=routed.adapted,
        seed=answer.seed,
        ended="" if ending is None else ending.reason,
    )


def extension(texts: Sequence[AnswerFacts]) -> Extension:
    """What we say of an answer."""
    first = texts[0]
    return Extension(answered_by=first.answered_by, reason=first.reason, texts=list(texts))


def usage(texts: Texts, per_prompt: int) -> Usage:
    """Tokens of all texts; a prompt counts once, however many texts go on from it."""
    endings = texts.endings
    prompts = sum(endings[index].prompt_tokens for index in range(0, texts.count, per_prompt))
    written = sum(ending.completion_tokens for ending in endings.values())
    return Usage(prompt_tokens=prompts, completion_tokens=written, total_tokens=prompts + written)


def chat_logprobs(tokens: Iterable[WrittenToken]) -> ChatLogprobs:
    """Tokens as the chat API has them."""
    return ChatLogprobs(
        content=[
            ShownToken(
                **_shown(each.token).model_dump(),
                top_logprobs=[_shown(other) for other in each.top],
            )
            for each in tokens
        ]
    )


def completion_logprobs(tokens: Iterable[WrittenToken], offset: int = 0) -> CompletionLogprobs:
    """Tokens as the completions API has them: columns; offsets count characters of the text."""
    shown = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    for each in tokens:
        shown.tokens.append(each.token.text)
        shown.token_logprobs.append(_finite(each.token.logprob))
        shown.top_logprobs.append({other.text: _finite(other.logprob) for other in each.top})
        shown.text_offset.append(offset)
        offset += len(each.token.text)
    return shown


def _shown(token: TokenLogprob) -> TopLogprob:
    data = token.data or token.text.encode("utf-8", "replace")
    return TopLogprob(token=token.text, logprob=_finite(token.logprob), bytes=list(data))


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST) if not math.isnan(logprob) else _LEAST
