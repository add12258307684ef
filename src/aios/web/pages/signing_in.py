"""Signing in with the server's token, and out; only servers that have one ask for it."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from aios.web.pages.calls import Call, post
from aios.web.pages.guarding import Sessions, right_token
from aios.web.pages.site import Note
from aios.web.pages.templates import environment

WAIT_SECONDS = 0.5


def sign_in_routes(sessions: Sessions, token: str | None) -> list[Route]:
    """The routes; without a token there is nothing to sign in to."""

    async def show(request: Request) -> Response:
        if token is None or request.state.session is not None:
            return RedirectResponse("/", 303)
        return HTMLResponse(_page(""))

    one_at_a_time = asyncio.Lock()  # slows guessing, whoever guesses; pages do not wait

    async def enter(request: Request) -> Response:
        async with request.form(max_files=0, max_fields=5, max_part_size=8192) as form:
            found = form.get("token", "")
        sent = found.strip() if isinstance(found, str) else ""
        async with one_at_a_time:
            if token is not None and right_token(token, sent):
                answer: Response = RedirectResponse("/", 303)
                answer.headers["Set-Cookie"] = sessions.header(sessions.begin())
                return answer
            await asyncio.sleep(WAIT_SECONDS)
        return HTMLResponse(_page("This is not the server's token."), 403)

    def leave(call: Call) -> Response:
        sessions.end(call.session)
        answer = call.go("/login", Note("You are signed out."))
        answer.headers["Set-Cookie"] = sessions.header("", seconds=0)
        return answer

    return [
        Route("/login", show, methods=["GET"]),
        Route("/login", enter, methods=["POST"]),
        post("/logout", leave),
    ]


def _page(problem: str) -> str:
    return environment().get_template("login.html.j2").render(problem=problem, theme="")
