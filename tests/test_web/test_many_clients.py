"""Many clients at once, clients that leave, and a server that is told to stop."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import openai
import pytest

from aios.backends.scripted import Script
from aios.web.answers import Answers
from aios.web.server import Timeouts
from tests.openai_server import LOOPBACK
from tests.test_web.running import RunningServer, ask, wait_until

pytestmark = [*LOOPBACK, pytest.mark.slow]

MODELS = ("base", "art", "physics", "auto")


async def many(server: RunningServer, clients: int, requests: int) -> list[Any]:
    """What each request of each client got: a text or an error."""
    async with openai.AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0) as client:

        async def one(number: int) -> list[Any]:
            got: list[Any] = []
            for turn in range(requests):
                model = MODELS[(number + turn) % len(MODELS)]
                content = f"count {number} {turn}"
                try:
                    if turn % 2:
                        stream = await client.chat.completions.create(
                            model=model,
                            messages=[{"role": "user", "content": content}],
                            stream=True,
                        )
                        async with stream:
                            got.append(
                                "".join([c.choices[0].delta.content or "" async for c in stream])
                            )
                    else:
                        answer = await client.chat.completions.create(
                            model=model, messages=[{"role": "user", "content": content}]
                        )
                        got.append(answer.choices[0].message.content)
                except openai.APIError as error:
                    got.append(error)
            return got

        found = await asyncio.gather(*(one(number) for number in range(clients)))
    return [each for got in found for each in got]


COUNT = "one two three four five six seven eight nine ten"
TEXTS = {COUNT, f"[art] {COUNT}", f"[physics] {COUNT}"}


def test_fifty_clients_at_once_get_their_own_texts(server: RunningServer) -> None:
    got = asyncio.run(many(server, 50, 4))
    assert len(got) == 200
    assert set(got) == TEXTS


def test_beyond_the_queue_is_429_with_a_time_to_wait(tmp_path: Path) -> None:
    with RunningServer(
        tmp_path, seconds_per_token=0.005, max_concurrent=4, max_waiting=4
    ) as server:
        got = asyncio.run(many(server, 50, 2))
    texts = [each for each in got if isinstance(each, str)]
    errors = [each for each in got if not isinstance(each, str)]
    assert len(texts) >= 8
    assert errors
    assert {type(error) for error in errors} == {openai.RateLimitError}
    for error in errors:
        assert 1 <= int(error.response.headers["retry-after"]) <= 60
        assert error.code == "queue_full"
    assert set(texts) <= TEXTS


def test_more_texts_than_threads_are_refused(tmp_path: Path) -> None:
    with RunningServer(tmp_path, seconds_per_token=0.01, max_concurrent=1, max_waiting=0) as server:
        answer = server.post("/v1/chat/completions", ask("count", n=16))
        assert (answer.status, answer.error["code"]) == (429, "queue_full")
        wait_until(lambda: server.assistant.load().writing == 0)
        assert server.post("/v1/chat/completions", ask("count")).status == 200


def test_the_official_client_tries_again_after_429(tmp_path: Path) -> None:
    with RunningServer(tmp_path) as server, server.client(max_retries=2) as client:
        server.writer.full = True
        threading.Timer(0.3, setattr, (server.writer, "full", False)).start()
        answer = client.chat.completions.create(
            model="base", messages=[{"role": "user", "content": "count"}]
        )
        assert answer.choices[0].message.content == COUNT


@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole"])
def test_a_client_that_leaves_has_its_text_cancelled(tmp_path: Path, stream: bool) -> None:
    with RunningServer(tmp_path, seconds_per_token=0.02) as server:
        with closing(server.connect()) as connection:
            body = repr(ask("long", stream=stream)).replace("'", '"').replace("True", "true")
            body = body.replace("False", "false")
            head = (
                "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            connection.sendall((head + body).encode())
            wait_until(lambda: server.assistant.load().tokens > 2)
        wait_until(lambda: server.assistant.load().writing == 0, 3)  # 400 words would take 8 s
        assert server.assistant.load().tokens < 250
        cancelled = 'aios_answers_total{ended="cancelled",expert="base"}'
        wait_until(lambda: server.metric(cancelled) == 1)


def test_a_client_that_leaves_the_queue_is_not_written_for(tmp_path: Path) -> None:
    with (
        RunningServer(tmp_path, seconds_per_token=0.02, max_concurrent=1, max_waiting=5) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        first = pool.submit(server.post, "/v1/chat/completions", ask("long", max_tokens=40))
        wait_until(lambda: server.assistant.load().writing == 1)
        with server.client(timeout=0.3) as client, pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(
                model="base", messages=[{"role": "user", "content": "count"}]
            )
        wait_until(lambda: server.assistant.load().waiting == 0, 3)
        assert first.result().status == 200
        assert server.assistant.load().tokens == 40


def test_out_of_time_gives_what_is_written_or_504(tmp_path: Path) -> None:
    with (
        RunningServer(
            tmp_path, seconds_per_token=0.02, max_concurrent=1, timeout_seconds=0.3
        ) as server,
        ThreadPoolExecutor(2) as pool,
    ):
        first = pool.submit(server.post, "/v1/chat/completions", ask("long"))
        wait_until(lambda: server.assistant.load().writing == 1)
        time.sleep(0.05)
        second = pool.submit(server.post, "/v1/chat/completions", ask("long", max_tokens=1))
        cut = first.result().json
        assert cut["choices"][0]["finish_reason"] == "length"
        assert cut["aios"]["texts"][0]["ended"] == "timeout"
        assert 0 < len(cut["choices"][0]["message"]["content"].split()) < 30
        assert second.result().status in (200, 504)  # it had a place for a moment, or none
        server.writer.batch.seconds_per_token = 0.5
        late = pool.submit(server.post, "/v1/chat/completions", ask("long"))
        wait_until(lambda: server.assistant.load().writing == 1)
        late_too = server.post("/v1/chat/completions", ask("long"))
        assert (late_too.status, late_too.error["code"]) == (504, "timeout")
        stream = server.post("/v1/chat/completions", ask("long", stream=True))
        assert '"code":"timeout"' in stream.text or '"ended":"timeout"' in stream.text
        late.result()


def test_an_answer_in_flight_finishes_before_the_stop(tmp_path: Path) -> None:
    with RunningServer(tmp_path, seconds_per_token=0.02) as server, ThreadPoolExecutor(2) as pool:
        whole = pool.submit(server.post, "/v1/chat/completions", ask("long", max_tokens=30))
        stream = pool.submit(
            server.post, "/v1/chat/completions", ask("long", max_tokens=30, stream=True)
        )
        wait_until(lambda: server.assistant.load().writing == 2)
        server.ask_to_stop()
        assert whole.result().json["usage"]["completion_tokens"] == 30
        assert stream.result().text.endswith("data: [DONE]\n\n")
        server.stop()
        with pytest.raises(OSError, match="refused"), closing(server.connect()):
            pass


def test_what_does_not_finish_in_time_is_cancelled(tmp_path: Path) -> None:
    with (
        RunningServer(tmp_path, seconds_per_token=0.05, timeouts=Timeouts(grace=0.3)) as server,
        ThreadPoolExecutor(2) as pool,
    ):
        whole = pool.submit(server.post, "/v1/chat/completions", ask("long"))
        stream = pool.submit(server.post, "/v1/chat/completions", ask("long", stream=True))
        wait_until(lambda: server.assistant.load().tokens > 2)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 4
        assert (whole.result().status, whole.result().error["code"]) == (503, "closing")
        assert '"code":"closing"' in stream.result().text


def test_new_requests_are_refused_when_the_server_stops(server: RunningServer) -> None:
    answers: Answers = server.server._answers
    answers.closing = True
    try:
        for answer in (
            server.post("/v1/chat/completions", ask("count")),
            server.request("GET", "/ready"),
        ):
            assert (answer.status, answer.error["code"]) == (503, "closing")
            assert answer.headers["retry-after"] == "5"
        assert server.request("GET", "/health").status == 200
    finally:
        answers.closing = False
    assert server.request("GET", "/ready").json == {"status": "ready"}


def test_a_client_that_does_not_read_holds_no_thread(tmp_path: Path) -> None:
    script: Script = {"much": [" ".join("x" * 5000 for _ in range(600))]}
    with RunningServer(tmp_path, script=script) as server:
        readers = [server.connect() for _ in range(5)]
        try:
            body = b'{"model": "base", "stream": true, "max_tokens": 600,' + (
                b'"messages": [{"role": "user", "content": "much"}]}'
            )
            head = (
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
            )
            for reader in readers:
                reader.sendall(head + body)
            wait_until(lambda: len(server.writer.requests) == 5)
            wait_until(lambda: server.server._answers.threads == 0)
            assert server.post("/v1/chat/completions", ask("count")).status == 200
        finally:
            for reader in readers:
                with suppress(OSError):
                    reader.close()
