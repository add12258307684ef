"""Live parts: sent at once, again when they change, and ended in an orderly way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message

from aios.core.errors import UsageError
from aios.web.pages import live
from aios.web.pages.calls import Call
from aios.web.pages.guarding import PAGE_POLICY
from tests.test_web.asking import ask, ended, other_site, parts, texts
from tests.test_web.visitor import ADDRESS, Visitor


@pytest.fixture
def streamed(
    visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[ASGIApp, dict[str, Any]]]:
    """A site with one live part, and what that shows, which tests change."""
    monkeypatch.setattr(live, "LOOK_SECONDS", 0.005)
    state: dict[str, Any] = {"stamp": 0, "text": "first", "made": 0, "error": None}

    def part(call: Call) -> str:
        if state["error"]:
            raise state["error"]
        state["made"] += 1
        return str(state["text"])

    def stamp(call: Call) -> int:
        return int(state["stamp"])

    def make() -> tuple[ASGIApp, dict[str, Any]]:
        return other_site(visitor, monkeypatch, *live.live("/part", part, stamp)), state

    return make


def stream(app: ASGIApp, enough: Callable[[list[Message]], object]) -> list[Message]:
    return asyncio.run(ask(app, "GET", "/part/live", {"host": "localhost"}, enough))


def test_a_stream_begins_with_the_part_as_it_is(
    streamed: Callable[..., tuple[ASGIApp, dict[str, Any]]],
) -> None:
    app, state = streamed()
    state["text"] = "<b>first</b>\nline two \u2028"
    sent = stream(app, parts)
    headers = dict(sent[0]["headers"])
    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert headers[b"content-security-policy"].decode() == PAGE_POLICY
    assert texts(sent)[0].startswith("retry: ")
    assert parts(sent) == [state["text"]]


def test_a_stream_sends_the_part_again_when_it_changes_and_only_then(
    streamed: Callable[..., tuple[ASGIApp, dict[str, Any]]],
) -> None:
    app, state = streamed()

    def enough(sent: list[Message]) -> bool:
        if len(parts(sent)) == 1 and state["text"] == "first":
            state.update(stamp=1)  # the stamp is another, the text is not: nothing is sent
            asyncio.get_running_loop().call_later(
                0.03, lambda: state.update(stamp=2, text="second")
            )
        return len(parts(sent)) == 2

    assert parts(stream(app, enough)) == ["first", "second"]
    assert state["made"] == 3


def test_what_changes_without_a_stamp_is_looked_at_now_and_then(
    streamed: Callable[..., tuple[ASGIApp, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "RENEW_SECONDS", 0.02)
    app, state = streamed()

    def enough(sent: list[Message]) -> bool:
        if len(parts(sent)) == 1:
            state.update(text="second")
        return len(parts(sent)) == 2

    assert parts(stream(app, enough)) == ["first", "second"]


def test_a_quiet_stream_says_that_it_is_there(
    streamed: Callable[..., tuple[ASGIApp, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "PING_SECONDS", 0.02)
    app, _ = streamed()
    sent = stream(app, lambda sent: any(text.startswith(":") for text in texts(sent)))
    assert parts(sent) == ["first"]


def test_a_stream_ends_when_the_site_closes(
    streamed: Callable[..., tuple[ASGIApp, dict[str, Any]]], visitor: Visitor
) -> None:
    app, _ = streamed()

    def close_it(sent: list[Message]) -> bool:
        if parts(sent):
            visitor.site.closing.set()
        return False  # the client stays

    assert ended(stream(app, close_it))


def test_a_part_that_is_gone_ends_its_stream_and_says_why(
    streamed: Callable[..., tuple[ASGIApp, dict[str, Any]]],
) -> None:
    app, state = streamed()
    state["error"] = UsageError("there is no job x")
    sent = stream(app, lambda sent: False)
    assert texts(sent)[-1] == 'event: gone\ndata: "there is no job x"\n\n'
    assert ended(sent)


def test_a_part_can_be_asked_for_once(
    streamed: Callable[..., tuple[ASGIApp, dict[str, Any]]],
) -> None:
    app, _ = streamed()
    assert TestClient(app, base_url=ADDRESS).get("/part").text == "first"
