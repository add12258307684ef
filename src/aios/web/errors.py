"""Errors as clients of the OpenAI API expect them: a status, and one object that says why.

The body of every answer that is an error is ``{"error": {"message", "type", "param", "code"}}``.
What the layers below raise is turned into it here, and only here. Messages of errors that are the
client's own are shown to it; those of errors of this machine (a file or a setting that cannot be
read, say) may name paths, so they go to the log and the client is told only that it was not its
fault. So whoever raises an error of the client's own names no file in it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import Request

from aios.core.errors import (
    AIOSError,
    BackendError,
    ConfigError,
    DataError,
    QueueFullError,
    UnknownExpertError,
    UsageError,
)

INVALID = "invalid_request_error"
SERVER = "server_error"
CLIENT_GONE = 499  # nobody reads it; it stands in the metrics
NOT_OURS = "the server failed to answer; its log says why"
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_SHOWN = 300  # characters of a message
_log = logging.getLogger("aios.web")


class ApiError(HTTPException):
    """A request that is answered with an error.

    Args:
        status: HTTP status.
        message: What is wrong and what to do.
        param: The field of the request that it is about.
        code: A short name that programs can compare.
        headers: More headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.param = param
        self.code = code


class ClientGoneError(Exception):
    """The client has closed its connection: there is nobody to answer."""


def error_document(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """The body of an answer that is an error."""
    kind = _TYPES.get(status, SERVER if status >= 500 else INVALID)
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(error: ApiError) -> JSONResponse:
    """An error as an answer."""
    body = error_document(error.status_code, error.detail, error.param, error.code)
    return JSONResponse(body, error.status_code, error.headers)


def retry_header(seconds: float) -> dict[str, str]:
    """The header that says when to try again, in whole seconds from 1 to an hour."""
    wait = math.ceil(seconds) if math.isfinite(seconds) else 1
    return {"Retry-After": str(min(max(wait, 1), 3600))}


def closing_error() -> ApiError:
    """What is answered when the server is about to stop."""
    return ApiError(503, "the server is stopping", code="closing", headers=retry_header(5))


def from_aios(error: AIOSError, *, begun: bool = False) -> ApiError:
    """The answer for an error of the layers below.

    Args:
        error: It.
        begun: Whether the text was being written already. A prompt is refused before; from then
            on a failure is the server's.
    """
    message = ": ".join(part for part in (error.message, error.remedy) if part)
    if isinstance(error, QueueFullError):
        headers = retry_header(error.retry_after)
        return ApiError(429, message, code="queue_full", headers=headers)
    if isinstance(error, UnknownExpertError):
        return ApiError(404, message, param="model", code="model_not_found")
    if isinstance(error, UsageError) and not isinstance(error, (ConfigError, DataError)):
        return ApiError(400, message)
    if isinstance(error, BackendError) and error.retryable:
        return ApiError(503, message, code="busy", headers=retry_header(1))
    if isinstance(error, BackendError) and not begun:
        return ApiError(400, message)
    _log.error("%s: %s", type(error).__name__, error)
    return ApiError(500, NOT_OURS)


async def on_aios_error(request: Request, error: Exception) -> JSONResponse:
    """Exception handler: an error of the layers below that came before any text."""
    assert isinstance(error, AIOSError)
    return error_response(from_aios(error))


async def on_http_error(request: Request, error: Exception) -> JSONResponse:
    """Exception handler: our own errors, and those of the router (no such route or method)."""
    assert isinstance(error, StarletteHTTPException)
    if isinstance(error, ApiError):
        return error_response(error)
    message = {404: "there is no such route", 405: "this route has no such method"}
    shown = message.get(error.status_code, str(error.detail))
    return error_response(ApiError(error.status_code, shown, headers=error.headers))


async def on_invalid(request: Request, error: Exception) -> JSONResponse:
    """Exception handler: a request that is not as the schema says; names the first fault."""
    assert isinstance(error, RequestValidationError)
    return error_response(_first_fault(error.errors()))


async def on_bug(request: Request, error: Exception) -> JSONResponse:
    """Exception handler: what nobody foresaw; the traceback goes to the log."""
    return error_response(ApiError(500, NOT_OURS))


def _first_fault(faults: Sequence[Mapping[str, Any]]) -> ApiError:
    first = faults[0]
    context = first.get("ctx") or {}
    where = [str(part) for part in first["loc"][1:]]
    param = str(context.get("param") or ".".join(where))[:_SHOWN] or None
    message = str(first["msg"])[:_SHOWN]
    if first["type"] in ("missing", "model_attributes_type") and not where:
        message = "the request needs a JSON object as its body"
    elif param:
        message = f"{param}: {message}"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return ApiError(400, message + more, param=param, code=context.get("code"))


async def on_client_gone(request: Request, error: Exception) -> JSONResponse:
    """Exception handler: the answer that nobody will read."""
    return error_response(ApiError(CLIENT_GONE, "the client has gone"))
