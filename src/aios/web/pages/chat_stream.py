"""An answer on the chat page, as it is written: server-sent events in the answer to a POST.

Events are JSON objects with a ``kind``: ``loading`` (the model is being loaded), ``begun`` (who
answers and why), ``piece`` (text), then ``done`` (how it ended and what it took) or ``failed``. A
stream without either of these broke off. A reader who leaves has the answer cancelled; who reads
slowly holds no thread (`web.answers`). Nothing of a conversation is kept here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from aios.core.errors import AIOSError, QueueFullError
from aios.core.serving import Ending, Piece
from aios.web.answers import Answers, Texts
from aios.web.pages.calls import json_answer, status_of
from aios.web.pages.chat_bodies import ChatBody, read_chat_body
from aios.web.pages.guarding import Sessions, right_code
from aios.web.pages.site import Site
from aios.web.streaming import SILENT_SECONDS, STILL_HERE, EventStream, event

if TYPE_CHECKING:
    from aios.app.chat.answering import Answering

MOST_ANSWERS = 8  # written at once for pages; as many more may wait
LOOK_SECONDS = 0.5
_STOPPING = AIOSError("The server is stopping.", "Send the message again when it is back.")


class ChatStreams:
    """The answers that are being written for pages."""

    def __init__(self) -> None:
        self._answers = Answers(max_concurrent=MOST_ANSWERS, max_waiting=0)

    async def stream(self, request: Request) -> Response:
        """Answers a conversation; the route of it."""
        site: Site = request.app.state.site
        sessions: Sessions = request.app.state.sessions
        if not right_code(sessions, request.state.session, request.headers.get("x-code", "")):
            return _refused(
                AIOSError(
                    "Nothing was sent: the page is older than the server.",
                    "Load the page again; the conversation stays.",
                ),
                403,
            )
        try:
            settings = site.config.serve
            body = await read_chat_body(request, settings)
            if site.closing.is_set():
                return _refused(_STOPPING, 503)
            with ExitStack() as stack:
                begin = _Begin(site, body, settings.max_new_tokens, settings.timeout_seconds)
                texts = stack.enter_context(self._answers.begin([begin]))
                return EventStream(request, _events(site, texts), stack.pop_all().close, {})
        except AIOSError as error:
            return _refused(error, 429 if isinstance(error, QueueFullError) else status_of(error))


class _Begin:
    """Begins an answer, in a thread of its own; loads the model first where it is not."""

    def __init__(self, site: Site, body: ChatBody, most_tokens: int, seconds: float) -> None:
        self._site = site
        self._body = body
        self._most_tokens = most_tokens
        self._seconds = seconds

    def __call__(self) -> Answering:
        assistant, body = self._site.assistant.get(), self._body
        return assistant.chat(
            [message.model_dump() for message in body.messages],
            model=body.model,
            session=body.session,
            sampling=body.sampling(assistant.default_sampling, self._most_tokens),
            seed=body.draw_seed(),
            timeout_seconds=self._seconds,
            tta=body.tta,
        )


async def _events(site: Site, texts: Texts) -> AsyncIterator[bytes]:
    """The events of an answer, until its end, the server's, or its failure."""
    opening = asyncio.ensure_future(texts.opened())
    try:
        if not site.assistant.ready:
            yield event({"kind": "loading"})
        spoken = time.monotonic()
        while not (await asyncio.wait({opening}, timeout=LOOK_SECONDS))[0]:
            if site.closing.is_set():
                yield event(_failed(_STOPPING))
                return
            if time.monotonic() - spoken >= SILENT_SECONDS:
                spoken = time.monotonic()
                yield STILL_HERE
        opening.result()
        yield event(_begun(texts.answers[0]))
        async for _, happened in texts.events(silence=LOOK_SECONDS):
            if isinstance(happened, Ending) and happened.reason != "cancelled":
                yield event(_done(happened))
            elif site.closing.is_set() or isinstance(happened, Ending):
                yield event(_failed(_STOPPING))
                return
            elif isinstance(happened, Piece) and happened.text:
                spoken = time.monotonic()
                yield event({"kind": "piece", "text": happened.text})
            elif time.monotonic() - spoken >= SILENT_SECONDS:
                spoken = time.monotonic()
                yield STILL_HERE
    except AIOSError as error:
        yield event(_failed(error))
    finally:
        opening.cancel()


def _begun(answer: Answering) -> dict[str, Any]:
    """Who answers and why, and what of the conversation they see."""
    routed = answer.answered_by
    return {
        "kind": "begun",
        "id": answer.id,
        "model": answer.model,
        "experts": [{"id": expert, "weight": weight} for expert, weight in routed.experts],
        "reason": routed.reason,
        "adapted": routed.adapted,
        "seed": str(answer.seed),  # more digits than a number of JavaScript holds
        "read": answer.seen.tokens,
        "left_out": answer.seen.left_out,
        "cut": answer.seen.cut,
    }


def _done(ending: Ending) -> dict[str, Any]:
    """How an answer ended, and what it took; speed counts from the first token on."""
    after_first = ending.seconds - ending.seconds_to_first
    rest = ending.completion_tokens - 1
    return {
        "kind": "done",
        "ended": ending.reason,
        "tokens": ending.completion_tokens,
        "seconds": round(ending.seconds, 3),
        "seconds_to_first": round(ending.seconds_to_first, 3),
        "speed": round(rest / after_first, 2) if rest > 0 and after_first > 0 else None,
    }


def _failed(error: AIOSError) -> dict[str, Any]:
    return {"kind": "failed", "text": error.message, "remedy": error.remedy}


def _refused(error: AIOSError, status: int) -> Response:
    return json_answer({"text": error.message, "remedy": error.remedy}, status)
