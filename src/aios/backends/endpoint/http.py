"""One HTTP call to an endpoint: bounded in time and size, its failures sorted.

Takes an address and a JSON body; gives JSON, or the pieces of an answer as they come in. Every
failure is a `CallError` that says whether trying again may help. The key goes into one header and
nowhere else: what a server says is cleaned of it before it gets into a message, and the exceptions
of the HTTP library are not shown with ours. Redirects are not followed, and a loopback address is
reached without the proxies of the environment.
"""

from __future__ import annotations

import asyncio
import email.utils
import ipaddress
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import quote

import httpx2 as httpx

from aios.backends.endpoint.answers import AnswerRefusedError, Draft, MalformedAnswer
from aios.core.errors import BackendError

MAX_ANSWER_BYTES = 16 * 2**20
LONGEST_CALL = 20  # times the timeout: an answer that drips in for longer is given up
_MAX_ERROR_BYTES = 64 * 2**10
_CONNECT_SECONDS = 10.0
_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 507, 520, 521, 522, 523, 524, 529})
_SNIPPET = 200


class CallError(BackendError):
    """A call to an endpoint failed.

    Attributes:
        status: The HTTP status of the answer; None where there was no whole answer.
        connect: Whether there was no connection at all.
        wait: Seconds that the server asks to wait; None where it does not say.
    """

    def __init__(
        self,
        message: str,
        remedy: str = "",
        *,
        retryable: bool,
        status: int | None = None,
        connect: bool = False,
        wait: float | None = None,
    ) -> None:
        super().__init__(message, remedy, retryable=retryable)
        self.status = status
        self.connect = connect
        self.wait = wait


