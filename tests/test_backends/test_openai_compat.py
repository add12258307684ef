"""The endpoint backend against servers that misbehave, each in its own way."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from aios.app.machine.doctor import Check, run_doctor
from aios.app.models import list_models, load_model, load_trainer, pull_model, show_model
from aios.backends.endpoint import http as endpoint_http
from aios.backends.endpoint.answers import (
    estimate_tokens,
    line_losses,
    parse_chat,
    read_score,
    render_chat,
)
from aios.backends.endpoint.calls import LONGEST_WAIT_SECONDS, Caller
from aios.backends.endpoint.facts import read_facts
from aios.backends.endpoint.http import is_loopback, retry_after
from aios.backends.endpoint.pacing import Clock, Pacing
from aios.backends.endpoint.stream import FAILED_IN_A_ROW, Shares
from aios.backends.openai_compat import EndpointModel
from aios.backends.scripted import Script, ScriptedModel
from aios.core.config.endpoint_schema import EndpointConfig
from aios.core.config.schemas import Config, ModelConfig, PathsConfig
from aios.core.config.seal_schema import SealConfig
from aios.core.errors import AIOSError, BackendError, ModelError, NonFiniteError
from aios.core.events import Event, Notice
from aios.core.protocols import ignore
from aios.core.streaming import Generated
from aios.core.types import GenerationRequest, SamplingParams, ScoreRequest
from tests.openai_server import LOOPBACK, MODEL_ID, Call, Fault, OpenAIServer

pytestmark = LOOPBACK

SHORT = SamplingParams(temperature=1.0, top_p=0.9, max_new_tokens=20)
KEY = "sk-secret/0123456789"
PROMPT = "Passage:\nThe mill at Orvane was built in 1871. Its wheel turns twelve stones."


class FakeTime:
    """A clock that sleeping moves on at once."""

    def __init__(self) -> None:
        self.time = 0.0
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds
        await asyncio.sleep(0)

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.time, self.sleep, lambda: 1.0)


Connect = Callable[..., EndpointModel]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Connects to a server, without waits between tries; everything is closed afterwards."""
    models: list[EndpointModel] = []

    def connect(server: OpenAIServer, *, key: str = "", **settings: Any) -> EndpointModel:
        clock = settings.pop("clock", None) or FakeTime().clock
        given = {"timeout_seconds": 5.0, "concurrency": 4, "max_retries": 2, **settings}
        config = EndpointConfig(url=server.url, **given)
        environ = {"OPENAI_API_KEY": key}
        models.append(EndpointModel.connect(MODEL_ID, config, environ=environ, clock=clock))
        return models[-1]

    yield connect
    for model in models:
        model.close()


def requests(count: int, *, deadline: float | None = None) -> list[GenerationRequest]:
    return [GenerationRequest(f"{PROMPT} {i}", (i,), SHORT, deadline) for i in range(count)]


def outcomes(model: EndpointModel, asked: Sequence[GenerationRequest]) -> list[Generated]:
    return sorted(model.stream(asked), key=lambda generated: generated.index)


def on_call(*numbers: int, answer: Callable[[Call], None]) -> Fault:
    """A fault at the calls with these numbers; without numbers, at every call for texts."""

    def fault(call: Call) -> bool:
        if not call.generates or (numbers and call.number not in numbers):
            return False
        answer(call)
        return True

    return fault


def status(code: int, *, headers: dict[str, str] | None = None) -> Callable[[Call], None]:
    return lambda call: call.json({"error": {"message": f"no {code}"}}, code, headers or {})


