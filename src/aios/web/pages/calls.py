"""How pages are written: functions that take a `Call` and give an answer.

A page function is plain and may block (it reads files); it is run off the event loop. Buttons are
forms: they post, something is done through `aios.app`, and the browser is sent to the page that
shows the result, with a note. What the layers below raise becomes that note, or a page of its own.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

import anyio.to_thread
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    RedirectResponse,
    Response,
)
from starlette.routing import Route

import aios
from aios.core.errors import AIOSError, StorageError, UnknownExpertError, UsageError
from aios.web.pages.guarding import Sessions, right_code
from aios.web.pages.site import Note, Site
from aios.web.pages.templates import environment

THEMES = ("light", "dark")
_MOST_FIELDS = 200
_MOST_FORM_BYTES = 1_048_576
_log = logging.getLogger("aios.web")

Page = Callable[["Call"], Response]


@dataclass(frozen=True)
class Call:
    """A request for a page, or a button that was pressed.

    Attributes:
        request: As it came.
        site: What pages share.
        sessions: Cookies and codes.
        form: The fields of a form that was sent; empty of a page that is looked at.
    """

    request: Request
    site: Site
    sessions: Sessions
    form: FormData

    # ------------------------------------------------------------ what was asked

    @property
    def session(self) -> str:
        """The session; empty before somebody signed in."""
        return str(self.request.state.session or "")

    @property
    def wants_json(self) -> bool:
        """Whether a script asks, which shows the answer itself."""
        return "application/json" in self.request.headers.get("accept", "")

    def path(self, name: str) -> str:
        """A part of the path, by its name in the route."""
        return str(self.request.path_params[name])

    def query(self, name: str, default: str = "") -> str:
        """A field of the address."""
        return self.request.query_params.get(name, default)

    def queries(self, name: str) -> tuple[str, ...]:
        """All values of a field of the address."""
        return tuple(self.request.query_params.getlist(name))

    def number(self, name: str, default: int, *, least: int = 0, most: int = 10**9) -> int:
        """A whole number of the address, brought within bounds; what is none is the default."""
        try:
            return min(max(int(self.query(name)), least), most)
        except ValueError:
            return default

    def field(self, name: str, default: str = "") -> str:
        """A field of the form, as text without space around it."""
        found = self.form.get(name, default)
        return found.strip() if isinstance(found, str) else default

    def fields(self, name: str) -> tuple[str, ...]:
        """All values of a field of the form."""
        return tuple(value.strip() for value in self.form.getlist(name) if isinstance(value, str))

    def upload(self, name: str) -> UploadFile | None:
        """A file that was sent with the form; None where none was chosen."""
        found = self.form.get(name)
        return found if isinstance(found, UploadFile) and found.filename else None

    # ------------------------------------------------------------ answers

    def page(self, template: str, *, status: int = 200, **values: Any) -> Response:
        """A whole page, with the note that was left for it."""
        note = self.site.notes.take(self.query("note")) if self.query("note") else None
        return HTMLResponse(self.fragment(template, note=note, **values), status)

    def fragment(self, template: str, **values: Any) -> str:
        """A template as text; it also has what every page has."""
        theme = self.request.cookies.get("aios_theme", "")
        return (
            environment()
            .get_template(template)
            .render(
                call=self,
                code=self.sessions.code(self.session),
                theme=theme if theme in THEMES else "",
                here=self.request.url.path,
                version=aios.__version__,
                **values,
            )
        )

    def go(self, path: str, note: Note | str | None = None, **query: str) -> Response:
        """Sends the browser to a page of this site, which shows a note."""
        found = Note(note) if isinstance(note, str) else note
        if self.wants_json:
            document = {"go": _with_query(path, query)}
            if found is not None:
                document |= {"text": found.text, "tone": found.tone, "remedy": found.remedy}
            return JSONResponse(document)
        if found is not None:
            query["note"] = self.site.notes.leave(found)
        return RedirectResponse(_with_query(path, query), 303)

    def back(self, note: Note | str | None = None, *, otherwise: str = "/") -> Response:
        """Sends the browser to where the form says that it came from."""
        return self.go(local_path(self.field("back"), otherwise), note)


def local_path(text: str, otherwise: str) -> str:
    """A path of this site, with its query and place, never another site's; without an old note."""
    if not text.startswith("/") or text.startswith("//") or "\\" in text or not text.isprintable():
        return otherwise
    parts = urlsplit(text)
    kept = [pair for pair in parts.query.split("&") if pair and not pair.startswith("note=")]
    place = f"#{parts.fragment}" if parts.fragment else ""
    return parts.path + (f"?{'&'.join(kept)}" if kept else "") + place


def _with_query(path: str, query: Mapping[str, str]) -> str:
    if not query:
        return path
    path, mark, place = path.partition("#")
    return f"{path}{'&' if '?' in path else '?'}{urlencode(query)}{mark}{place}"


def get(path: str, page: Page) -> Route:
    """A page that is looked at; nothing is changed by it."""

    async def answer(request: Request) -> Response:
        return await _answered(_call(request, FormData()), page)

    return Route(path, answer, methods=["GET"], name=f"{page.__module__}.{page.__name__}")


def post(path: str, page: Page) -> Route:
    """A button; its form must carry the code of the session.

    Where the form has a question (``confirm``) and nobody has said yes to it (``sure``, which the
    script does), it is asked first.
    """

    async def answer(request: Request) -> Response:
        async with request.form(
            max_files=1, max_fields=_MOST_FIELDS, max_part_size=_MOST_FORM_BYTES
        ) as form:
            call = _call(request, form)
            sent = request.headers.get("x-code", "") or call.field("code")
            if not right_code(call.sessions, request.state.session, sent):
                note = Note(
                    "Nothing was done: the page was older than the server.",
                    "bad",
                    "Do it again from this page.",
                )
                return call.back(note)
            if call.field("confirm") and not call.field("sure") and not call.wants_json:
                return _question(call)
            return await _answered(call, page, button=True)

    return Route(path, answer, methods=["POST"], name=f"{page.__module__}.{page.__name__}")


def _question(call: Call) -> Response:
    """Asks what a script would have asked: the form comes again, with a yes in it."""
    sent = [(name, value) for name, value in call.form.multi_items() if isinstance(value, str)]
    return call.page(
        "confirm.html.j2",
        question=call.field("confirm"),
        action=call.request.url.path,
        fields=[(name, value) for name, value in sent if name not in ("code", "confirm")],
        back=local_path(call.field("back"), "/"),
    )


def _call(request: Request, form: FormData) -> Call:
    return Call(request, request.app.state.site, request.app.state.sessions, form)


async def _answered(call: Call, page: Page, *, button: bool = False) -> Response:
    try:
        return await anyio.to_thread.run_sync(page, call)
    except AIOSError as error:
        if not isinstance(error, UsageError):
            _log.warning("%s: %s", type(error).__name__, error)
        if button:
            return call.back(Note(error.message, "bad", error.remedy))
        status = status_of(error)
        if call.wants_json:
            return JSONResponse({"text": error.message, "remedy": error.remedy}, status)
        return call.page("error.html.j2", status=status, error=error, title="This cannot be shown")


def status_of(error: AIOSError) -> int:
    """The HTTP status of an error on a page."""
    if isinstance(error, UnknownExpertError) or error.message.startswith("there is no"):
        return 404
    if isinstance(error, StorageError):
        return 500
    return 400 if isinstance(error, UsageError) else 503


def json_answer(document: Any, status: int = 200) -> Response:
    """A document for a script of ours."""
    return Response(json.dumps(document), status, media_type="application/json")
