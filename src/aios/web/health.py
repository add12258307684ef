"""``GET /health`` and ``GET /ready``, for programs that watch over the server, without a token."""

from __future__ import annotations

from fastapi import APIRouter

from aios.web.errors import closing_error
from aios.web.openai_schemas import Health, error_answers
from aios.web.service import Service


def health_routes(service: Service) -> APIRouter:
    """The two routes."""
    router = APIRouter()

    @router.get("/health", responses=error_answers(403))
    async def live() -> Health:
        """Whether the process answers."""
        return Health(status="ok")

    @router.get("/ready", responses=error_answers(403, 503))
    async def ready() -> Health:
        """Whether new requests are taken; the model is loaded before the first."""
        if service.answers.closing:
            raise closing_error()
        return Health(status="ready")

    return router
