"""Requests that are wrong, huge or slow get a clear 4xx, and everybody else is still served."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from aios.web.server import Timeouts
from tests.openai_server import LOOPBACK
from tests.test_web.running import RunningServer, ask

pytestmark = LOOPBACK

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    timeouts = Timeouts(head=0.3, body=0.3)
    folder = tmp_path_factory.mktemp("impatient")
    with RunningServer(folder, timeouts=timeouts, max_body_bytes=20_000) as running:
        yield running


def messages(*found: Any) -> dict[str, Any]:
    return {"model": "base", "messages": list(found)}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nothing",
        b"\xff\xfe{}",
        b'{"model": "\xff"}',
        b"[" * 100_000,
        b'{"messages": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"model": "base", "messages": [{"role": "user", "content": "hi"}], "temperature": NaN}',
        b'{"model": "base", "messages": [{"role": "user", "content": "hi"}], "top_p": Infinity}',
        b'{"model": "base", "messages": [{"role": "user", "content": "hi"}], "top_p": 1e999}',
        b'{"model": "base", "messages": [{"role": "user", "content": "hi"}], "seed": '
        + b"9" * 5000
        + b"}",
        json.dumps(ask("hi")).encode("utf-16"),
    ],
)
def test_what_is_no_json_is_refused(server: RunningServer, body: bytes) -> None:
    answer = server.post(CHAT, body)
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"
    assert len(answer.error["message"]) < 500


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        "text",
        5,
        {},
        {"messages": None},
        {"messages": []},
        {"messages": "hi"},
        {"messages": [None]},
        {"messages": ["hi"]},
        {"messages": {"role": "user", "content": "hi"}},
        messages({"role": "user"}),
        messages({"content": "hi"}),
        messages({"role": "user", "content": None}),
        messages({"role": "user", "content": 5}),
        messages({"role": "user", "content": {}}),
        messages({"role": "user", "content": [{"type": "text"}]}),
        messages({"role": "user", "content": ["hi"]}),
        messages({"role": "user", "content": "\ud800"}),
        messages({"role": "user", "content": [{"type": "text", "text": "\udfff"}]}),
        messages({"role": "tool", "content": "hi"}),
        messages({"role": ["user"], "content": "hi"}),
        messages({"role": "system", "content": "hi"}),
        messages({"role": "assistant", "content": "hi", "tool_calls": [{}]}),
        ask("hi", model=""),
        ask("hi", model=None),
        ask("hi", model=5),
        ask("hi", model="x" * 1000),
        ask("hi", model="\ud800"),
        ask("hi", temperature="1"),
        ask("hi", temperature=-1),
        ask("hi", temperature=2.1),
        ask("hi", temperature=[]),
        ask("hi", top_p=0),
        ask("hi", max_tokens=0),
        ask("hi", max_tokens=-5),
        ask("hi", max_tokens=1.5),
        ask("hi", max_tokens=10**30),
        ask("hi", max_tokens=True),
        ask("hi", n=0),
        ask("hi", n=1000),
        ask("hi", seed="1"),
        ask("hi", seed=2**63),
        ask("hi", seed=1e300),
        ask("hi", stop=""),
        ask("hi", stop=[""]),
        ask("hi", stop=[5]),
        ask("hi", stop=["x"] * 100),
        ask("hi", stop="x" * 100_000),
        ask("hi", stop={"a": "b"}),
        ask("hi", stream="yes"),
        ask("hi", stream_options={"include_usage": True}),
        ask("hi", stream=True, stream_options=[]),
        ask("hi", logprobs=5),
        ask("hi", top_logprobs=5),
        ask("hi", logprobs=True, top_logprobs=21),
        ask("hi", session_id="\0"),
        ask("hi", tta="no"),
    ],
    ids=lambda body: ascii(body)[:60],
)
def test_wrong_values_are_refused_by_name(server: RunningServer, body: object) -> None:
    answer = server.post(CHAT, json.dumps(body))
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "prompt", [None, 5, [], [5, 6], [[5]], {}, ["a", 5], ["a"] * 17, "\ud800", "", [""]], ids=repr
)
def test_wrong_prompts_are_refused(server: RunningServer, prompt: object) -> None:
    body = json.dumps({"model": "base", "prompt": prompt})
    assert server.post("/v1/completions", body).status == 400


def test_many_wrong_items_do_not_make_many_errors(server: RunningServer) -> None:
    for body in (
        {"model": "base", "messages": [0] * 300_000},
        {"model": "base", "messages": [{"role": "user", "content": [0] * 300_000}]},
        {"model": "base", "messages": [{"role": 0, "content": 0}] * 4000},
    ):
        began = time.monotonic()
        answer = server.post(CHAT, body)
        assert answer.status == 400
        assert len(answer.data) < 1000
        assert time.monotonic() - began < 2


def test_odd_texts_are_answered(server: RunningServer) -> None:
    for text in ("a\0b", "\u2028\r\n\x1b[31m", "<|im_start|>system", "🙂" * 500):
        assert server.post(CHAT, ask(text)).status == 200
        body = ask(text, stream=True)
        assert server.post(CHAT, body).text.endswith("data: [DONE]\n\n")


def test_ids_never_become_paths(server: RunningServer) -> None:
    for path in (
        "../../etc/passwd",
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/etc/passwd",
        "/etc/passwd",
        "a%00b",
        "%ff",
        "x" * 5000,
    ):
        answer = server.request("GET", f"/v1/models/{path}")
        assert answer.status == 404
        assert answer.error["code"] == "model_not_found"
    assert server.post(CHAT, ask("hi", model="../art")).status == 404
    assert server.post("/v1/feedback", {"id": "../../x", "rating": 1}).status == 400


def test_unknown_routes_and_methods_are_told_in_the_same_form(server: RunningServer) -> None:
    for method, path, status in (
        ("GET", "/", 404),
        ("GET", "/docs", 404),
        ("GET", "/redoc", 404),
        ("POST", "/v1/embeddings", 404),
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("OPTIONS", CHAT, 405),
    ):
        answer = server.request(method, path)
        assert (answer.status, bool(answer.error)) == (status, True)


@pytest.mark.parametrize(
    "content_type", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
def test_a_body_must_be_declared_as_json(server: RunningServer, content_type: str) -> None:
    answer = server.post(CHAT, ask("hi"), {"Content-Type": content_type})
    assert (answer.status, bool(answer.error)) == (415, True)
    declared = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert server.post(CHAT, ask("hi"), declared).status == 200


def raw(server: RunningServer, data: bytes) -> bytes:
    """What comes back for some bytes, until the server closes or has told an error."""
    with closing(server.connect()) as connection:
        connection.settimeout(3)
        connection.sendall(data)
        got = b""
        try:
            while not got.endswith(b"}}") and (part := connection.recv(65536)):
                got += part
        except (TimeoutError, ConnectionResetError):
            pass
        return got


def test_a_body_beyond_the_limit_is_refused(impatient: RunningServer) -> None:
    answer = impatient.post(CHAT, ask("x" * 20_000))
    assert (answer.status, bool(answer.error)) == (413, True)
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    huge = head % CHAT.encode() + b"Content-Length: 99999999999\r\n\r\n{"
    assert raw(impatient, huge).startswith(b"HTTP/1.1 413 ")
    chunk = b"1000\r\n" + b"x" * 4096 + b"\r\n"
    chunked = head % CHAT.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 6
    assert raw(impatient, chunked).startswith(b"HTTP/1.1 413 ")


def test_broken_http_is_refused(impatient: RunningServer) -> None:
    for data in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/nine\r\nHost: localhost\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 200_000 + b"\r\n\r\n",
        b"GET /" + b"y" * 200_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ):
        got = raw(impatient, data)
        assert got == b"" or got.startswith(b"HTTP/1.1 4"), got[:100]
    assert impatient.request("GET", "/health").status == 200


def test_a_slow_head_is_cut_off_while_others_are_served(impatient: RunningServer) -> None:
    head = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
    slow = [impatient.connect() for _ in range(20)]
    try:
        for connection in slow[:15]:  # the others send nothing at all
            connection.sendall(head)
        end = time.monotonic() + 5
        open_ones = list(slow)
        while open_ones and time.monotonic() < end:
            assert impatient.post(CHAT, ask("hi")).status == 200
            open_ones = [each for each in open_ones if _drip(each)]
        assert not open_ones
    finally:
        for connection in slow:
            connection.close()


def _drip(connection: socket.socket) -> bool:
    """Sends one more byte; whether the server still listens."""
    connection.settimeout(0.001)
    try:
        connection.send(b"x")
        return connection.recv(100) != b""
    except TimeoutError:
        return True
    except OSError:
        return False


def test_a_slow_body_is_given_up(impatient: RunningServer) -> None:
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    began = time.monotonic()
    got = raw(impatient, head % CHAT.encode() + b"Content-Length: 100\r\n\r\n{")
    assert got.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in got
    assert 0.2 < time.monotonic() - began < 2.5


def test_a_connection_may_be_used_again(impatient: RunningServer) -> None:
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with closing(impatient.connect()) as connection:
        for _ in range(3):
            connection.sendall(request)
            got = b""
            while not got.endswith(b"}"):
                part = connection.recv(65536)
                assert part
                got += part
            assert got.startswith(b"HTTP/1.1 200 ")
            time.sleep(0.15)


def test_connections_beyond_the_most_are_closed(tmp_path: Path) -> None:
    with RunningServer(tmp_path) as server:
        server.server.config.http_protocol_class.most_connections = 3  # type: ignore[attr-defined]
        kept = [server.connect() for _ in range(3)]
        try:
            for connection in kept:
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
            assert raw(server, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n") == b""
        finally:
            for connection in kept:
                connection.close()
