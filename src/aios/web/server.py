"""Runs the application: address, token and TLS are checked first, then the model is loaded.

The stop is graceful: at SIGTERM or SIGINT no connection is accepted any more, answers in flight
may finish within `GRACE_SECONDS`, and what is left is cancelled. A second signal does not wait.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from types import FrameType
from typing import Any

import uvicorn

from aios.app.chat.assistant import Assistant, open_assistant
from aios.core.config.schemas import Config
from aios.core.config.serving_schemas import ServeConfig
from aios.core.errors import UsageError
from aios.core.events import Notice
from aios.core.protocols import Emit, ignore
from aios.web.answers import Answers
from aios.web.app import create_app
from aios.web.connections import (
    HEAD_SECONDS,
    GuardedProtocol,
    bound_silence,
    most_connections,
)
from aios.web.limits import BODY_SECONDS
from aios.web.public_address import PublicAddress
from aios.web.security import TOKEN_VARIABLE, is_loopback, is_loopback_name, read_token
from aios.web.service import Service

GRACE_SECONDS = 25.0
KEEP_ALIVE_SECONDS = 15
_LAST_SECONDS = 5  # for cancelled answers to say so
_BACKLOG = 512


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long clients and a stop may take, in seconds.

    Attributes:
        head: For a request's head to arrive.
        body: For its body.
        grace: For answers in flight to finish when the server is stopped.
    """

    head: float = HEAD_SECONDS
    body: float = BODY_SECONDS
    grace: float = GRACE_SECONDS


def serve(
    config: Config,
    *,
    env: Mapping[str, str] = os.environ,
    emit: Emit = ignore,
    announce: Callable[[str, Assistant], None] = lambda url, assistant: None,
    timeouts: Timeouts | None = None,
) -> None:
    """Serves until it is told to stop.

    Args:
        config: The resolved config.
        env: The environment, for the token.
        emit: For notices.
        announce: Called once requests are taken, with the address that the API is below.
        timeouts: Other timeouts than the usual ones.

    Raises:
        UsageError: No token beyond loopback, a token or certificate that cannot be used, or an
            address that cannot be listened on.
        ModelError: The base model cannot be loaded.
        StorageError: A file cannot be read.
    """
    settings = config.serve
    token = read_token(settings.token_file, env)
    tls = tls_context(settings)
    with closing(open_listener(settings, token)) as listener:
        if token is not None and tls is None and not _is_local(listener):
            text = "the token and all texts go over the network unencrypted; see serve.tls_key"
            emit(Notice(text, "warning"))
        assistant = open_assistant(config, emit=emit)
        with closing(assistant):
            server = build_server(assistant, settings, token, tls=tls, timeouts=timeouts)
            url = address_of(listener, tls=tls is not None)
            server.on_start = lambda: announce(url, assistant)
            server.run(sockets=[listener])


def build_server(
    assistant: Assistant,
    settings: ServeConfig,
    token: str | None,
    *,
    tls: ssl.SSLContext | None = None,
    timeouts: Timeouts | None = None,
) -> Server:
    """The server of an assistant; run it with a listener."""
    times = timeouts or Timeouts()
    app = create_app(assistant, settings, token=token, body_seconds=times.body)
    service: Service = app.state.service
    found = uvicorn_config(
        app, head_seconds=times.head, grace_seconds=round(times.grace) + _LAST_SECONDS
    )
    found.ssl = tls
    return Server(found, service.answers, times.grace)


def uvicorn_config(
    app: Callable[..., Any], *, head_seconds: float, grace_seconds: int
) -> uvicorn.Config:
    """How uvicorn serves an application here: quietly, guarded, and trusting no header.

    Args:
        app: The application.
        head_seconds: Time that a client has to send a request's head.
        grace_seconds: Time that answers in flight have when the server ends.
    """
    limits = {"head_seconds": head_seconds, "most_connections": most_connections()}
    found = uvicorn.Config(
        app,
        http=type("Protocol", (GuardedProtocol,), limits),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=grace_seconds,
    )
    found.load()
    return found


class Server(uvicorn.Server):
    """uvicorn's server, which lets answers in flight finish.

    Args:
        config: uvicorn's settings.
        answers: What is in flight.
        grace_seconds: Time for it to finish.

    Attributes:
        on_start: Called once requests are taken.
    """

    def __init__(self, config: uvicorn.Config, answers: Answers, grace_seconds: float) -> None:
        super().__init__(config)
        self.on_start: Callable[[], None] = lambda: None
        self._answers = answers
        self._grace_seconds = grace_seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: the first asks for a graceful stop, the second for one at once."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to take requests."""
        await super().startup(sockets)
        self.on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Takes no more requests, and waits for those in flight."""
        self._answers.closing = True
        cancelling = asyncio.get_running_loop().call_later(
            self._grace_seconds, self._answers.cancel_all
        )
        try:
            await super().shutdown(sockets)
        finally:
            cancelling.cancel()
            self._answers.close()


def open_listener(settings: ServeConfig, token: str | None) -> socket.socket:
    """A socket bound to the address of the settings; nobody can connect before it listens.

    Raises:
        UsageError: It, or its public address, is open beyond loopback without a token, or it
            cannot be had.
    """
    public = PublicAddress.of(settings)
    if token is None and public is not None and not is_loopback_name(public.authority):
        raise UsageError(
            f"{public.origin} can be reached from other machines, and there is no token",
            f"give --token-file or set {TOKEN_VARIABLE}, or leave out --public-url",
        )
    where = f"{settings.host}:{settings.port}"
    flags = socket.AI_PASSIVE
    try:
        found = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=flags
        )
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            bound_silence(listener)
            if token is None and not _is_local(listener):
                raise UsageError(
                    f"{where} can be reached from other machines, and there is no token",
                    f"give --token-file or set {TOKEN_VARIABLE}, or serve on 127.0.0.1",
                )
        except BaseException:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:  # UnicodeError: a host that is no name
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UsageError(
            f"cannot listen on {where}: {reason}", "choose another --host or --port"
        ) from error
    return listener


def address_of(listener: socket.socket, *, tls: bool) -> str:
    """The URL that the API is below."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if tls else 'http'}://{shown}:{port}/v1"


def tls_context(settings: ServeConfig) -> ssl.SSLContext | None:
    """TLS with the certificate of the settings; None where there is none.

    Raises:
        UsageError: There is a key alone, or the files cannot be used.
    """
    certificate, key = settings.tls_certificate, settings.tls_key
    if certificate is None:
        if key is not None:
            raise UsageError("there is a TLS key and no certificate", "give --tls-certificate, too")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # An encrypted key would ask for its password on the terminal: an empty one is refused.
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except (OSError, ssl.SSLError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"cannot use the TLS certificate {certificate}: {reason}",
            "both files must be PEM, belong together, and be readable; the key has no password",
        ) from error
    return context


def _is_local(listener: socket.socket) -> bool:
    return is_loopback(str(listener.getsockname()[0]))