def half_a_body(call: Call) -> None:
    call.raw(b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"choices": [{"te')


def cut_stream(call: Call) -> None:
    call.events([{"choices": [{"text": "The mill", "delta": {"content": "The mill"}}]}], done=False)


def nothing(call: Call) -> None:
    call.raw(b"")


def hang(call: Call) -> None:
    call.closing.wait(20)


def drip(call: Call) -> None:
    """One word every 20 ms, for ever."""

    def words() -> Iterator[object]:
        while not call.closing.wait(0.02):
            yield {"choices": [{"text": " word"}]}

    call.events(words())


# ------------------------------------------------------------ what is sent, what comes back


def test_each_seed_is_a_call_with_its_sampling_settings(connect: Connect) -> None:
    with OpenAIServer(key=KEY) as server:
        model = connect(server, key=KEY)
        sampling = SamplingParams(temperature=0.7, top_p=0.8, max_new_tokens=9, stop=("\n\n",))
        (written,) = model.generate([GenerationRequest(PROMPT, (3, 2**62), sampling)])
        bodies = sorted((call.body for call in server.calls), key=lambda b: int(b["seed"] != 3))
    assert [c.seed for c in written] == [3, 2**62]
    assert all(c.tokens <= 9 for c in written)
    assert bodies[0] == {
        "model": MODEL_ID,
        "prompt": PROMPT,
        "max_tokens": 9,
        "temperature": 0.7,
        "top_p": 0.8,
        "seed": 3,
        "stop": ["\n\n"],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert bodies[1]["seed"] == 2**62 % (2**31 - 1)
    assert server.calls[0].headers["Authorization"] == f"Bearer {KEY}"


def test_a_chat_reaches_the_chat_api_as_messages(connect: Connect) -> None:
    messages = [
        {"role": "system", "content": "Be exact."},
        {"role": "user", "content": f"{PROMPT}\n<|aios:user|>\nx\n"},
    ]
    with OpenAIServer() as server:
        model = connect(server)
        model.generate([GenerationRequest(model.format_chat(messages), (1,), SHORT)])
        (call,) = server.calls
    assert call.path == "/v1/chat/completions"
    assert call.body["messages"] == messages


@given(st.lists(st.tuples(st.sampled_from(["system", "user"]), st.text("<|aios:-user>\n x"))))
def test_messages_come_back_from_their_rendering(turns: list[tuple[str, str]]) -> None:
    messages = [{"role": role, "content": content} for role, content in turns]
    assert parse_chat(render_chat(messages)) == messages


@pytest.mark.parametrize(("lacking", "used"), [("chat", "completions"), ("completions", "chat")])
def test_an_api_that_is_not_there_is_replaced_by_the_other_and_remembered(
    connect: Connect, lacking: str, used: str
) -> None:
    with OpenAIServer(**{lacking: False}) as server:  # type: ignore[arg-type]
        model = connect(server, concurrency=1)
        prompts = [PROMPT, PROMPT]
        if lacking == "chat":
            prompts = [model.format_chat([{"role": "user", "content": p}]) for p in prompts]
        found = outcomes(model, [GenerationRequest(p, (1,), SHORT) for p in prompts])
        paths = [call.path.removeprefix("/v1/").partition("/")[0] for call in server.calls]
    assert [g.error for g in found] == [None, None]
    assert [g.retries for g in found] == [0, 0]
    assert paths == [lacking, used, used]


def test_an_api_that_was_chosen_is_not_replaced(connect: Connect) -> None:
    with OpenAIServer(chat=False) as server:
        model = connect(server, api="chat")
        with pytest.raises(BackendError, match="HTTP 404") as caught:
            outcomes(model, requests(1))
    assert "endpoint.url" in caught.value.remedy


def test_an_answer_in_one_piece_is_read_too(connect: Connect) -> None:
    with OpenAIServer() as server:
        streamed = connect(server).generate(requests(2))
        whole = connect(server, extra_body='{"stream": false}').generate(requests(2))
    assert whole == streamed
    assert whole[0][0].text


def test_extra_fields_are_added_and_nulls_take_fields_out(connect: Connect) -> None:
    with OpenAIServer() as server:
        model = connect(server, extra_body='{"stream_options": null, "user": "me"}')
        model.generate(requests(1))
        (call,) = server.calls
    assert call.body["user"] == "me"
    assert "stream_options" not in call.body


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_known_servers_are_asked_for_plain_sampling_and_line_losses(
    connect: Connect, api: str
) -> None:
    script: Script = {PROMPT: ["One two.\nThree four five."]}
    with OpenAIServer(ScriptedModel(script), owner="llamacpp") as server:
        (completion,) = connect(server, api=api).generate([GenerationRequest(PROMPT, (1,), SHORT)])[
            0
        ]
        (call,) = server.calls
    assert (call.body["top_k"], call.body["min_p"]) == (-1, 0.0)
    assert completion.line_losses == (1.5, 1.5)


def test_other_servers_are_not_asked_for_log_probabilities_unless_told(connect: Connect) -> None:
    with OpenAIServer() as server:
        assert connect(server).generate(requests(1))[0][0].line_losses == ()
        told = connect(server, logprobs="always").generate(requests(1))[0][0]
        assert set(told.line_losses) == {1.5}
        assert "logprobs" not in server.calls[0].body


def test_a_filtered_answer_is_an_error_of_its_request(connect: Connect) -> None:
    record = {"choices": [{"text": "", "finish_reason": "content_filter"}]}
    with OpenAIServer(fault=on_call(1, answer=lambda call: call.json(record))) as server:
        found = outcomes(connect(server, concurrency=1), requests(3))
    assert [g.error is None for g in found] == [True, False, True]
    assert found[1].error is not None
    assert not found[1].error.retryable


def test_the_text_ends_before_a_stop_text_that_the_server_leaves_in(connect: Connect) -> None:
    record = {"choices": [{"text": "The mill.\n\nMore", "finish_reason": "length"}]}
    sampling = SamplingParams(stop=("\n\n",))
    with OpenAIServer(fault=on_call(answer=lambda call: call.json(record))) as server:
        (done,) = connect(server).generate([GenerationRequest(PROMPT, (1,), sampling)])[0]
    assert (done.text, done.finish_reason) == ("The mill.", "stop")


def test_more_tokens_than_there_is_room_for_are_not_asked_for(connect: Connect) -> None:
    with OpenAIServer(ScriptedModel(context_length=40)) as server:
        model = connect(server)
        sampling = SamplingParams(max_new_tokens=1000)
        model.generate([GenerationRequest("word " * 30, (1,), sampling)])
        assert server.calls[0].body["max_tokens"] == 10


# ------------------------------------------------------------ failures in passing

PASSING = {
    "500": status(500),
    "503": status(503),
    "408": status(408),
    "409": status(409),
    "429": status(429),
    "garbage": lambda call: call.text("<html>Bad gateway</html>"),
    "garbage event": lambda call: call.raw(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: {oops\n\n"
    ),
    "empty": lambda call: call.text(""),
    "no choices": lambda call: call.json({"text": "hello"}),
    "empty choices": lambda call: call.json({"choices": []}),
    "a number": lambda call: call.json(7),
    "text is a number": lambda call: call.json({"choices": [{"text": 7, "finish_reason": "stop"}]}),
    "no finish reason": lambda call: call.json({"choices": [{"text": "hello"}]}),
    "error event": lambda call: call.events([{"error": {"message": "slot lost"}}]),
    "half a body": half_a_body,
    "cut stream": cut_stream,
    "closed": nothing,
    "not HTTP": lambda call: call.raw(b"220 mail ready\r\n"),
}


@pytest.mark.parametrize("answer", PASSING.values(), ids=PASSING.keys())
def test_a_failure_in_passing_is_tried_again(
    connect: Connect, answer: Callable[[Call], None]
) -> None:
    with OpenAIServer(fault=on_call(1, answer=answer)) as server:
        found = outcomes(connect(server, concurrency=1), requests(3))
        calls = len(server.calls)
    assert [g.error for g in found] == [None] * 3
    assert [g.retries for g in found] == [0, 1, 0]
    assert calls == 4


@pytest.mark.parametrize("answer", PASSING.values(), ids=PASSING.keys())
def test_a_failure_that_stays_is_the_error_of_that_request_alone(
    connect: Connect, answer: Callable[[Call], None]
) -> None:
    def fault(call: Call) -> bool:
        if call.generates and call.body["prompt"].endswith(" 1"):
            answer(call)
            return True
        return False

    with OpenAIServer(fault=fault) as server:
        found = outcomes(connect(server), requests(3))
        calls = len(server.calls)
    assert [g.error is None for g in found] == [True, False, True]
    assert isinstance(found[1].error, BackendError)
    assert found[1].error.retryable
    assert "(3 tries)" in found[1].error.message
    assert found[1].retries == 2
    assert calls == 5


@pytest.mark.parametrize("code", [400, 413, 422, 501])
def test_a_request_that_is_refused_is_not_tried_again(connect: Connect, code: int) -> None:
    with OpenAIServer(fault=on_call(1, answer=status(code))) as server:
        found = outcomes(connect(server, concurrency=1, api="completions"), requests(3))
        calls = len(server.calls)
    assert [g.error is None for g in found] == [True, False, True]
    assert found[1].error is not None
    assert found[1].error.message == f"{server.url} answered HTTP {code}: no {code}"
    assert found[1].error.remedy
    assert not found[1].error.retryable
    assert calls == 3


def test_retry_after_holds_all_calls_back(connect: Connect) -> None:
    fake = FakeTime()
    answer = status(429, headers={"Retry-After": "7"})
    with OpenAIServer(fault=on_call(0, answer=answer)) as server:
        found = outcomes(connect(server, clock=fake.clock, concurrency=1), requests(2))
    assert [g.retries for g in found] == [1, 0]
    assert fake.time >= 7


def test_a_wait_that_is_too_long_is_not_waited_for(connect: Connect) -> None:
    fake = FakeTime()
    answer = status(429, headers={"Retry-After": "3600"})
    with OpenAIServer(fault=on_call(1, answer=answer)) as server:
        found = outcomes(connect(server, clock=fake.clock, concurrency=1), requests(3))
    assert found[1].error is not None
    assert "it asks to wait 3600 s" in found[1].error.message
    assert [found[0].error, found[2].error] == [None, None]
    assert fake.time < LONGEST_WAIT_SECONDS


def test_waits_between_tries_grow(connect: Connect) -> None:
    fake = FakeTime()
    with OpenAIServer(fault=on_call(0, 1, 2, 3, answer=status(500))) as server:
        outcomes(connect(server, clock=fake.clock, max_retries=4), requests(1))
    assert fake.slept == [0.5, 1.0, 2.0, 4.0]


def test_what_retry_after_says_in_its_forms() -> None:
    assert retry_after({"retry-after": "2.5"}) == 2.5
    assert retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    date = {"retry-after": "Thu, 01 Jan 1970 00:01:00 GMT"}
    assert retry_after(date, now=lambda: 20.0) == 40.0
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({}) is None


# ------------------------------------------------------------ hangs, floods and other bodies


def test_a_hang_ends_with_the_timeout(connect: Connect) -> None:
    began = time.monotonic()
    with OpenAIServer(fault=on_call(1, answer=hang)) as server:
        model = connect(server, timeout_seconds=0.2, max_retries=0, concurrency=1)
        found = outcomes(model, requests(3))
    assert time.monotonic() - began < 3
    assert [g.error is None for g in found] == [True, False, True]
    assert found[1].error is not None
    assert "was silent for 0.2 s" in found[1].error.message


def test_a_hang_before_the_deadline_keeps_nothing_and_is_marked(connect: Connect) -> None:
    with OpenAIServer(fault=on_call(1, answer=hang)) as server:
        found = outcomes(connect(server, concurrency=1), requests(3, deadline=0.3))
    (completion,) = found[1].completions
    assert (completion.text, completion.finish_reason, completion.tokens) == ("", "deadline", 0)
    assert [g.completions[0].finish_reason for g in (found[0], found[2])] == ["stop", "stop"]


def test_a_slow_answer_is_kept_as_far_as_it_came_by_the_deadline(connect: Connect) -> None:
    with OpenAIServer(fault=on_call(answer=drip)) as server:
        (found,) = outcomes(connect(server), requests(1, deadline=0.3))
    (completion,) = found.completions
    assert completion.finish_reason == "deadline"
    assert completion.text.startswith(" word word")
    assert completion.tokens == completion.text.count("word")


def test_a_slow_answer_without_a_deadline_does_not_take_for_ever(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_http, "LONGEST_CALL", 2)
    with OpenAIServer(fault=on_call(answer=drip)) as server:
        model = connect(server, timeout_seconds=0.2, max_retries=0)
        (found,) = outcomes(model, requests(1))
    assert found.error is not None
    assert "has not finished an answer" in found.error.message


@pytest.mark.parametrize("form", ["whole", "events", "one line"])
def test_a_huge_body_is_given_up(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(endpoint_http, "MAX_ANSWER_BYTES", 100_000)

    def flood(call: Call) -> None:
        if form == "events":
            call.events([{"choices": [{"text": "word " * 100}]}] * 1000)
            return
        kind = b"text/event-stream" if form == "one line" else b"application/json"
        call.raw(b"HTTP/1.1 200 OK\r\nContent-Type: " + kind + b"\r\n\r\ndata: ")
        call.raw(b"x" * 500_000)

    with OpenAIServer(fault=on_call(answer=flood)) as server:
        (found,) = outcomes(connect(server), requests(1))
    assert found.error is not None
    assert "sent an answer of more than" in found.error.message
    assert not found.error.retryable
    assert found.retries == 0


def test_a_packed_body_is_not_unpacked(connect: Connect) -> None:
    answer = on_call(answer=lambda call: call.text("xx", headers={"Content-Encoding": "gzip"}))
    with OpenAIServer(fault=answer) as server:
        (found,) = outcomes(connect(server), requests(1))
    assert found.error is not None
    assert "packs its answers (gzip)" in found.error.message


def test_redirects_are_not_followed(connect: Connect) -> None:
    with OpenAIServer() as other:
        there = {"Location": f"{other.url}/completions"}
        with OpenAIServer(fault=on_call(answer=status(307, headers=there))) as server:
            model = connect(server, key=KEY)
            with pytest.raises(BackendError, match="HTTP 307") as caught:
                outcomes(model, requests(2))
        assert other.calls == []
    assert "elsewhere" in caught.value.remedy


def test_proxies_of_the_environment_are_not_used_for_loopback(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with OpenAIServer() as server:
        assert connect(server).generate(requests(1))[0][0].text


# ------------------------------------------------------------ an endpoint that is down


def test_a_server_that_dies_midway_ends_the_stream_soon(connect: Connect) -> None:
    taken = itertools.count()
    server = OpenAIServer(fault=on_call(5, answer=lambda call: server.stop()))
    endless = (GenerationRequest(PROMPT, (next(taken),), SHORT) for _ in itertools.count())
    with server:
        model = connect(server, concurrency=2)
        done: list[Generated] = []
        with pytest.raises(BackendError, match="no connection to") as caught:
            done.extend(model.stream(endless))
    assert caught.value.retryable
    assert "start the server" in caught.value.remedy
    assert next(taken) < 30


def test_a_server_that_fails_every_request_ends_the_stream(connect: Connect) -> None:
    with OpenAIServer(fault=on_call(answer=status(500))) as server:
        model = connect(server, max_retries=0)
        with pytest.raises(BackendError, match=r"HTTP 500.*10 requests in a row have failed"):
            list(model.stream(requests(1000)))
        assert len(server.calls) < FAILED_IN_A_ROW + 10


def test_a_server_that_never_answers_in_time_ends_the_stream(connect: Connect) -> None:
    with OpenAIServer(fault=on_call(answer=hang)) as server:
        model = connect(server, concurrency=8)
        with pytest.raises(BackendError, match="wrote nothing before the deadline in 10 requests"):
            list(model.stream(requests(1000, deadline=0.1)))


def test_passages_that_are_refused_do_not_end_a_stream_that_works(connect: Connect) -> None:
    numbers = range(1, 3 * FAILED_IN_A_ROW)
    with OpenAIServer(fault=on_call(*numbers, answer=status(400))) as server:
        found = outcomes(connect(server, concurrency=1), requests(3 * FAILED_IN_A_ROW + 1))
    assert [g.error is None for g in found] == [True, *[False] * len(numbers), True]


def test_a_key_that_is_refused_midway_ends_the_stream_and_is_named_nowhere(
    connect: Connect,
) -> None:
    said = {"error": {"message": f"wrong key {KEY} in 'Bearer {KEY}'"}}
    with OpenAIServer(fault=on_call(3, answer=lambda call: call.json(said, 401))) as server:
        model = connect(server, key=KEY, concurrency=1)
        with pytest.raises(BackendError, match="HTTP 401: wrong key") as caught:
            list(model.stream(requests(1000)))
        assert len(server.calls) < 10
    error = caught.value
    written = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    for text in (str(error), repr(error), written, repr(model), repr(vars(error)), model.digest):
        assert KEY not in text
    assert "OPENAI_API_KEY" in error.remedy


# ------------------------------------------------------------ connecting


def test_a_key_that_is_refused_at_once_is_named_nowhere(connect: Connect) -> None:
    events: list[Event] = []
    with OpenAIServer(key="another") as server:
        config = EndpointConfig(url=server.url, api_key_env="MY_KEY")
        for environ in ({"MY_KEY": KEY}, {}):
            with pytest.raises(ModelError, match="HTTP 401") as caught:
                EndpointModel.connect(MODEL_ID, config, environ=environ, emit=events.append)
            assert KEY not in repr(caught.value) + str(caught.value) + repr(events)
            assert "the environment variable MY_KEY" in caught.value.remedy


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "clé"])
def test_a_key_that_is_none_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(ModelError, match="OPENAI_API_KEY holds no key") as caught:
        EndpointModel.connect("m", EndpointConfig(), environ={"OPENAI_API_KEY": key})
    assert key not in str(caught.value)


def test_a_server_that_is_not_there_is_said_at_once() -> None:
    with OpenAIServer() as server:
        pass
    began = time.monotonic()
    with pytest.raises(ModelError, match="no connection to"):
        EndpointModel.connect("m", EndpointConfig(url=server.url), environ={})
    assert time.monotonic() - began < 2


def test_a_web_page_is_no_endpoint() -> None:
    def page(call: Call) -> bool:
        call.text("<html>Hello</html>")
        return True

    with OpenAIServer(fault=page) as server:
        settings = EndpointConfig(url=server.url, max_retries=0)
        with pytest.raises(ModelError, match="not JSON: <html>Hello"):
            EndpointModel.connect("m", settings, environ={})


def test_without_an_id_the_models_are_listed() -> None:
    with (
        OpenAIServer() as server,
        pytest.raises(ModelError, match="no model of the endpoint") as caught,
    ):
        EndpointModel.connect("endpoint:", EndpointConfig(url=server.url), environ={})
    assert MODEL_ID in caught.value.remedy


def test_offline_allows_loopback_alone() -> None:
    far = EndpointConfig(url="https://models.example.org/v1")
    with pytest.raises(ModelError, match="--offline forbids the network"):
        EndpointModel.connect("m", far, offline=True, environ={})
    with OpenAIServer() as server:
        near = EndpointConfig(url=server.url)
        EndpointModel.connect(MODEL_ID, near, offline=True, environ={}).close()


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://127.0.0.1:1/v1", True),
        ("http://127.8.9.1/v1", True),
        ("http://localhost/v1", True),
        ("http://[::1]:8/v1", True),
        ("http://LOCALHOST./v1", True),
        ("http://0.0.0.0/v1", False),
        ("http://127.0.0.1.example.org/v1", False),
        ("http://192.168.1.2/v1", False),
    ],
)
def test_loopback_addresses(url: str, local: bool) -> None:
    assert is_loopback(url) is local


def test_a_key_that_goes_out_unencrypted_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    async def learn(self: Caller) -> None:
        """Asks nobody."""

    monkeypatch.setattr(Caller, "learn", learn)
    events: list[Event] = []
    settings = EndpointConfig(url="http://models.example.org/v1")
    environ = {"OPENAI_API_KEY": KEY}
    model = EndpointModel.connect("m", settings, environ=environ, emit=events.append)
    model.close()
    warnings = [e for e in events if isinstance(e, Notice) and e.level == "warning"]
    assert len(warnings) == 1
    assert "unencrypted" in warnings[0].message
    assert KEY not in repr(events)


def test_the_digest_depends_on_what_changes_texts(connect: Connect) -> None:
    with OpenAIServer() as server, OpenAIServer(owner="vllm") as other:
        same = [connect(server).digest, connect(server, key=KEY, concurrency=1).digest]
        different = [
            connect(server, api="chat").digest,
            connect(server, extra_body='{"top_k": 3}').digest,
            connect(other).digest,
        ]
    assert len(set(same)) == 1
    assert len({*same, *different}) == 4


def test_what_servers_say_of_a_model() -> None:
    llama = {"id": "/m/a.gguf", "owned_by": "llamacpp", "meta": {"n_ctx": 512, "n_params": 9}}
    one = read_facts("any", {"data": [llama]})
    assert (one.server, one.context_length, one.known) == ("llamacpp", 512, ("/m/a.gguf",))
    later = read_facts("any", {"data": [llama | {"created": 77}]})
    assert later.identity == one.identity
    assert read_facts("any", {"data": [llama | {"meta": {"n_params": 8}}]}).identity != one.identity
    hosted = {"data": [{"id": "a"}, {"id": "b", "context_window": 99}, "junk"]}
    assert read_facts("b", hosted).context_length == 99
    odds: tuple[object, ...] = (None, [], {"data": 3}, {"data": [None, {"id": None}]})
    for odd in odds:
        assert read_facts("a", odd).identity == ""


# ------------------------------------------------------------ from the config


def configured(tmp_path: Path, server: OpenAIServer, **model: Any) -> Config:
    name = f"endpoint:{MODEL_ID}"
    return Config(
        model=ModelConfig(name=name, cache_dir=tmp_path, **model),
        endpoint=EndpointConfig(url=server.url),
        seal=SealConfig(cache_dir=tmp_path / "cache"),
        paths=PathsConfig(artifacts=tmp_path / "artifacts"),
    )


def test_the_name_of_a_model_leads_to_the_endpoint(tmp_path: Path) -> None:
    with OpenAIServer() as server:
        config = configured(tmp_path, server, offline=True)
        model = load_model(config)
        assert isinstance(model, EndpointModel)
        assert model.name == f"endpoint:{MODEL_ID}"
        assert model.generate(requests(1))[0][0].text
        with pytest.raises(ModelError, match="no adapter can be trained on endpoint:"):
            load_trainer(config, model)
        model.close()


def test_a_model_on_an_endpoint_is_listed_and_not_fetched(tmp_path: Path) -> None:
    with OpenAIServer() as server:
        config = configured(tmp_path, server)
    info = show_model(config, config.model.name)
    assert (info.kind, info.installed, info.source) == ("endpoint", False, server.url)
    assert info in list_models(config)
    with pytest.raises(ModelError, match="there is nothing to fetch"):
        pull_model(config, config.model.name, ignore)


def test_the_doctor_asks_the_endpoint(tmp_path: Path) -> None:
    with OpenAIServer() as server:
        config = configured(tmp_path, server)
        assert base_model_check(config).status == "ok"
        server.key = KEY
        refused = base_model_check(config)
    assert refused.status == "error"
    assert "OPENAI_API_KEY" in refused.remedy
    assert "no connection" in base_model_check(config).detail


def base_model_check(config: Config) -> Check:
    torch = {"version": "0", "cuda": [], "mps": False, "threads": 1}
    (check,) = [c for c in run_doctor(config, probe=lambda: torch) if c.name == "base model"]
    return check


@pytest.mark.parametrize(
    "values",
    [
        {"url": "http://me:pass@127.0.0.1/v1"},
        {"url": "http://127.0.0.1/v1?key=x"},
        {"url": "127.0.0.1:8000/v1"},
        {"url": "file:///etc/passwd"},
        {"url": "http://127.0.0.1:99999/v1"},
        {"url": "http:// 127.0.0.1/v1"},
        {"url": "http:///v1"},
        {"url": "http://127.0.0.1\\@example.org/v1"},
        {"url": "http://127.0.0.1/v1#key"},
        {"api_key_env": "sk-secret"},
        {"api_key_env": "sk_secret"},
        {"extra_body": "{"},
        {"extra_body": "[1]"},
        {"concurrency": 0},
        {"api": "responses"},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        EndpointConfig(**values)


def test_a_slash_at_the_end_of_the_address_does_not_matter() -> None:
    assert EndpointConfig(url="http://127.0.0.1:1/v1/").url == "http://127.0.0.1:1/v1"


# ------------------------------------------------------------ many at once


def test_as_many_calls_as_allowed_run_at_once_and_no_more(connect: Connect) -> None:
    together = threading.Barrier(4)

    def fault(call: Call) -> bool:
        if call.generates and call.number < 4:
            together.wait(5)
        return False

    with OpenAIServer(fault=fault) as server:
        found = outcomes(connect(server, concurrency=4), requests(40))
        assert server.most_at_once == 4
        server.most_at_once, server.fault = 0, None
        list(connect(server).stream(requests(10), width=2))
        assert server.most_at_once <= 2
    assert len(found) == 40
    assert not any(g.error for g in found)


def test_requests_are_taken_as_there_is_room_in_the_callers_thread(connect: Connect) -> None:
    taken: list[int] = []
    threads = set()

    def endless() -> Iterator[GenerationRequest]:
        for i in itertools.count():
            taken.append(i)
            threads.add(threading.current_thread())
            yield GenerationRequest(PROMPT, (i, i + 1), SHORT)

    with OpenAIServer() as server:
        stream = connect(server, concurrency=4).stream(endless())
        for done in range(1, 20):
            next(stream)
            assert len(taken) <= done + 8
        stream.close()  # type: ignore[attr-defined]
    assert threads == {threading.current_thread()}


def test_texts_do_not_depend_on_the_order_in_which_answers_come(connect: Connect) -> None:
    def fault(call: Call) -> bool:
        if call.generates:
            time.sleep(0.01 * (3 - call.number % 4))
        return False

    with OpenAIServer() as server:
        plain = connect(server, concurrency=1).generate(requests(12))
        server.fault = fault
        arrived = list(connect(server, concurrency=4).stream(requests(12)))
    mixed = sorted(arrived, key=lambda g: g.index)
    assert [g.index for g in arrived] != sorted(g.index for g in arrived)
    assert [list(g.completions) for g in mixed] == plain


def test_closing_a_stream_cancels_what_is_in_flight(connect: Connect) -> None:
    with OpenAIServer(fault=on_call(1, 2, 3, 4, answer=hang)) as server:
        model = connect(server, concurrency=4, timeout_seconds=60.0)
        stream = model.stream(requests(100))
        assert next(stream).error is None
        began = time.monotonic()
        stream.close()  # type: ignore[attr-defined]
        server.fault = None
        assert model.generate(requests(1))[0][0].text
        assert time.monotonic() - began < 2
        assert len(server.calls) < 12


def test_a_model_that_was_closed_can_be_used_again(connect: Connect) -> None:
    with OpenAIServer() as server:
        model = connect(server)
        first = model.generate(requests(1))
        model.close()
        model.close()
        assert model.generate(requests(1)) == first


def test_one_failing_seed_fails_its_request_and_stops_its_other_calls(connect: Connect) -> None:
    with OpenAIServer(fault=on_call(0, answer=status(400))) as server:
        model = connect(server, concurrency=1)
        found = outcomes(model, [GenerationRequest(PROMPT, tuple(range(50)), SHORT), *requests(1)])
        assert len(server.calls) < 10
    assert found[0].completions == ()
    assert found[0].error is not None
    assert found[1].error is None


def test_the_shares_of_all_requests_are_the_time_that_passed() -> None:
    moments = iter([0.0, 1.0, 3.0, 7.0, 8.0, 20.0, 21.0])
    shares = Shares(lambda: next(moments))
    shares.begin(0)  # at 1
    shares.begin(1)  # at 3
    assert shares.end(0) == 2 + 4 / 2  # at 7
    assert shares.end(1) == 4 / 2 + 1  # at 8
    shares.begin(2)  # at 20
    assert shares.end(2) == 1


def test_the_rate_of_requests_is_kept(connect: Connect) -> None:
    fake = FakeTime()
    with OpenAIServer() as server:
        model = connect(server, requests_per_minute=30, clock=fake.clock, concurrency=1)
        began = fake.time
        outcomes(model, requests(5))
    assert fake.time - began >= 2 * 5  # the one before these was the question for its models


def test_the_rate_of_tokens_is_kept_and_corrected() -> None:
    fake = FakeTime()
    pacing = Pacing(None, 600, fake.clock)  # ten a second

    async def use() -> list[float]:
        moments = []
        for expected, used in ((10, 10), (50, 10), (10, 10), (10, 10)):
            await pacing.turn(expected)
            moments.append(fake.time)
            pacing.used(expected, used)
        return moments

    assert asyncio.run(use()) == [0.0, 5.0, 5.0, 6.0]


# ------------------------------------------------------------ counting and scoring


def test_tokens_are_counted_by_the_server_or_else_estimated(connect: Connect) -> None:
    text = "A mill, at Orvane; international."
    with OpenAIServer() as server:
        assert connect(server).count_tokens(text) == 5
        assert connect(server, token_counts="estimate").count_tokens(text) == estimate_tokens(text)
    with OpenAIServer(tokenizes=False) as server:
        assert connect(server).count_tokens(text) == estimate_tokens(text)


def test_a_server_that_no_longer_counts_is_an_error_and_no_other_number(connect: Connect) -> None:
    with OpenAIServer() as server:
        model = connect(server)
        server.tokenizes = False
        with pytest.raises(BackendError, match="HTTP 404"):
            model.count_tokens("one two")


def test_estimates_are_at_least_a_token_a_word_and_a_character_of_other_scripts() -> None:
    assert estimate_tokens("") == 0
    assert estimate_tokens("a b c d") == 4
    assert estimate_tokens("水車小屋") == 4
    assert 6 <= estimate_tokens("The mill at Orvane was built.") <= 9


def test_a_server_that_does_not_echo_cannot_score(connect: Connect) -> None:
    record = {"choices": [{"text": " in", "logprobs": {"tokens": [" in"], "token_logprobs": [-1]}}]}
    for answer in (lambda call: call.json(record), status(400)):
        with OpenAIServer(fault=on_call(answer=answer)) as server:
            with pytest.raises(BackendError, match="the endpoint cannot score texts") as caught:
                connect(server).score([ScoreRequest("The mill was built", " in 1871")])
            assert not caught.value.retryable


def test_scores_are_read_from_the_tokens_of_the_continuation() -> None:
    logprobs = {
        "tokens": ["<s>", "The", " mill", " turns", "!", "x"],
        "token_logprobs": [None, -9.0, -2.0, -0.5, -0.25, -7.0],
        "top_logprobs": [None, {}, {" mill": -2.0}, {" is": -0.1}, {"!": -0.25}, None],
    }
    record = {"choices": [{"logprobs": logprobs}]}
    score = read_score(record, "The mill", " turns!")
    assert score is not None
    assert (score.logprob, score.tokens, score.greedy) == (-0.75, 2, False)
    assert read_score(record, "The", " mill turns!") is not None
    assert read_score(record, "A mill", " turns!") is None
    logprobs["token_logprobs"] = [None, -9.0, -2.0, float("nan"), -0.25, -7.0]
    with pytest.raises(NonFiniteError):
        read_score(record, "The mill", " turns!")


def test_losses_are_the_means_of_the_tokens_of_each_line() -> None:
    losses = [(b"One", 1.0), (b" two", 2.0), (b"\nThree", 3.0), (b"\n", 5.0), (b"\xc3", 1.0)]
    losses += [(b"\xa9", 2.0), (b"<end>", 9.0)]
    assert line_losses("One two\nThree\né", losses) == (1.5, 4.0, 1.5)
    assert line_losses("One two", losses) == (1.5,)
    assert line_losses("One\n\ntwo", [(b"One", 1.0), (b"\n\n", 3.0), (b"two", 2.0)]) == (
        2.0,
        0.0,
        2.0,
    )
    assert line_losses("another text", losses) == ()
    assert line_losses("One", []) == ()


def test_the_error_of_a_failed_score_is_an_error_of_ours(connect: Connect) -> None:
    with OpenAIServer(fault=on_call(answer=hang)) as server:
        model = connect(server, timeout_seconds=0.1, max_retries=0)
        with pytest.raises(AIOSError, match="was silent"):
            model.score([ScoreRequest("a", " b")] * 3)