def is_loopback(url: str) -> bool:
    """Whether an address leads to this machine alone."""
    host = httpx.URL(url).host.rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class EndpointHTTP:
    """The HTTP side of an endpoint; used on one event loop.

    Args:
        url: Base address of the API, without user and query.
        key: The key, sent as a bearer token; empty for none.
        key_env: Name of the variable that it comes from, for messages.
        timeout: Longest silence, in seconds.
        connections: Most connections at a time.
    """

    def __init__(
        self, url: str, *, key: str = "", key_env: str = "", timeout: float, connections: int
    ) -> None:
        self.url = url
        self._key_env = key_env
        self._timeout = timeout
        self._connections = connections
        self._secrets = _spellings(key)
        self._headers = {"Accept-Encoding": "identity", "User-Agent": "aios"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._client: httpx.AsyncClient | None = None

    async def close(self) -> None:
        """Closes all connections; the next call opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def fetch(self, method: str, url: str, body: Mapping[str, Any] | None = None) -> Any:
        """Gives the JSON that a call is answered with.

        Raises:
            CallError: There is none, or not in time.
        """
        limit = LONGEST_CALL * self._timeout
        return await self._within(limit, self._fetch(method, url, body))

    async def write(
        self, url: str, body: Mapping[str, Any], draft: Draft, deadline: float | None
    ) -> None:
        """Reads the answer to a generation request into a draft.

        When the deadline passes the call is cancelled, and the draft holds what came in so far.

        Args:
            url: Where it goes.
            body: The request.
            draft: Gets the answer.
            deadline: Seconds from now; None for a limit far beyond the timeout, past which the
                call has failed.

        Raises:
            CallError: The call failed.
        """
        work = self._write(url, body, draft)
        if deadline is None:
            await self._within(LONGEST_CALL * self._timeout, work)
        else:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(work, deadline)

    def clean(self, text: str) -> str:
        """A server's words for a message: one short line, without the key."""
        for secret in self._secrets:
            text = text.replace(secret, "[key]")
        line = "".join(c if c.isprintable() else " " for c in text)
        line = re.sub(r"\s+", " ", line).strip()
        return line if len(line) <= _SNIPPET else line[: _SNIPPET - 1] + "…"

    async def _within(self, limit: float, work: Any) -> Any:
        try:
            return await asyncio.wait_for(work, limit)
        except asyncio.TimeoutError:  # not the built-in one in Python 3.10
            raise CallError(
                f"{self.url} has not finished an answer in {limit:.0f} s",
                "raise endpoint.timeout_seconds, or look at the server",
                retryable=True,
            ) from None

    async def _fetch(self, method: str, url: str, body: Mapping[str, Any] | None) -> Any:
        async with self._answer(method, url, body) as response:
            return self._decode(await self._read(response, MAX_ANSWER_BYTES))

    async def _write(self, url: str, body: Mapping[str, Any], draft: Draft) -> None:
        async with self._answer("POST", url, body) as response:
            try:
                if "text/event-stream" in response.headers.get("content-type", ""):
                    await self._follow(response, draft)
                else:  # a server that does not write in pieces
                    record = self._decode(await self._read(response, MAX_ANSWER_BYTES))
                    draft.add(record, whole=True)
                draft.check_end()
            except MalformedAnswer as error:
                raise self._malformed(str(error)) from None
            except AnswerRefusedError as error:
                raise CallError(f"{self.url}: {error}", retryable=False) from None

    async def _follow(self, response: httpx.Response, draft: Draft) -> None:
        """Reads server-sent events, each with a piece of the answer."""
        async for line in self._lines(response):
            name, _, value = line.partition(b":")
            if name != b"data":  # a comment that keeps the connection open, say
                continue
            if value.strip() == b"[DONE]":
                return
            record = self._decode(value)
            if isinstance(record, dict) and record.get("error"):
                raise self._refused_within(record["error"])
            draft.add(record)

    async def _lines(self, response: httpx.Response) -> AsyncIterator[bytes]:
        rest = bytearray()
        async for chunk in self._chunks(response, MAX_ANSWER_BYTES):
            rest += chunk
            if b"\n" in chunk:
                *lines, last = bytes(rest).split(b"\n")
                rest = bytearray(last)
                for line in lines:
                    yield line
        yield bytes(rest)

    async def _read(self, response: httpx.Response, limit: int) -> bytes:
        return b"".join([chunk async for chunk in self._chunks(response, limit)])

    async def _chunks(self, response: httpx.Response, limit: int) -> AsyncIterator[bytes]:
        """The raw body, which is never unpacked: a small answer cannot become a huge one."""
        encoding = response.headers.get("content-encoding", "identity")
        if encoding.lower() not in ("", "identity"):
            raise CallError(
                f"{self.url} packs its answers ({self.clean(encoding)}) though asked not to",
                "switch compression off in the server, or in the proxy before it",
                retryable=False,
            )
        size = 0
        async for chunk in response.aiter_raw():
            size += len(chunk)
            if size > limit:
                raise CallError(
                    f"{self.url} sent an answer of more than {limit / 2**20:.0f} MiB",
                    "look at the server; no completion is that long",
                    retryable=False,
                )
            yield chunk

    @asynccontextmanager
    async def _answer(
        self, method: str, url: str, body: Mapping[str, Any] | None
    ) -> AsyncIterator[httpx.Response]:
        """The answer to a call, its body not yet read.

        Raises:
            CallError: It is no success.
        """
        try:
            async with self._open().stream(method, url, json=body) as response:
                if response.is_success:
                    yield response
                else:
                    raise await self._refused(response)
        except (httpx.HTTPError, OSError, UnicodeError) as error:
            raise self._lost(error) from None

    def _open(self) -> httpx.AsyncClient:
        if self._client is None:
            local = is_loopback(self.url)
            self._client = httpx.AsyncClient(
                headers=self._headers,
                timeout=httpx.Timeout(
                    self._timeout, connect=min(self._timeout, _CONNECT_SECONDS), pool=None
                ),
                limits=httpx.Limits(
                    max_connections=self._connections,
                    max_keepalive_connections=self._connections,
                ),
                follow_redirects=False,
                trust_env=not local,
                # Nothing to verify without TLS; loading the certificates takes a while.
                verify=not (local and self.url.startswith("http://")),
            )
        return self._client

    def _decode(self, body: bytes) -> Any:
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            shown = self.clean(body[:1000].decode("utf-8", "replace"))
            raise self._malformed(f"not JSON: {shown}" if shown else "an empty answer") from None

    def _malformed(self, what: str) -> CallError:
        return CallError(
            f"{self.url} gave {what}",
            "check that endpoint.url is an OpenAI-compatible API, and look at the server",
            retryable=True,
        )

    def _lost(self, error: Exception) -> CallError:
        """The error of a call that got no whole answer."""
        reason = self.clean(str(error)) or type(error).__name__
        kinds = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError, UnicodeError)
        if isinstance(error, kinds):
            certificate = "CERTIFICATE" in reason.upper()
            return CallError(
                f"no connection to {self.url}: {reason}",
                "check the server's certificate"
                if certificate
                else "start the server, or correct endpoint.url",
                retryable=not certificate,
                connect=True,
            )
        if isinstance(error, httpx.TimeoutException):
            return CallError(
                f"{self.url} was silent for {self._timeout:g} s",
                "lower endpoint.concurrency, raise endpoint.timeout_seconds, or look at the server",
                retryable=True,
            )
        return CallError(
            f"the connection to {self.url} broke: {reason}",
            "look at the server",
            retryable=True,
        )

    def _refused_within(self, said: object) -> CallError:
        """The error of a server that gives up within its answer."""
        code = said.get("code") if isinstance(said, dict) else None
        final = type(code) is int and 400 <= code < 500 and code not in _RETRIED
        return CallError(
            f"{self.url} gave up within an answer: {self.clean(_message({'error': said}))}",
            "look at the server",
            retryable=not final,
            status=code if final and isinstance(code, int) else None,
        )

    async def _refused(self, response: httpx.Response) -> CallError:
        """The error of an answer that is no success."""
        status = response.status_code
        try:
            body = await self._read(response, _MAX_ERROR_BYTES)
        except (CallError, httpx.HTTPError):  # the status says enough
            body = b""
        try:
            said = _message(json.loads(body))
        except (ValueError, RecursionError):
            said = body.decode("utf-8", "replace")
        said = self.clean(said)
        return CallError(
            f"{self.url} answered HTTP {status}" + (f": {said}" if said else ""),
            self._remedy(status),
            retryable=status in _RETRIED,
            status=status,
            wait=retry_after(response.headers),
        )

    def _remedy(self, status: int) -> str:
        if 300 <= status < 400:
            return "it sends callers elsewhere: set endpoint.url to the address that answers"
        if status in (401, 403):
            have = "the key in" if self._secrets else "no key: there is none in"
            return f"it was given {have} the environment variable {self._key_env}"
        if status in (404, 405):
            return "check endpoint.url, which usually ends in /v1, and the model's name"
        if status == 429:
            return "lower endpoint.concurrency or set endpoint.requests_per_minute"
        if status >= 500:
            return "look at the server's own log"
        return "endpoint.extra_body changes the fields that are sent"


def _spellings(key: str) -> tuple[str, ...]:
    """The key as it may be written in an answer."""
    if not key:
        return ()
    return tuple(dict.fromkeys((key, json.dumps(key)[1:-1], quote(key, safe=""))))


def _message(record: object) -> str:
    """What an error says, in any of the forms that servers use."""
    said: object = record
    for name in ("error", "message", "detail"):
        if isinstance(said, dict) and said.get(name):
            said = said[name]
    return said if isinstance(said, str) else json.dumps(said)


def retry_after(headers: Mapping[str, str], now: Callable[[], float] = time.time) -> float | None:
    """The seconds that an answer asks to wait, from its headers; None where it does not say."""
    for name, scale in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        text = headers.get(name, "").strip()
        if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text):
            return float(text) / scale
        if text and name == "retry-after":
            try:
                return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - now())
            except (ValueError, OverflowError):
                return None
    return None
