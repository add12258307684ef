"""The site: all pages, their guard, the static files, and the API beside them.

Paths of the API (``/v1/…``, ``/openapi.json``, ``/metrics``) go to the application of
`aios.web.app`, which is made, with the model loaded, when the first of them comes. All others are
pages.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import anyio.to_thread
from starlette.applications import Starlette
from starlette.datastructures import FormData, Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aios.app.charts.svg import CSS as CHART_STYLE
from aios.core.errors import AIOSError
from aios.web.errors import ApiError, error_response, from_aios
from aios.web.limits import BODY_SECONDS, BoundedBodies
from aios.web.pages import (
    ab_tests,
    cache,
    chat,
    edits,
    experts,
    files,
    goals,
    home,
    jobs,
    restem,
    runs,
    settings,
)
from aios.web.pages.calls import Call
from aios.web.pages.guarding import PageGuard, Sessions
from aios.web.pages.signing_in import sign_in_routes
from aios.web.pages.site import Site
from aios.web.public_address import PublicAddress
from aios.web.security import Guard, SafeHeaders

STATIC = Path(__file__).parents[1] / "static"
MODULES = (home, files, jobs, runs, ab_tests, edits, cache, restem, experts, goals, chat, settings)
API_PATHS = ("/v1/", "/openapi.json", "/metrics")
UPLOAD_PATH = "/files/upload"
MOST_UPLOAD_BYTES = 64 * 2**20
UPLOAD_SECONDS = 300.0


def create_site(
    site: Site, sessions: Sessions, *, token: str | None, api: Callable[[], ASGIApp] | None = None
) -> ASGIApp:
    """The application of ``aios web``.

    Args:
        site: What pages share.
        sessions: Cookies and the codes of forms.
        token: What people sign in with, and clients of the API send; None: loopback only.
        api: Makes the API's application; may take long. None: there is no API.
    """
    routes: list[Route | Mount] = [
        Mount("/static", StaticFiles(directory=STATIC)),
        Route("/charts.css", _chart_style),
        Route("/health", _live),
        Route("/ready", _live),
        *sign_in_routes(sessions, token),
    ]
    for module in MODULES:
        routes += module.routes()
    pages = Starlette(
        routes=routes, exception_handlers={HTTPException: _on_http_error, Exception: _on_bug}
    )
    pages.state.site = site
    pages.state.sessions = sessions
    pages.state.signs_in = token is not None
    settings = site.settings.started.config.serve
    public = PublicAddress.of(settings)
    bounded = _Bounds(pages, settings.max_body_bytes)
    # The guard is outermost: no body is read of who may not send one, and its headers are on
    # every answer, those of errors included.
    guarded = PageGuard(bounded, sessions, token, public)
    if api is None:
        return guarded
    # Guarded here, too: a model is not loaded for who may not ask.
    return _Both(guarded, SafeHeaders(Guard(_LateApi(api), token, public)))


class _Bounds:
    """Bodies of forms within the server's bound, and uploads within theirs."""

    def __init__(self, pages: ASGIApp, max_bytes: int) -> None:
        self._forms = BoundedBodies(pages, max_bytes, BODY_SECONDS)
        self._pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == UPLOAD_PATH:
            await _bounded_stream(self._pages, scope, receive, send)
        else:
            await self._forms(scope, receive, send)


async def _bounded_stream(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Passes an upload on as it comes; one that is too large or too slow ends with an error."""
    declared = Headers(scope=scope).get("content-length", "0")
    taken = int(declared) if declared.isascii() and declared.isdigit() else 0
    too_large, taken = taken > MOST_UPLOAD_BYTES, 0
    end = time.monotonic() + UPLOAD_SECONDS
    whole = False

    async def counted() -> Message:
        nonlocal taken, whole
        if whole:
            return await receive()  # waits for the client to leave
        if too_large:
            raise _too_large()
        try:
            message = await asyncio.wait_for(receive(), end - time.monotonic())
        except asyncio.TimeoutError:
            raise ApiError(408, f"the file did not arrive within {UPLOAD_SECONDS:g} s") from None
        taken += len(message.get("body", b""))
        if taken > MOST_UPLOAD_BYTES:
            raise _too_large()
        whole = not message.get("more_body", False)
        return message

    await app(scope, counted, send)


def _too_large() -> ApiError:
    return ApiError(413, f"a file may have {MOST_UPLOAD_BYTES // 2**20} MiB at most")


class _Both:
    """Pages and API behind one address."""

    def __init__(self, pages: ASGIApp, api: ASGIApp) -> None:
        self._pages = pages
        self._api = api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(API_PATHS):
            await self._pages(scope, receive, send)
        else:
            await self._api(scope, receive, send)


class _LateApi:
    """The API's application, which is made when the first request comes; the others wait."""

    def __init__(self, make: Callable[[], ASGIApp]) -> None:
        self._make = make
        self._made: ASGIApp | None = None
        self._making = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            app = self._made or await self._make_once()
        except AIOSError as error:
            await error_response(from_aios(error))(scope, receive, send)
            return
        await app(scope, receive, send)

    async def _make_once(self) -> ASGIApp:
        async with self._making:
            if self._made is None:
                self._made = await anyio.to_thread.run_sync(self._make)
            return self._made


async def _chart_style(request: Request) -> Response:
    return Response(CHART_STYLE, media_type="text/css")


async def _live(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    accepted = request.headers.get("accept", "")
    if "application/json" in accepted:
        document = {"text": f"{error.detail}.", "tone": "bad", "remedy": ""}
        return JSONResponse(document, error.status_code, error.headers)
    if "text/html" not in accepted:
        return PlainTextResponse(str(error.detail), error.status_code, error.headers)
    call = Call(request, request.app.state.site, request.app.state.sessions, FormData())
    missing = error.status_code == 404
    found = AIOSError(
        "There is no such page." if missing else f"{error.detail}.", "Go back, or begin at Home."
    )
    title = "Not found" if missing else "This cannot be done"
    return call.page("error.html.j2", status=error.status_code, error=found, title=title)


async def _on_bug(request: Request, error: Exception) -> Response:
    return PlainTextResponse("The server failed to show this; its log says why.\n", 500)
