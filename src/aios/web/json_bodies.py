"""Bodies of requests as strict JSON: declared as such, UTF-8, finite numbers, not nested deeply."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute

from aios.core.files import parse_json
from aios.web.errors import ApiError

_SHOWN = 200


class JSONRoute(APIRoute):
    """A route whose body is read by `parse_json`; a body of another type is refused."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler of FastAPI, given a stricter request."""
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            content_type = request.headers.get("content-type", "").partition(";")[0]
            if content_type.strip().lower() != "application/json":
                message = "send the body as JSON, with the header Content-Type: application/json"
                raise ApiError(415, message)
            return await handler(_StrictRequest(request.scope, request.receive))

        return strict


class _StrictRequest(Request):
    async def json(self) -> Any:
        """The body, parsed.

        Raises:
            ApiError: It is no such JSON.
        """
        try:
            return parse_json(await self.body())
        except (ValueError, RecursionError) as error:
            raise ApiError(400, f"the body is no valid JSON: {error}"[:_SHOWN]) from error
