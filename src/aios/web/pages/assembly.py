"""The site: all pages, their guard, the static files, and the API beside them.

Paths of the API (``/v1/…``, ``/openapi.json``, ``/metrics``) go to the application of
`aios.web.app`, which is made, with the model loaded, when the first of them comes. All others are
pages.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anyio.to_thread
from starlette.applications import Starlette
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aios.app.svg import CSS as CHART_STYLE
from aios.core.errors import AIOSError
from aios.web.errors import ApiError, ClientGoneError, error_response, from_aios
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
        routes=routes,
        middleware=[Middleware(PageGuard, sessions=sessions, token=token)],
        exception_handlers={HTTPException: _on_http_error, Exception: _on_bug},
    )
    pages.state.site = site
    pages.state.sessions = sessions
    bounded = _Bounds(pages, site.config.serve.max_body_bytes)
    return bounded if api is None else _Both(bounded, api)


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
    """Passes an upload on as it comes; one that is too large is cut off with an error."""
    taken, begun = 0, False

    async def counted() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > MOST_UPLOAD_BYTES:
            raise _too_large()
        return message

    async def noting(message: Message) -> None:
        nonlocal begun
        begun = True
        await send(message)

    try:
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared[:20]) > MOST_UPLOAD_BYTES:
            raise _too_large()
        await app(scope, counted, noting)
    except ApiError as error:
        if not begun:
            await error_response(error)(scope, receive, send)
    except ClientGoneError:
        return


def _too_large() -> ApiError:
    return ApiError(413, f"a file may have {MOST_UPLOAD_BYTES // 2**20} MiB at most")


class _Both:
    """Pages and API behind one address."""

    def __init__(self, pages: ASGIApp, make_api: Callable[[], ASGIApp]) -> None:
        self._pages = pages
        self._make_api = make_api
        self._api: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(API_PATHS):
            await self._pages(scope, receive, send)
            return
        if self._api is None:
            try:
                self._api = await anyio.to_thread.run_sync(self._make_api)
            except AIOSError as error:
                await error_response(from_aios(error))(scope, receive, send)
                return
        await self._api(scope, receive, send)


async def _chart_style(request: Request) -> Response:
    return Response(CHART_STYLE, media_type="text/css")


async def _live(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if "text/html" not in request.headers.get("accept", "") or not hasattr(
        request.state, "session"
    ):
        return PlainTextResponse(str(error.detail), error.status_code, error.headers)
    call = Call(request, request.app.state.site, request.app.state.sessions, FormData())
    found = AIOSError(
        "There is no such page." if error.status_code == 404 else str(error.detail),
        "Go back, or begin at Home.",
    )
    return call.page("error.html.j2", status=error.status_code, error=found, title="Not found")


async def _on_bug(request: Request, error: Exception) -> Response:
    return PlainTextResponse("The server failed to show this; its log says why.\n", 500)
