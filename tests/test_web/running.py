"""The server of `aios serve` on a loopback port, in a thread, over the scripted writer.

Tests that use it need ``pytestmark = LOOPBACK``.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import openai

from aios.app.chat import assistant_parts
from aios.app.chat.answerers import Answerers
from aios.app.chat.assistant import Assistant
from aios.app.chat.offered_experts import OfferedExperts
from aios.backends.scripted import Script, ScriptedModel
from aios.backends.scripted_serving import ScriptedWriter
from aios.core.config.schemas import Config
from aios.core.protocols import ignore
from aios.web.server import Server, Timeouts, address_of, build_server, open_listener
from tests.test_app.scripted_experts import WordRouter, add_expert, store_in

EXPERTS = ("art", "physics")
SCRIPT: Script = {
    "dice": ["one", "two", "three", "four", "five", "six"],
    "count": ["one two three four five six seven eight nine ten"],
    "long": [" ".join(f"word{i}" for i in range(400))],
    "umlaut": ["Größe — 漢字 🙂 end"],
}


class RunningServer:
    """A server; use it in a ``with`` block.

    Args:
        folder: Where its experts are.
        script: What the model writes.
        seconds_per_token: How slow it is.
        token: What clients must send.
        timeouts: Of the server.
        settings: Keys of the section ``serve``.
    """

    def __init__(
        self,
        folder: Path,
        *,
        script: Script = SCRIPT,
        seconds_per_token: float = 0.0,
        token: str | None = None,
        timeouts: Timeouts | None = None,
        **settings: Any,
    ) -> None:
        sections = {"model": {"name": "scripted"}, "paths": {"artifacts": folder}}
        self.config = Config.model_validate({**sections, "serve": {"port": 0, **settings}})
        self.token = token
        model = ScriptedModel(script)
        self.writer = ScriptedWriter(
            model,
            max_concurrent=self.config.serve.max_concurrent,
            max_waiting=self.config.serve.max_waiting,
            seconds_per_token=seconds_per_token,
        )
        store = store_in(folder)
        for expert in EXPERTS:
            add_expert(store, expert, base_digest=model.digest, description=f"knows {expert}")
        records = assistant_parts.open_records(self.config, store, ignore)
        self.assistant = Assistant(
            self.config,
            writer=self.writer,
            answerers=Answerers(
                model.name,
                OfferedExperts(store, model.digest, ignore),
                lambda offer: WordRouter(offer.experts),
            ),
            records=records[0] if records else None,
            on_close=self.writer.close,
        )
        self.writer.batch.read_adapters = False
        self.server: Server = build_server(
            self.assistant, self.config.serve, token, timeouts=timeouts
        )

    def __enter__(self) -> RunningServer:
        listener = open_listener(self.config.serve, self.token)
        self.url = address_of(listener, tls=False)
        self.port = int(listener.getsockname()[1])
        began = threading.Event()
        self.server.on_start = began.set
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self.server.serve(sockets=[listener]))
        )
        self._thread.start()
        assert began.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def ask_to_stop(self) -> None:
        """What a signal does."""
        self.server.handle_exit(15, None)

    def stop(self) -> None:
        """Stops the server and waits for its end."""
        self.ask_to_stop()
        self._thread.join(30)
        assert not self._thread.is_alive()
        self.assistant.close()

    def client(self, **settings: Any) -> openai.OpenAI:
        """The official client; close it."""
        given = {"api_key": self.token or "none", "max_retries": 0, "timeout": 20.0, **settings}
        return openai.OpenAI(base_url=self.url, **given)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | str | object | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One plain request; an object is sent as JSON."""
        sent = {"Content-Type": "application/json", **(headers or {})}
        data = body if isinstance(body, (bytes, str, type(None))) else json.dumps(body)
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as connection:
            connection.request(method, path, data, sent)
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())

    def post(self, path: str, body: object, headers: Mapping[str, str] | None = None) -> Answer:
        """A request with a body."""
        return self.request("POST", path, body, headers)

    def connect(self) -> socket.socket:
        """A bare connection; close it."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def metric(self, name: str) -> float:
        """A figure of ``/metrics``, by its name and labels."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        for line in self.request("GET", "/metrics", headers=headers).text.splitlines():
            found, _, value = line.rpartition(" ")
            if found == name:
                return float(value)
        return 0.0


class Answer:
    """What came back."""

    def __init__(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self.status = status
        self.headers = {name.lower(): value for name, value in headers.items()}
        self.data = data

    @property
    def text(self) -> str:
        return self.data.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.data)

    @property
    def error(self) -> dict[str, Any]:
        """The error; it has exactly the fields that the OpenAI API gives it."""
        error: dict[str, Any] = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        return error


def ask(text: str, **more: Any) -> dict[str, Any]:
    """The body of a chat."""
    return {"model": "base", "messages": [{"role": "user", "content": text}], **more}


def wait_until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Waits for something that must come true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)
