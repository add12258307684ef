"""Parts of pages that stay true: sent again whenever what they show has changed.

A live part is a function that gives HTML, and one that gives a *stamp*, something cheap that
changes when the part may have changed (sizes and times of files, say). The browser holds one
stream of server-sent events for a page (none while its tab is hidden); the server looks at the
stamp twice a second and sends the part when its text is another one. The stream begins with the
part as it is now, so a browser that comes back after a sleep, or after the server's restart, sees
the present state, whatever it missed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable, Hashable

import anyio.to_thread
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route

from aios.core.errors import AIOSError
from aios.web.pages.calls import Call, get

LOOK_SECONDS = 0.5
RENEW_SECONDS = 5.0  # times that are left and the like change without a stamp
PING_SECONDS = 15.0
RETRY_MILLISECONDS = 1000

Part = Callable[[Call], str]
Stamp = Callable[[Call], Hashable]


def live(path: str, part: Part, stamp: Stamp) -> list[Route]:
    """The routes of a live part: itself at `path`, its stream at ``path/live``."""

    def once(call: Call) -> Response:
        return HTMLResponse(part(call))

    once.__name__ = f"{part.__name__}_once"
    once.__module__ = part.__module__

    async def stream(request: Request) -> Response:
        call = Call(request, request.app.state.site, request.app.state.sessions, FormData())
        return StreamingResponse(
            _events(call, part, stamp),
            media_type="text/event-stream",
            headers={"X-Accel-Buffering": "no"},
        )

    return [get(path, once), Route(f"{path}/live", stream, methods=["GET"])]


async def _events(call: Call, part: Part, stamp: Stamp) -> AsyncIterator[str]:
    """The stream of a part, until its reader leaves, the server stops, or it cannot be shown."""
    yield f"retry: {RETRY_MILLISECONDS}\n\n"
    shown, seen, rendered, spoken = b"", object(), 0.0, time.monotonic()
    while not call.site.closing.is_set() and not await call.request.is_disconnected():
        if call.request.state.session is not None and call.sessions.has_ended(call.session):
            yield f"event: gone\ndata: {json.dumps('You are signed out.')}\n\n"
            return
        try:
            now: Hashable = await anyio.to_thread.run_sync(stamp, call)
            if now != seen or time.monotonic() - rendered >= RENEW_SECONDS:
                text = await anyio.to_thread.run_sync(part, call)
                seen, rendered = now, time.monotonic()
                digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()
                if digest != shown:
                    shown, spoken = digest, time.monotonic()
                    yield f"data: {json.dumps(text)}\n\n"
        except AIOSError as error:
            yield f"event: gone\ndata: {json.dumps(error.message)}\n\n"
            return
        if time.monotonic() - spoken >= PING_SECONDS:
            spoken = time.monotonic()
            yield ": still here\n\n"
        await asyncio.sleep(LOOK_SECONDS)
