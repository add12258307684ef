"""Who may see pages and press buttons.

- **Beyond loopback** a person signs in with the server's token and gets a cookie, which only this
  site gets back (``SameSite=Strict``) and no script can read (``HttpOnly``). The cookie is signed
  with a key made of a secret on disk and the token: it survives a restart, and another token ends
  it. Signing out ends it, too, wherever there is a copy of it.
- **On loopback without a token** only requests to a loopback name are answered, so a name that is
  re-bound to this machine (DNS rebinding) gains nothing.
- **Forms** carry a code that belongs to the cookie, and their ``Origin`` must be this site's: a
  page from elsewhere can post nothing.
- **Behind a proxy** the settings say under which address browsers see the site
  (``serve.public_url``): then only requests to that name or to a loopback name are answered, and
  forms may come from that origin. What a proxy adds to requests is not read.
- **Content-Security-Policy**: scripts, styles and connections from this server alone, nothing
  inline, no frames around the pages.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aios.core.files import guarded, read_bytes
from aios.web.pages.ended_sessions import EndedSessions
from aios.web.public_address import PublicAddress
from aios.web.security import OPEN_PATHS as PROBES
from aios.web.security import is_loopback_name

SESSION_SECONDS = 30 * 24 * 3600
OPEN_PATHS = PROBES | {"/login", "/charts.css"}
OPEN_FOLDER = "/static/"
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; frame-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types aios"
)
REPORT_POLICY = (  # our own reports: one file with its style in it, no scripts
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'self'; sandbox"
)
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": PAGE_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
_SAFE_METHODS = frozenset({"GET", "HEAD"})


def read_secret(file: Path) -> bytes:
    """The secret that cookies are signed with; made where there is none.

    Raises:
        StorageError: It can be neither read nor made.
    """
    with guarded("make", file):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            found = read_bytes(file, 1024)
            if len(found) == 32:
                return found
            file.unlink()  # cut short by a crash
            return read_secret(file)
        with os.fdopen(descriptor, "wb") as handle:
            made = secrets.token_bytes(32)
            handle.write(made)
            return made


@dataclass(frozen=True, slots=True)
class Sessions:
    """Makes and checks cookies and the codes of forms.

    Args:
        key: Signs both.
        cookie: The cookie's name; cookies do not tell ports apart, so the port is in it.
        secure: Whether the cookie goes over TLS alone.
        ended: Those that were ended before their time.
    """

    key: bytes
    cookie: str
    secure: bool
    ended: EndedSessions = field(default_factory=EndedSessions)

    @classmethod
    def make(
        cls,
        secret: bytes,
        token: str | None,
        port: int,
        *,
        secure: bool,
        ended: EndedSessions | None = None,
    ) -> Sessions:
        """The sessions of a server; those of one port are not those of another."""
        key = _sign(secret, f"sessions:{port}:{token or ''}".encode())
        return cls(key, f"aios_{port}", secure, EndedSessions() if ended is None else ended)

    def begin(self) -> str:
        """A new session's cookie value."""
        text = f"{secrets.token_urlsafe(18)}.{int(time.time()) + SESSION_SECONDS}"
        return f"{text}.{_sign(self.key, text.encode()).hex()}"

    def id_of(self, value: str) -> str | None:
        """The session of a cookie's value; None where it is not ours, is over or was ended."""
        text, _, signature = value.rpartition(".")
        if not _same(_sign(self.key, text.encode()).hex(), signature):
            return None
        identity, _, until = text.partition(".")
        if not until.isdigit() or int(until) <= time.time():
            return None
        return None if self.ended.holds(identity, int(until)) else identity

    def end(self, session: str) -> None:
        """Ends a session: its cookie is refused from now on, wherever it is kept.

        Raises:
            StorageError: That cannot be written; it has ended all the same until a restart.
        """
        self.ended.add(session, int(time.time()) + SESSION_SECONDS)

    def has_ended(self, session: str) -> bool:
        """Whether a session that was good has been ended since."""
        return self.ended.holds(session)

    def code(self, session: str) -> str:
        """What forms of a session carry."""
        return _sign(self.key, f"form:{session}".encode()).hex()

    def header(self, value: str, *, seconds: int = SESSION_SECONDS) -> str:
        """The ``Set-Cookie`` header of a value."""
        secure = "; Secure" if self.secure else ""
        return (
            f"{self.cookie}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}"
        )

    def sent(self, headers: Headers) -> str | None:
        """The session of a request; None where it has none."""
        # Cookies of other programs on this host come along, and may hold anything.
        for text in ";".join(headers.getlist("cookie")).split(";"):
            name, _, value = text.strip().partition("=")
            if name == self.cookie and (session := self.id_of(value)) is not None:
                return session
        return None


