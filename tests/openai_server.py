"""An OpenAI-compatible server on loopback for tests, with a `ScriptedModel` behind it.

Tokens are words. It answers ``/v1/models``, ``/v1/completions`` (whole, in pieces, or echoing the
prompt with log-probabilities), ``/v1/chat/completions`` and ``/tokenize``. A `fault` may answer in
its place: it gets each call first and says whether it has dealt with it.

Tests that use it need ``pytestmark = LOOPBACK``.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from aios.backends.scripted import ScriptedModel
from aios.core.errors import BackendError
from aios.core.types import Completion, GenerationRequest, SamplingParams, ScoreRequest

LOOPBACK = [pytest.mark.enable_socket, pytest.mark.allow_hosts(["127.0.0.1"])]
MODEL_ID = "scripted-remote"

_TOKEN = re.compile(r"\n|[^\S\n]*\S+|[^\S\n]+")


class Call:
    """One call that the server got.

    Attributes:
        number: Its number among the calls that ask for texts, from 0; -1 for others.
        path: Its path.
        body: Its JSON body.
        headers: Its headers.
        closing: Set when the server is to end; a hanging fault waits for it.
    """

    def __init__(self, handler: _Handler, number: int, body: Any) -> None:
        self.number = number
        self.path = handler.path
        self.body = body
        self.headers = dict(handler.headers.items())
        self.closing = handler.owner.closing
        self._handler = handler

    @property
    def generates(self) -> bool:
        return self.number >= 0

    def raw(self, data: bytes) -> None:
        """Sends bytes as they are; the connection is closed after the call."""
        self._handler.close_connection = True
        self._handler.wfile.write(data)
        self._handler.wfile.flush()

    def json(self, record: object, status: int = 200, headers: Mapping[str, str] = {}) -> None:
        """Sends a JSON answer."""
        self.text(json.dumps(record), status, {"Content-Type": "application/json", **headers})

    def text(self, text: str, status: int = 200, headers: Mapping[str, str] = {}) -> None:
        """Sends a whole answer."""
        data = text.encode()
        self._handler.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self._handler.send_header(name, value)
        self._handler.end_headers()
        self._handler.wfile.write(data)

    def events(self, records: Iterator[object] | list[object], done: bool = True) -> None:
        """Sends server-sent events, each when the iterator gives it, and closes."""
        self.raw(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        for record in records:
            self.raw(b": still here\n\ndata: " + json.dumps(record).encode() + b"\n\n")
        if done:
            self.raw(b"data: [DONE]\n\n")


Fault = Callable[[Call], bool]


class OpenAIServer:
    """The server; use it in a ``with`` block.

    Args:
        model: What writes and scores.
        key: The key that callers must show; empty for none.
        tokenizes: Whether it has ``/tokenize``.
        chat: Whether it has the chat API.
        completions: Whether it has the completions API.
        owner: What ``/models`` says under ``owned_by``.
        fault: Gets each call first.

    Attributes:
        calls: The calls that asked for texts, in the order they came.
        most_at_once: Most of them at the same time.
    """

    def __init__(
        self,
        model: ScriptedModel | None = None,
        *,
        key: str = "",
        tokenizes: bool = True,
        chat: bool = True,
        completions: bool = True,
        owner: str = "tests",
        fault: Fault | None = None,
    ) -> None:
        self.model = model or ScriptedModel()
        self.key = key
        self.tokenizes = tokenizes
        self.owner_name = owner
        self.routes = {"/v1/chat/completions": chat, "/v1/completions": completions}
        self.fault = fault
        self.calls: list[Call] = []
        self.most_at_once = 0
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._at_once = 0

    def __enter__(self) -> OpenAIServer:
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.001,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the server; connections to it are refused from then on."""
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def handle(self, handler: _Handler, body: Any) -> None:
        """Answers one call."""
        generates = handler.path in self.routes
        with self._lock:
            call = Call(handler, len(self.calls) if generates else -1, body)
            if generates:
                self.calls.append(call)
                self._at_once += 1
                self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            if self.fault is None or not self.fault(call):
                self._answer(call)
        finally:
            with self._lock:
                self._at_once -= generates

    def _answer(self, call: Call) -> None:
        if self.key and call.headers.get("Authorization") != f"Bearer {self.key}":
            call.json({"error": {"message": "wrong key"}}, 401)
        elif call.path == "/v1/models":
            entry = {"id": MODEL_ID, "object": "model", "owned_by": self.owner_name}
            length = {"max_model_len": self.model.context_length}
            call.json({"object": "list", "data": [entry | length]})
        elif call.path == "/tokenize" and self.tokenizes:
            call.json({"tokens": list(range(self.model.count_tokens(call.body["prompt"])))})
        elif self.routes.get(call.path):
            self._write(call)
        else:
            call.json({"error": {"message": "no such route"}}, 404)

    def _write(self, call: Call) -> None:
        body = call.body
        if body.get("echo"):
            call.json({"choices": [self._echo(body["prompt"])]})
            return
        chat = "messages" in body
        prompt = body.get("prompt") or "\n\n".join(m["content"] for m in body["messages"])
        sampling = SamplingParams(
            temperature=body["temperature"],
            top_p=body["top_p"],
            max_new_tokens=body["max_tokens"],
            stop=tuple(body.get("stop", ())),
        )
        request = GenerationRequest(prompt, (body["seed"],), sampling)
        try:
            completion = self.model.generate([request])[0][0]
        except BackendError as error:
            call.json({"error": {"message": error.message}}, 400)
            return
        if body.get("stream"):
            call.events(pieces(completion, chat=chat, logprobs=bool(body.get("logprobs"))))
        else:
            call.json(whole(completion, chat=chat))

    def _echo(self, prompt: str) -> Any:
        """The prompt with the log-probability of each word, given those before it."""
        tokens = _TOKEN.findall(prompt)
        values: list[float | None] = []
        before = ""
        for token in tokens:
            if before and token.strip():
                values.append(self.model.score([ScoreRequest(before, token)])[0].logprob)
            else:
                values.append(-0.5 if before else None)
            before += token
        tops = [None if v is None else {t: v} for t, v in zip(tokens, values, strict=True)]
        logprobs = {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops}
        return {"text": prompt, "finish_reason": "length", "logprobs": logprobs}


