"""Answers as they are written: server-sent events, as the OpenAI API has them.

Every event is ``data: {chunk}`` and an empty line; the last is ``data: [DONE]``. A stream that
breaks off has an event with an ``error`` in the place of the rest, and no ``[DONE]``. A comment
line comes where nothing has been written for a while, so that nobody takes the connection for
dead.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from aios.core.errors import AIOSError
from aios.core.serving import Piece
from aios.web.answers import Texts
from aios.web.errors import ApiError, error_document, from_aios
from aios.web.rendering import Renderer, check_ending, extension, facts, usage
from aios.web.service import until_gone

SILENT_SECONDS = 15.0
DONE = b"data: [DONE]\n\n"
STILL_HERE = b": still here\n\n"


class EventStream(Response):
    """A response that is sent as it comes; its texts are cancelled where the client leaves.

    Args:
        request: What is answered.
        events: What is sent.
        close: Called at the end, however it comes.
        headers: More headers.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        request: Request,
        events: AsyncIterator[bytes],
        close: Callable[[], None],
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(headers={"X-Accel-Buffering": "no", **headers})
        del self.headers["content-length"]
        self._request = request
        self._events = events
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends everything, or stops when the client has left."""
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(until_gone(self._request))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            sending.cancel()
            leaving.cancel()
            self._close()
            await asyncio.gather(sending, leaving, return_exceptions=True)

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        async for data in self._events:
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def event(chunk: Mapping[str, Any]) -> bytes:
    """One event."""
    text = json.dumps(chunk, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return b"data: %b\n\n" % text.encode()


async def events_of(
    texts: Texts,
    renderer: Renderer,
    envelope: Mapping[str, Any],
    *,
    per_prompt: int,
    include_usage: bool,
) -> AsyncIterator[bytes]:
    """The events of a request's texts.

    Args:
        texts: Them, opened.
        renderer: Chat or completions.
        envelope: What every chunk begins with: id, object, created, model.
        per_prompt: Texts of each prompt.
        include_usage: Whether a last chunk says what it took.
    """
    pending = {"usage": None} if include_usage else {}

    def chunk(choice: Mapping[str, Any] | None, **more: object) -> bytes:
        choices = [] if choice is None else [choice]
        return event({**envelope, "choices": choices, **pending, **more})

    for index, answer in enumerate(texts.answers):
        choice = renderer.first(index)
        yield chunk(choice, aios=extension([facts(answer)]).model_dump())
    try:
        async for index, happened in texts.events(silence=SILENT_SECONDS):
            if happened is None:
                yield STILL_HERE
            elif isinstance(happened, Piece):
                if happened.text or happened.tokens:
                    yield chunk(renderer.piece(index, happened))
            else:
                reason = check_ending(happened)
                shown = facts(texts.answers[index], happened)
                yield chunk(renderer.last(index, reason), aios=extension([shown]).model_dump())
    except AIOSError as error:
        yield event(_error(from_aios(error, begun=True)))
        return
    except ApiError as error:
        yield event(_error(error))
        return
    if include_usage:
        yield event({**envelope, "choices": [], "usage": usage(texts, per_prompt).model_dump()})
    yield DONE


def _error(error: ApiError) -> dict[str, Any]:
    return error_document(error.status_code, error.detail, error.param, error.code)
