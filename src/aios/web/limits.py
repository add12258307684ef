"""Bounds on what a client may send: size of the body, time for it, and how many send at once.

A body is read here, before the application sees the request, whether its length was declared or
it comes in chunks. So no application code waits for a slow client, and what is in memory is
bounded by ``serve.max_body_bytes`` times `MOST_BODIES`. A client that goes on sending after it was
answered is not read: `aios.web.connections` cuts it off, and bounds the heads of requests in time;
h11 bounds them in size.
"""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aios.web.errors import ApiError, ClientGoneError, error_response, retry_header

BODY_SECONDS = 20.0
MOST_BODIES = 512
_LARGEST_LENGTH = 20  # digits


class BoundedBodies:
    """Middleware: reads bodies within bounds, and answers those beyond with an error.

    Args:
        app: What gets the whole body.
        max_bytes: Largest body.
        seconds: Time for a body to arrive.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, seconds: float = BODY_SECONDS) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.seconds = seconds
        self._inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on with its body read, or answers it with an error."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self._inside >= MOST_BODIES:
            busy = ApiError(429, "too many requests at once", headers=retry_header(1))
            await error_response(busy)(scope, receive, send)
            return
        self._inside += 1
        try:
            await self._bounded(scope, receive, send)
        finally:
            self._inside -= 1

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await asyncio.wait_for(self._read(scope, receive), self.seconds)
        except ApiError as error:
            await error_response(error)(scope, receive, send)
        except asyncio.TimeoutError:
            message = f"the body did not arrive within {self.seconds:g} s"
            await error_response(ApiError(408, message, headers={"Connection": "close"}))(
                scope, receive, send
            )
        except ClientGoneError:
            return
        else:
            await self.app(scope, _replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        """The body.

        Raises:
            ApiError: It is too large, by what was declared or by what came.
            ClientGoneError: The client left before the end.
        """
        declared = Headers(scope=scope).get("content-length", "0")
        if not declared.isascii() or not declared.isdigit() or len(declared) > _LARGEST_LENGTH:
            raise ApiError(400, "Content-Length is no number")
        if int(declared) > self.max_bytes:
            raise self._too_large()
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            body += message.get("body", b"")
            if len(body) > self.max_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                return bytes(body)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than the {self.max_bytes:,} bytes allowed")


def _replay(body: bytes, receive: Receive) -> Receive:
    """Gives a body that was read, then what comes after it."""
    given = False

    async def next_message() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return next_message
