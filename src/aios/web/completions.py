"""``POST /v1/completions``: texts that go on after a prompt, without a chat template."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request
from fastapi.responses import Response

from aios.web.chat import STREAM
from aios.web.json_bodies import JSONRoute
from aios.web.openai_schemas import (
    Completion,
    CompletionChoice,
    CompletionRequest,
    error_answers,
)
from aios.web.rendering import CompletionRenderer, completion_logprobs
from aios.web.service import Service, check_stream_options
from aios.web.writing import Envelope, Written, answer

DEFAULT_TOKENS = 16  # as the OpenAI API has it


def completion_routes(service: Service) -> APIRouter:
    """The route of plain texts."""
    router = APIRouter(route_class=JSONRoute)

    @router.post(
        "/v1/completions",
        response_model=Completion,
        responses={
            **STREAM,
            **error_answers(400, 401, 403, 404, 408, 413, 415, 429, 500, 503, 504),
        },
    )
    async def create_completion(body: CompletionRequest, request: Request) -> Response:
        """Goes on with one or several prompts, in one piece or as it is written."""
        sampling = service.sampling(body, body.max_tokens, DEFAULT_TOKENS)
        calls = service.calls(
            service.assistant.complete,
            body.prompt,
            body,
            request,
            sampling=sampling,
            top_logprobs=body.logprobs,
        )
        logprobs = body.logprobs is not None
        return await answer(
            service,
            request,
            calls,
            Envelope("text_completion", "text_completion", body.model),
            CompletionRenderer(logprobs),
            partial(_whole, logprobs=logprobs),
            per_prompt=len(calls) // len(body.prompt),
            stream=bool(body.stream),
            include_usage=check_stream_options(body),
        )

    return router


def _whole(written: Written, *, logprobs: bool) -> Completion:
    choices = [
        CompletionChoice(
            index=index,
            text=text.text,
            logprobs=completion_logprobs(text.tokens) if logprobs else None,
            finish_reason=text.reason,
        )
        for index, text in enumerate(written.texts)
    ]
    return Completion(choices=choices, **written.common())