class PageGuard:
    """Middleware: lets those in who may see pages, and gives each request its session.

    Args:
        app: The pages.
        sessions: Cookies and codes.
        token: What one signs in with; None: only requests to a loopback name are answered.
        public: The address that browsers see, where it is another one.
    """

    def __init__(
        self,
        app: ASGIApp,
        sessions: Sessions,
        token: str | None,
        public: PublicAddress | None = None,
    ) -> None:
        self.app = app
        self.sessions = sessions
        self._token = token
        self._public = public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers it itself."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        session = self.sessions.sent(headers)
        begun = None
        refusal = self._refusal(scope, headers, session)
        if refusal is None and session is None and self._token is None:
            begun = self.sessions.begin()
            session = self.sessions.id_of(begun)
        scope.setdefault("state", {})["session"] = session
        answer: Callable[[Scope, Receive, Send], Awaitable[None]] = refusal or self.app

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                out = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    out.setdefault(name, value)
                if begun is not None and not scope["path"].startswith(OPEN_FOLDER):
                    out.append("Set-Cookie", self.sessions.header(begun))
            await send(message)

        await answer(scope, receive, with_headers)

    def _refusal(self, scope: Scope, headers: Headers, session: str | None) -> Response | None:
        if not self._is_meant(headers.get("host", ""), scope["path"]):
            also = "" if self._public is None else f"{self._public.authority}, "
            text = f"This server answers requests to {also}localhost or a loopback address only."
            return _no(text)
        if scope["method"] not in _SAFE_METHODS and not _same_origin(scope, headers, self._public):
            return _no("This was sent by a page of another site, so nothing was done.")
        if self._token is None or session is not None or _is_open(scope["path"]):
            return None
        if scope["method"] in _SAFE_METHODS and "text/html" in headers.get("accept", ""):
            return RedirectResponse("/login", 303)
        return PlainTextResponse("Sign in first: open /login.", 401)

    def _is_meant(self, host: str, path: str) -> bool:
        """Whether a request names this server, as far as its names are known."""
        if is_loopback_name(host):
            return True
        if self._public is not None:
            return self._public.names(host) or (self._token is not None and path in PROBES)
        return self._token is not None


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDER)


def _no(text: str) -> Response:
    return PlainTextResponse(f"{text}\n", 403)


def _same_origin(scope: Scope, headers: Headers, public: PublicAddress | None) -> bool:
    """Whether a form was sent by a page of this server, by what the browser says of it."""
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin, host = headers.get("origin", "").lower(), headers.get("host", "").lower()
    if "origin" not in headers or (public is not None and origin == public.origin):
        return True
    if public is not None and public.names(host):
        return False  # another scheme or port of that name
    return origin == f"{scope['scheme']}://{host}"


def right_code(sessions: Sessions, session: str | None, sent: str) -> bool:
    """Whether a form's code is the one of its session; takes the same time however wrong it is."""
    return session is not None and _same(sessions.code(session), sent)


def right_token(expected: str, sent: str) -> bool:
    """Whether somebody knows the token; in constant time."""
    return hmac.compare_digest(
        hashlib.sha256(expected.encode()).digest(),
        hashlib.sha256(sent.encode("utf-8", "surrogatepass")).digest(),
    )


def _same(expected: str, sent: str) -> bool:
    """Whether two texts are the same, in constant time; `sent` may hold anything."""
    return hmac.compare_digest(expected.encode(), sent.encode("utf-8", "replace"))


def _sign(key: bytes, text: bytes) -> bytes:
    return hmac.new(key, text, hashlib.sha256).digest()
