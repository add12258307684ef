"""Runs Subbrains Manager: ``aios web``, pages and the API at one address.

The pages are there at once; the model is loaded when somebody chats or a client asks the API.
Jobs are processes of their own: a server that stops, or is killed, takes none of them along.
Reads a JSON document on stdin: ``config_file``, ``overrides``, ``user_file``, ``data`` (folders
whose files can be chosen). Flags and exit codes are those of `aios.web.__main__`.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import webbrowser
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from aios.app.chat.assistant import open_assistant
from aios.app.page_settings import PageSettings
from aios.core.config.serving_schemas import ServeConfig
from aios.core.errors import AIOSError, ConfigError, RunInterrupted
from aios.core.events import Notice
from aios.core.files import parse_json
from aios.core.protocols import Emit, ignore
from aios.web import __main__ as program
from aios.web.app import create_app
from aios.web.connections import HEAD_SECONDS
from aios.web.pages.assembly import create_site
from aios.web.pages.ended_sessions import EndedSessions
from aios.web.pages.guarding import Sessions, read_secret
from aios.web.pages.site import LateAssistant, Site
from aios.web.public_address import PublicAddress
from aios.web.security import is_loopback, read_token
from aios.web.server import address_of, open_listener, tls_context, uvicorn_config
from aios.web.service import Service

MAX_DOCUMENT_BYTES = 4 * 2**20
GRACE_SECONDS = 10


class ManagerServer(uvicorn.Server):
    """uvicorn's server, which ends the streams of pages when it stops.

    Args:
        config: uvicorn's settings.
        site: What pages share.

    Attributes:
        on_start: Called once requests are taken.
        service: The API's, once it was made.
    """

    def __init__(self, config: uvicorn.Config, site: Site) -> None:
        super().__init__(config)
        self.on_start: Callable[[], None] = lambda: None
        self.service: Service | None = None
        self._site = site

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
        """Takes no more requests; streams end, and texts in flight may finish."""
        self._site.closing.set()
        if self.service is not None:
            answers = self.service.answers
            answers.closing = True
            asyncio.get_running_loop().call_later(GRACE_SECONDS - 2, answers.cancel_all)
        await super().shutdown(sockets)
        if self.service is not None:
            self.service.answers.close()


def manage(
    settings: PageSettings,
    *,
    data: tuple[Path, ...] = (),
    env: Mapping[str, str] = os.environ,
    emit: Emit = ignore,
    announce: Callable[[str], None] = lambda url: None,
) -> None:
    """Serves pages and API until it is told to stop.

    Args:
        settings: The settings.
        data: Folders whose files of passages can be chosen.
        env: The environment, for the token.
        emit: For notices.
        announce: Called with the pages' address once requests are taken.

    Raises:
        UsageError: No token beyond loopback, or an address that cannot be listened on.
        StorageError: A file cannot be read or written.
    """
    serve = settings.started.config.serve
    token = read_token(serve.token_file, env)
    tls = tls_context(serve)
    with closing(open_listener(serve, token)) as listener:
        host, port = listener.getsockname()[:2]
        if token is not None and tls is None and not is_loopback(str(host)):
            text = "the token and all texts go over the network unencrypted; see serve.tls_key"
            emit(Notice(text, "warning"))
        assistant = LateAssistant(lambda: open_assistant(settings.loaded().config, emit=emit))
        with closing(assistant):
            site = Site(settings, assistant, data)
            sessions = open_sessions(settings, token, port, tls=tls is not None)
            server = build_manager(site, sessions, serve, token)
            server.config.ssl = tls
            url = address_of(listener, tls=tls is not None).removesuffix("/v1")
            server.on_start = lambda: announce(url)
            server.run(sockets=[listener])


def open_sessions(settings: PageSettings, token: str | None, port: int, *, tls: bool) -> Sessions:
    """The sessions of a server on a port; what they need is kept in the pages' folder.

    Raises:
        StorageError: A file cannot be read or written.
    """
    public = PublicAddress.of(settings.started.config.serve)
    return Sessions.make(
        read_secret(settings.folder / "secret"),
        token,
        port,
        secure=tls or (public is not None and public.secure),
        ended=EndedSessions(settings.folder / f"signed_out_{port}.json"),
    )


def build_manager(
    site: Site, sessions: Sessions, serve: ServeConfig, token: str | None
) -> ManagerServer:
    """The server of a site; run it with a listener."""

    def make_api() -> ASGIApp:
        app = create_app(site.assistant.get(), serve, token=token)
        server.service = app.state.service
        return app

    found = uvicorn_config(
        create_site(site, sessions, token=token, api=make_api),
        head_seconds=HEAD_SECONDS,
        grace_seconds=GRACE_SECONDS,
    )
    server = ManagerServer(found, site)
    return server


def main() -> None:
    """Serves, and exits with the program's code."""
    flags = frozenset(sys.argv[1:])
    try:
        document = read_document()
        settings = PageSettings(
            config_file=_path(document.get("config_file")),
            overrides=tuple(map(str, document.get("overrides", ()))),
            user_file=_path(document.get("user_file")),
        )
        manage(
            settings,
            data=tuple(Path(str(folder)) for folder in document.get("data", ())),
            emit=program.ignore_notices if "--quiet" in flags else program.show_notice,
            announce=lambda url: _announce(url, flags),
        )
    except KeyboardInterrupt:
        program.fail(RunInterrupted("interrupted"), flags)
    except AIOSError as error:
        program.fail(error, flags)


def _announce(url: str, flags: frozenset[str]) -> None:
    program.announce_pages(url, as_json="--json" in flags)
    if "--open" in flags:
        webbrowser.open(url)


def read_document() -> dict[str, Any]:
    """The document on stdin.

    Raises:
        ConfigError: There is none.
    """
    try:
        found = parse_json(sys.stdin.buffer.read(MAX_DOCUMENT_BYTES))
    except ValueError as error:
        raise ConfigError(
            f"what is on stdin is no JSON: {error}", "start the server with: aios web"
        ) from error
    if not isinstance(found, dict):
        raise ConfigError("what is on stdin is no JSON object", "start the server with: aios web")
    return found


def _path(text: object) -> Path | None:
    return Path(text) if isinstance(text, str) else None


if __name__ == "__main__":
    main()
