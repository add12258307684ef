"""``POST /v1/chat/completions``: answers in a conversation."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from aios.web.errors import ApiError
from aios.web.json_bodies import JSONRoute
from aios.web.openai_schemas import (
    ChatChoice,
    ChatCompletion,
    ChatMessage,
    ChatRequest,
    error_answers,
)
from aios.web.rendering import ChatRenderer, chat_logprobs
from aios.web.service import Service, check_stream_options
from aios.web.writing import Envelope, Written, answer

STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}


def chat_routes(service: Service) -> APIRouter:
    """The route of chats."""
    router = APIRouter(route_class=JSONRoute)

    @router.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses={
            **STREAM,
            **error_answers(400, 401, 403, 404, 408, 413, 415, 429, 500, 503, 504),
        },
    )
    async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
        """Answers a conversation, in one piece or as it is written."""
        wanted = body.max_completion_tokens or body.max_tokens
        sampling = service.sampling(body, wanted, service.assistant.default_sampling.max_new_tokens)
        calls = service.calls(
            service.assistant.chat,
            [[message.model_dump() for message in body.messages]],
            body,
            request,
            sampling=sampling,
            top_logprobs=_top_logprobs(body),
        )
        return await answer(
            service,
            request,
            calls,
            Envelope("chat.completion", "chat.completion.chunk", body.model),
            ChatRenderer(bool(body.logprobs)),
            partial(_whole, logprobs=bool(body.logprobs)),
            per_prompt=len(calls),
            stream=bool(body.stream),
            include_usage=check_stream_options(body),
        )

    return router


def _top_logprobs(body: ChatRequest) -> int | None:
    """How many likeliest tokens are wanted at each place; None: no log-probabilities.

    Raises:
        ApiError: They are wanted, but log-probabilities are not.
    """
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs is not None:
        raise ApiError(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
    return None


def _whole(written: Written, *, logprobs: bool) -> ChatCompletion:
    choices = [
        ChatChoice(
            index=index,
            message=ChatMessage(content=text.text),
            logprobs=chat_logprobs(text.tokens) if logprobs else None,
            finish_reason=text.reason,
        )
        for index, text in enumerate(written.texts)
    ]
    return ChatCompletion(choices=choices, **written.common())
