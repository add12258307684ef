"""Connections that cannot be held open by doing nothing.

uvicorn bounds how long a connection may be idle between two requests, but neither the time for a
request's head nor how many connections there are. `GuardedProtocol` adds both: whoever opens a
connection, or begins a request, must have sent the head in `HEAD_SECONDS`, however slowly its bytes
come; and a connection beyond the most is closed at once. Clients that stop reading are cut off by
the kernel (`bound_silence`), since nothing else can tell them from slow ones.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

HEAD_SECONDS = 10.0
SILENT_SECONDS = 60.0
MOST_CONNECTIONS = 2048


class GuardedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, with a deadline for heads and a bound on connections."""

    head_seconds = HEAD_SECONDS
    most_connections = MOST_CONNECTIONS

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        if len(self.connections) > self.most_connections:
            transport.abort()
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """A request is answered; the next one may be there already."""
        super().on_response_complete()
        if self.timeout_keep_alive_task is None:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self._forget_deadline()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Starts the clock where a head is awaited, and stops it where one has come."""
        cycle: RequestResponseCycle | None = self.cycle  # none before the first request
        answering = cycle is not None and not cycle.response_complete
        if answering or self.transport.is_closing():
            self._forget_deadline()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.head_seconds, self.transport.abort)

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def bound_silence(listener: socket.socket, seconds: float = SILENT_SECONDS) -> None:
    """Has the kernel close connections whose other end takes nothing for so long.

    Where the system has no such setting (``TCP_USER_TIMEOUT`` of Linux), its own limits hold.
    """
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if option is not None:
        listener.setsockopt(socket.IPPROTO_TCP, option, round(1000 * seconds))


def most_connections() -> int:
    """So many connections that files can still be opened."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST_CONNECTIONS if limit < 0 else max(16, min(MOST_CONNECTIONS, limit // 2))
