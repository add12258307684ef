"""``GET /v1/models`` and ``GET /v1/models/{id}``: what can be asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter

from aios.web.errors import ApiError
from aios.web.openai_schemas import ModelCard, ModelExtension, ModelList, error_answers
from aios.web.service import Service

if TYPE_CHECKING:
    from aios.app.chat.assistant import ServedModel


def model_routes(service: Service) -> APIRouter:
    """The routes of models."""
    router = APIRouter()

    @router.get("/v1/models", responses=error_answers(401, 403, 500))
    async def list_models() -> ModelList:
        """The base model, each active expert, and auto."""
        found = await service.call(service.assistant.models)
        return ModelList(data=[_card(model) for model in found])

    @router.get("/v1/models/{model:path}", responses=error_answers(401, 403, 404, 500))
    async def retrieve_model(model: str) -> ModelCard:
        """One of them. The id is only compared, and never becomes a path."""
        found = await service.call(service.assistant.models)
        for each in found:
            if each.id == model:
                return _card(each)
        message = f"there is no model {model[:100]!r}; GET /v1/models lists them"
        raise ApiError(404, message, param="model", code="model_not_found")

    return router


def _card(model: ServedModel) -> ModelCard:
    known = ModelExtension(kind=model.kind, description=model.description)
    return ModelCard(id=model.id, created=model.created, aios=known)
