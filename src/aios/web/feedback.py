"""``POST /v1/feedback``: what people say of an answer, kept to learn from."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter

from aios.web.json_bodies import JSONRoute
from aios.web.openai_schemas import FeedbackRequest, Stored, error_answers
from aios.web.service import Service


def feedback_routes(service: Service) -> APIRouter:
    """The route of feedback."""
    router = APIRouter(route_class=JSONRoute)

    @router.post("/v1/feedback", responses=error_answers(400, 401, 403, 408, 413, 415, 429, 500))
    async def give_feedback(body: FeedbackRequest) -> Stored:
        """Stores a rating, a correction or a comment on an answer."""
        store = partial(
            service.assistant.feedback,
            body.id,
            rating=body.rating,
            correction=body.correction,
            comment=body.comment,
        )
        await service.call(store)
        return Stored(id=body.id)

    return router
