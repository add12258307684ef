"""What tests of the pages' frame share: other requests than a browser's, and made-up sites."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx2 as httpx
import pytest
from starlette.types import ASGIApp, Message

from aios.web.pages import assembly
from aios.web.pages.assembly import create_site
from aios.web.pages.guarding import PAGE_POLICY, Sessions
from tests.test_web.visitor import ADDRESS, Visitor

SECRET = b"secret of a test"
HEADERS = {
    "content-security-policy": PAGE_POLICY,
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def pressed(visitor: Visitor, path: str = "/settings/change", **headers: str) -> httpx.Response:
    """A press of a button that changes a setting on disk, with other headers than a browser's."""
    data = {"code": visitor.code(), "key": "seed", "value": "7", "back": "/settings"}
    sent = {"Origin": ADDRESS, **headers}
    return visitor.client.post(path, data=data, headers=sent, follow_redirects=False)


def headers_of(answer: httpx.Response) -> dict[str, str]:
    return {name: answer.headers.get(name, "") for name in HEADERS}


def other_site(visitor: Visitor, monkeypatch: pytest.MonkeyPatch, *routes: Any) -> ASGIApp:
    """The visitor's site with routes of the test alone."""

    class Module:
        @staticmethod
        def routes() -> list[Any]:
            return list(routes)

    monkeypatch.setattr(assembly, "MODULES", (Module,))
    return create_site(visitor.site, Sessions.make(SECRET, None, 80, secure=False), token=None)


async def ask(
    app: ASGIApp,
    method: str,
    path: str,
    headers: dict[str, str],
    enough: Callable[[list[Message]], object],
    *,
    body: bytes | None = None,
) -> list[Message]:
    """What the application sends until it is enough; then the client leaves.

    A `body` with an `enough` that never is true is a body that never ends.
    """
    sent: list[Message] = []
    left = asyncio.Event()
    given = False

    async def receive() -> Message:
        nonlocal given
        if not given:
            given = True
            more = enough is not ended and body is not None
            return {"type": "http.request", "body": body or b"", "more_body": more}
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)
        if enough(sent):
            left.set()

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }
    await asyncio.wait_for(app(scope, receive, send), 10)
    return sent


def ended(sent: list[Message]) -> bool:
    return sent[-1]["type"] == "http.response.body" and not sent[-1].get("more_body", False)


def texts(sent: list[Message]) -> list[str]:
    return [message["body"].decode() for message in sent if message.get("body")]


def parts(sent: list[Message]) -> list[str]:
    """The parts that a stream sent."""
    found = "".join(texts(sent)).split("\n\n")
    return [json.loads(text[6:]) for text in found if text.startswith("data: ")]
