"""Who may ask: a token beyond loopback, and on loopback no page of a browser from elsewhere.

- **Token.** Sent as ``Authorization: Bearer TOKEN``; compared in constant time. It is read from a
  file that others may not read, or from ``AIOS_TOKEN``. A server that is open beyond loopback is
  not started without one.
- **Browsers.** A page from elsewhere cannot use the server: there are no CORS headers, bodies must
  be declared as JSON (which a page may not send to another origin unasked), and without a token
  only requests to a loopback name are answered, so that a name that is re-bound to this machine
  (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aios.core.errors import UsageError
from aios.core.files import guarded, read_bytes
from aios.web.errors import ApiError, error_response
from aios.web.public_address import PublicAddress

TOKEN_VARIABLE = "AIOS_TOKEN"
OPEN_PATHS = frozenset({"/health", "/ready"})  # for programs that watch over the server
_SHORTEST, _LONGEST = 16, 4096
_MAKE_ONE = "make one: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def read_token(file: Path | None, env: Mapping[str, str]) -> str | None:
    """The token that clients must send; None where there is none.

    Args:
        file: Where it is kept; it beats the environment.
        env: The environment.

    Raises:
        UsageError: The file may be read by others, or what it holds is no token.
        StorageError: The file cannot be read.
    """
    if file is not None:
        _require_private(file)
        try:
            text = read_bytes(file, _LONGEST).decode("ascii")
        except UnicodeDecodeError:
            raise UsageError(f"the token in {file} is not ASCII", _MAKE_ONE) from None
        return checked_token(text, str(file))
    text = env.get(TOKEN_VARIABLE, "")
    return checked_token(text, TOKEN_VARIABLE) if text else None


def checked_token(text: str, where: str) -> str:
    """A token without the space around it.

    Raises:
        UsageError: It is too short to be secret, too long, or cannot stand in a header.
    """
    token = text.strip()
    if len(token) < _SHORTEST:
        raise UsageError(f"the token in {where} is shorter than {_SHORTEST} characters", _MAKE_ONE)
    if len(token) > _LONGEST or any(not "!" <= character <= "~" for character in token):
        raise UsageError(f"the token in {where} is too long or has spaces in it", _MAKE_ONE)
    return token


def _require_private(file: Path) -> None:
    """Raises a `UsageError` where others may read a file, or more than its owner may write it."""
    with guarded("read", file):
        mode = os.stat(file).st_mode
    if os.name == "posix" and mode & (stat.S_IRWXO | stat.S_IWGRP):
        raise UsageError(f"others may read or change the token in {file}", f"chmod 600 {file}")


def is_loopback(address: str) -> bool:
    """Whether an IP address is of this machine alone."""
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


def is_loopback_name(host: str) -> bool:
    """Whether a ``Host`` header names this machine alone, with any port."""
    if host.startswith("["):
        name, bracket, rest = host[1:].partition("]")
        return bool(bracket) and _is_port(rest) and is_loopback(name)
    name, colon, port = host.partition(":")
    name = name.lower().removesuffix(".")
    return _is_port(colon + port) and (name == "localhost" or is_loopback(name))


def _is_port(text: str) -> bool:
    return not text or (text[0] == ":" and text[1:].isascii() and text[1:].isdigit())


class Guard:
    """Middleware: refuses who may not ask, before anything of the body is read.

    Args:
        app: What is guarded.
        token: What clients must send; None: only requests to a loopback name are answered, and to
            the public one.
        public: The address that clients see, where it is another one.
    """

    def __init__(
        self, app: ASGIApp, token: str | None, public: PublicAddress | None = None
    ) -> None:
        self.app = app
        self._public = public
        self._expected = _digest(token.encode()) if token is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers it with an error."""
        if scope["type"] == "http" and (refusal := self._refusal(scope)):
            await error_response(refusal)(scope, receive, send)
        elif scope["type"] in ("http", "lifespan"):
            await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        if self._expected is None:
            host = headers.get("host", "")
            if is_loopback_name(host) or (self._public is not None and self._public.names(host)):
                return None
            message = "this server answers requests to localhost or a loopback address only"
            return ApiError(403, message, code="wrong_host")
        if scope["path"] in OPEN_PATHS:
            return None
        scheme, _, sent = headers.get("authorization", "").partition(" ")
        # Digests are compared: they take the same time whatever the length of what was sent.
        right = hmac.compare_digest(_digest(sent.strip().encode("latin-1")), self._expected)
        if scheme.lower() == "bearer" and right:
            return None
        message = "send the server's token as the header Authorization: Bearer TOKEN (api_key)"
        authenticate = {"WWW-Authenticate": "Bearer"}
        return ApiError(401, message, code="invalid_api_key", headers=authenticate)


class SafeHeaders:
    """Middleware: headers that keep browsers from reading more into an answer than there is."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, with_headers)


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()
