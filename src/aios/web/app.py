"""The application: routes, middleware and error handlers around an assistant.

From the outside in, a request passes: counting, safe headers, the guard (token, host), the bounds
of its body, and then its route. Documentation pages are off, since FastAPI's load scripts from
elsewhere; the description itself is at ``/openapi.json``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

import aios
from aios.core.config.serving_schemas import ServeConfig
from aios.core.errors import AIOSError
from aios.web.answers import Answers
from aios.web.chat import chat_routes
from aios.web.completions import completion_routes
from aios.web.errors import (
    ClientGoneError,
    on_aios_error,
    on_bug,
    on_client_gone,
    on_http_error,
    on_invalid,
)
from aios.web.feedback import feedback_routes
from aios.web.health import health_routes
from aios.web.limits import BODY_SECONDS, BoundedBodies
from aios.web.metrics import CountRequests, Metrics, metrics_routes
from aios.web.models import model_routes
from aios.web.public_address import PublicAddress
from aios.web.security import Guard, SafeHeaders
from aios.web.service import Service

if TYPE_CHECKING:
    from aios.app.chat.assistant import Assistant


def create_app(
    assistant: Assistant,
    settings: ServeConfig,
    *,
    token: str | None = None,
    body_seconds: float = BODY_SECONDS,
) -> FastAPI:
    """The application that answers for an assistant, which stays the caller's to close.

    Args:
        assistant: Who answers.
        settings: The section ``serve``.
        token: What clients must send; None: only requests to a loopback name are answered.
        body_seconds: Time for a request's body to arrive.

    Returns:
        The application; its `Service` is ``app.state.service``.
    """
    metrics = Metrics(assistant.load, assistant.adaptation_counts)
    answers = Answers(
        max_concurrent=settings.max_concurrent,
        max_waiting=settings.max_waiting,
        observe=metrics.text,
    )
    service = Service(assistant, settings, answers, metrics)
    app = FastAPI(
        title="AI-OS SEAL",
        version=aios.__version__,
        description="Experts behind an OpenAI-compatible API.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={
            AIOSError: on_aios_error,
            ClientGoneError: on_client_gone,
            HTTPException: on_http_error,
            RequestValidationError: on_invalid,
            Exception: on_bug,
        },
    )
    app.state.service = service
    for routes in (
        chat_routes(service),
        completion_routes(service),
        model_routes(service),
        feedback_routes(service),
        health_routes(service),
        metrics_routes(metrics),
    ):
        app.include_router(routes)
    # The last one added is the outermost.
    app.add_middleware(BoundedBodies, max_bytes=settings.max_body_bytes, seconds=body_seconds)
    app.add_middleware(Guard, token=token, public=PublicAddress.of(settings))
    app.add_middleware(SafeHeaders)
    app.add_middleware(CountRequests, metrics=metrics)
    return app
