"""One request from its calls to its answer: begun, written, rendered, whole or as a stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.requests import Request

from aios.core.errors import AIOSError, BackendError, QueueFullError
from aios.core.serving import Piece, WrittenToken
from aios.web.answers import Begin, Texts
from aios.web.errors import closing_error, from_aios
from aios.web.openai_schemas import FinishReason
from aios.web.rendering import Renderer, check_ending, extension, facts, usage
from aios.web.service import Service, answered_by_header, while_connected
from aios.web.streaming import EventStream, events_of

ANSWERED_BY_HEADER = "X-AIOS-Answered-By"


@dataclass(frozen=True, slots=True)
class Envelope:
    """What an answer is called.

    Attributes:
        whole: Its ``object`` in one piece.
        chunk: Its ``object`` in a stream.
        model: What was asked for.
    """

    whole: str
    chunk: str
    model: str


@dataclass(slots=True)
class WholeText:
    """A text that is written."""

    text: str = ""
    tokens: list[WrittenToken] = field(default_factory=list)
    reason: FinishReason = "stop"


@dataclass(frozen=True, slots=True)
class Written:
    """All texts of a request, written."""

    texts: Sequence[WholeText]
    source: Texts
    model: str
    per_prompt: int

    def common(self) -> dict[str, Any]:
        """The fields that both APIs' answers have, besides the choices."""
        answers, endings = self.source.answers, self.source.endings
        shown = [facts(answer, endings[index]) for index, answer in enumerate(answers)]
        return {
            "id": answers[0].id,
            "created": answers[0].created,
            "model": self.model,
            "usage": usage(self.source, self.per_prompt),
            "aios": extension(shown),
        }


async def answer(
    service: Service,
    request: Request,
    calls: Sequence[Begin],
    envelope: Envelope,
    renderer: Renderer,
    whole: Callable[[Written], BaseModel],
    *,
    per_prompt: int,
    stream: bool,
    include_usage: bool,
) -> Response:
    """Answers a request.

    Args:
        service: The collaborators.
        request: The request; its body was read.
        calls: What begins its texts.
        envelope: What its answer is called.
        renderer: The form of a stream's choices.
        whole: The form of an answer in one piece.
        per_prompt: Texts of each prompt.
        stream: Whether it is answered as it is written.
        include_usage: Whether a stream ends with its usage.

    Raises:
        ApiError: It cannot be answered.
        AIOSError: A text was refused before it began.
        ClientGoneError: There is nobody to answer.
    """
    if service.answers.closing:
        raise closing_error()
    with ExitStack() as stack:
        texts = stack.enter_context(service.answers.begin(calls))
        await while_connected(request, _opened(service, texts))
        first = texts.answers[0]
        headers = {ANSWERED_BY_HEADER: answered_by_header(first)}
        if stream:
            common = {
                "id": first.id,
                "object": envelope.chunk,
                "created": first.created,
                "model": envelope.model,
            }
            events = events_of(
                texts, renderer, common, per_prompt=per_prompt, include_usage=include_usage
            )
            return EventStream(request, events, stack.pop_all().close, headers)
        done = await while_connected(request, _collect(texts))
        body = whole(Written(done, texts, envelope.model, per_prompt))
        return JSONResponse(body.model_dump(), headers=headers)


async def _opened(service: Service, texts: Texts) -> None:
    try:
        await texts.opened()
    except BackendError as error:
        if service.answers.closing and not isinstance(error, QueueFullError):
            raise closing_error() from error  # not the prompt's fault: the writer is closed
        raise


async def _collect(texts: Texts) -> list[WholeText]:
    """Waits for all texts.

    Raises:
        ApiError: One could not be written.
    """
    done = [WholeText() for _ in range(texts.count)]
    parts: list[list[str]] = [[] for _ in range(texts.count)]
    try:
        async for index, event in texts.events():
            if isinstance(event, Piece):
                parts[index].append(event.text)
                done[index].tokens += event.tokens
            elif event is not None:
                done[index].reason = check_ending(event)
                done[index].text = "".join(parts[index])
    except AIOSError as error:
        raise from_aios(error, begun=True) from error
    return done