def whole(completion: Completion, *, chat: bool) -> dict[str, Any]:
    """A completion as one answer."""
    text = {"message": {"content": completion.text}} if chat else {"text": completion.text}
    return {
        "choices": [{**text, "finish_reason": completion.finish_reason}],
        "usage": {"completion_tokens": completion.tokens},
    }


def pieces(completion: Completion, *, chat: bool, logprobs: bool = False) -> list[object]:
    """A completion as the events of a stream, word by word."""
    found: list[object] = []
    for token in _TOKEN.findall(completion.text):
        choice: dict[str, Any] = {"delta": {"content": token}} if chat else {"text": token}
        if logprobs and chat:
            choice["logprobs"] = {"content": [{"token": token, "logprob": -1.5}]}
        elif logprobs:
            choice["logprobs"] = {"tokens": [token], "token_logprobs": [-1.5]}
        found.append({"choices": [{**choice, "finish_reason": None}]})
    last: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
    found.append({"choices": [{**last, "finish_reason": completion.finish_reason}]})
    found.append({"choices": [], "usage": {"completion_tokens": completion.tokens}})
    return found


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    owner: OpenAIServer

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing: callers that hang up are what is tested."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    @property
    def owner(self) -> OpenAIServer:
        return self.server.owner

    def do_GET(self) -> None:
        self._handle(None)

    def do_POST(self) -> None:
        self._handle(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _handle(self, body: Any) -> None:
        with suppress(ConnectionError):
            self.owner.handle(self, body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""
