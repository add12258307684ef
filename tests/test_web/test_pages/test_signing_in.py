"""Signing in: the token, the cookie that it gives, the secret behind it; the API beside it."""

from __future__ import annotations

import asyncio
import re
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2 as httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aios.core.errors import StorageError, UsageError
from aios.web.pages import ended_sessions, live, signing_in
from aios.web.pages.assembly import create_site
from aios.web.pages.ended_sessions import EndedSessions
from aios.web.pages.guarding import (
    SESSION_SECONDS,
    Sessions,
    read_secret,
    right_code,
    right_token,
)
from tests.test_web.asking import HEADERS, SECRET, ask, ended, headers_of, parts, pressed, texts
from tests.test_web.visitor import ADDRESS, Visitor

TOKEN = "a-token-that-nobody-guesses"


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Visitor]:
    """A visitor of a server with a token who has not signed in."""
    monkeypatch.setattr(signing_in, "WAIT_SECONDS", 0.01)
    found = Visitor(tmp_path, token=TOKEN)
    found.client.follow_redirects = False
    yield found
    found.close()


def sign_in(visitor: Visitor, token: str = TOKEN, **headers: str) -> httpx.Response:
    return visitor.client.post(
        "/login", data={"token": token}, headers={"Origin": ADDRESS, **headers}
    )


def test_a_stranger_is_asked_to_sign_in(stranger: Visitor) -> None:
    for path in ("/", "/settings", "/jobs/x", "/nowhere", "/loginx", "/health/x", "/staticx"):
        answer = stranger.client.get(path)
        assert (answer.status_code, answer.headers["location"]) == (303, "/login"), path
        assert "set-cookie" not in answer.headers
    answer = stranger.client.get("/login")
    assert answer.status_code == 200
    assert "The server's token" in answer.text.replace("&#39;", "'")
    assert headers_of(answer) == HEADERS


def test_a_stranger_gets_no_part_and_presses_no_button(stranger: Visitor) -> None:
    for path in ("/jobs-table", "/jobs-table/live", "/settings/config.yaml"):
        assert stranger.client.get(path, headers={"Accept": "*/*"}).status_code == 401
    code = Sessions.make(SECRET, TOKEN, 80, secure=False).code("")
    data = {"code": code, "key": "seed", "value": "7"}
    answer = stranger.client.post("/settings/change", data=data, headers={"Origin": ADDRESS})
    assert answer.status_code == 401
    assert stranger.settings.changed() == {}


def test_a_stranger_gets_what_the_login_page_needs_and_health(stranger: Visitor) -> None:
    for path in ("/static/app.css", "/static/icon.svg", "/health", "/ready", "/charts.css"):
        assert stranger.client.get(path).status_code == 200


@pytest.mark.parametrize("token", ["", "wrong", TOKEN + "x", TOKEN.upper(), "é", "x" * 5000])
def test_a_wrong_token_is_refused(stranger: Visitor, token: str) -> None:
    answer = sign_in(stranger, token)
    assert answer.status_code == 403
    assert "not the server" in answer.text
    assert "set-cookie" not in answer.headers


def test_a_wrong_token_is_answered_late_and_those_who_guess_wait_for_each_other(
    stranger: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signing_in, "WAIT_SECONDS", 0.05)
    headers = {"host": "localhost", "content-type": "application/x-www-form-urlencoded"}
    site = stranger.client.app

    async def guess_together() -> list[list[Message]]:
        guesses = (ask(site, "POST", "/login", headers, ended, body=b"token=x") for _ in range(4))
        return await asyncio.gather(*guesses)

    begun = time.monotonic()
    assert {sent[0]["status"] for sent in asyncio.run(guess_together())} == {403}
    assert time.monotonic() - begun >= 0.2


def test_another_site_signs_nobody_in(stranger: Visitor) -> None:
    assert sign_in(stranger, Origin="http://evil.example").status_code == 403
    assert "not the server" not in sign_in(stranger, Origin="http://evil.example").text


def test_the_right_token_gives_a_cookie_that_scripts_and_other_sites_do_not_get(
    stranger: Visitor,
) -> None:
    answer = sign_in(stranger, f" {TOKEN}\n")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    name, *attributes = [part.strip() for part in answer.headers["set-cookie"].split(";")]
    assert name.startswith("aios_80=")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(attributes)
    assert "Secure" not in attributes
    page = stranger.look("/settings")
    assert "Sign out" in page
    assert TOKEN not in page
    assert stranger.client.get("/login").headers["location"] == "/"


def test_over_tls_the_cookie_goes_over_tls_alone() -> None:
    assert "; Secure" in Sessions.make(SECRET, TOKEN, 443, secure=True).header("x")


def test_without_a_token_there_is_nothing_to_sign_in_to(visitor: Visitor) -> None:
    assert "Sign out" not in visitor.look("/settings")
    visitor.client.follow_redirects = False
    assert visitor.client.get("/login").headers["location"] == "/"


def test_with_a_token_any_host_is_answered_and_other_sites_still_do_nothing(
    stranger: Visitor,
) -> None:
    sign_in(stranger)
    host = {"Host": "lab.example"}
    page = stranger.client.get("/settings", headers={**host, **cookie_of(stranger)})
    assert page.status_code == 200
    assert pressed(stranger, Origin="http://evil.example").status_code == 403
    assert stranger.settings.changed() == {}
    assert pressed(stranger).status_code == 303


def cookie_of(visitor: Visitor) -> dict[str, str]:
    return {"Cookie": f"aios_80={visitor.client.cookies['aios_80']}"}


def test_signing_out_takes_the_cookie_away(stranger: Visitor) -> None:
    sign_in(stranger)
    answer = stranger.client.post(
        "/logout", data={"code": stranger.code()}, headers={"Origin": ADDRESS}
    )
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/login")
    assert "Max-Age=0" in answer.headers["set-cookie"]
    assert stranger.client.get("/settings").status_code == 303
    assert stranger.client.get(answer.headers["location"]).status_code == 200


def test_a_cookie_of_before_signing_out_is_refused(stranger: Visitor) -> None:
    sign_in(stranger)
    kept, code = cookie_of(stranger), stranger.code()
    stranger.client.cookies.clear()
    sign_in(stranger)
    other = cookie_of(stranger)
    stranger.client.cookies.clear()
    assert stranger.client.get("/settings", headers=kept).status_code == 200

    stranger.client.post("/logout", data={"code": code}, headers={"Origin": ADDRESS, **kept})
    assert stranger.client.get("/settings", headers=kept).headers["location"] == "/login"
    data = {"code": code, "key": "seed", "value": "7"}
    sent = {"Origin": ADDRESS, "Accept": "*/*", **kept}
    assert stranger.client.post("/settings/change", data=data, headers=sent).status_code == 401
    assert stranger.settings.changed() == {}
    assert stranger.client.get("/settings", headers=other).status_code == 200  # another browser


def test_an_open_stream_ends_when_its_session_does(
    stranger: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "LOOK_SECONDS", 0.005)
    sessions = Sessions.make(SECRET, TOKEN, 80, secure=False)
    site = create_site(stranger.site, sessions, token=TOKEN)
    cookie = sessions.begin()

    def enough(sent: list[Message]) -> bool:
        if parts(sent):
            sessions.end(sessions.id_of(cookie) or "")
        return ended(sent)

    headers = {"host": "localhost", "cookie": f"aios_80={cookie}"}
    sent = asyncio.run(ask(site, "GET", "/jobs-table/live", headers, enough))
    assert texts(sent)[-1] == 'event: gone\ndata: "You are signed out."\n\n'


def test_who_has_signed_out_is_known_after_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "web" / "signed_out_80.json"
    file.parent.mkdir()

    def started() -> Sessions:
        return Sessions.make(SECRET, TOKEN, 80, secure=False, ended=EndedSessions(file))

    sessions = started()
    ended_one, other = sessions.begin(), sessions.begin()
    sessions.end(sessions.id_of(ended_one) or "")
    for again in (sessions, started()):
        assert again.id_of(ended_one) is None
        assert again.id_of(other) is not None
    file.write_text('{"sessions": 7}', encoding="utf-8")
    with pytest.raises(StorageError, match="who has signed out is not known"):
        started()


def test_ended_sessions_are_bounded_and_none_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ended_sessions, "MOST_ENDED", 3)
    file = tmp_path / "signed_out.json"
    kept = EndedSessions(file)
    now = int(time.time())
    kept.add("over", now - 1)
    for number in range(3):
        kept.add(f"s{number}", now + 100)
    assert not EndedSessions(file).holds("over")  # its cookie is refused by itself
    assert kept.holds("s0", now + 50)
    assert not kept.holds("new", now + 50)
    kept.add("s3", now + 200)
    for found in (kept, EndedSessions(file)):
        assert found.holds("s0", now + 100)  # all that were begun until then
        assert found.holds("new", now + 200)
        assert not found.holds("later", now + 201)
    assert len(file.read_bytes()) < 100


def test_signing_out_needs_the_code(stranger: Visitor) -> None:
    sign_in(stranger)
    stranger.client.post("/logout", headers={"Origin": ADDRESS})
    assert stranger.client.get("/settings").status_code == 200


@pytest.mark.parametrize(
    "forge",
    [
        lambda cookie: "",
        lambda cookie: "x",
        lambda cookie: cookie[:-1],
        lambda cookie: cookie[:-2] + ("00" if cookie[-2:] != "00" else "11"),
        lambda cookie: "a" + cookie,
        lambda cookie: re.sub(r"\.\d+\.", ".99999999999.", cookie),
        lambda cookie: cookie.rpartition(".")[0] + ".",
        lambda cookie: cookie.rpartition(".")[0] + ".é",
        lambda cookie: "." * 5000,
    ],
)
def test_a_forged_cookie_is_none(stranger: Visitor, forge: Callable[[str], str]) -> None:
    value = Sessions.make(SECRET, TOKEN, 80, secure=False).begin()
    good = {"Cookie": f"aios_80={value}".encode("latin-1")}
    bad = {"Cookie": f"aios_80={forge(value)}".encode("latin-1")}
    assert stranger.client.get("/settings", headers=good).status_code == 200  # type: ignore[arg-type]
    assert stranger.client.get("/settings", headers=bad).status_code == 303  # type: ignore[arg-type]


def test_a_cookie_of_another_token_secret_or_port_is_none(stranger: Visitor) -> None:
    others = [
        Sessions.make(SECRET, "another-token-of-before", 80, secure=False),
        Sessions.make(b"another secret", TOKEN, 80, secure=False),
        Sessions.make(SECRET, None, 80, secure=False),
        Sessions.make(SECRET, TOKEN, 81, secure=False),
    ]
    for other in others:
        headers = {"Cookie": f"{other.cookie}={other.begin()}"}
        assert stranger.client.get("/settings", headers=headers).status_code == 303


def test_a_cookie_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions.make(SECRET, TOKEN, 80, secure=False)
    cookie, now = sessions.begin(), time.time()
    assert sessions.id_of(cookie) is not None
    monkeypatch.setattr(time, "time", lambda: now + SESSION_SECONDS + 1)
    assert sessions.id_of(cookie) is None


@pytest.mark.parametrize(
    "others",
    [
        'theme={"dark": true}; ',
        "=; ;; a b c; ",
        "aios_80=old; ",
        'q="; ',
        "x=" + "y" * 9000 + "; ",
    ],
)
def test_cookies_of_other_programs_on_this_host_do_no_harm(stranger: Visitor, others: str) -> None:
    sign_in(stranger)
    headers = {"Cookie": others + cookie_of(stranger)["Cookie"]}
    stranger.client.cookies.clear()
    assert stranger.client.get("/settings", headers=headers).status_code == 200


def test_codes_and_tokens_are_compared_whatever_is_sent() -> None:
    sessions = Sessions.make(SECRET, None, 80, secure=False)
    assert right_code(sessions, "a", sessions.code("a"))
    for sent in ("", "é", "\ud800", sessions.code("b")):
        assert not right_code(sessions, "a", sent)
        assert not right_token(TOKEN, sent)
    assert not right_code(sessions, None, sessions.code(""))
    assert right_token(TOKEN, TOKEN)


# ---------------------------------------------------------------- the API beside the pages


class Api:
    """An application in the place of the API's; counts how often it was made."""

    def __init__(self) -> None:
        self.made = 0

    def make(self) -> ASGIApp:
        self.made += 1
        time.sleep(0.02)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await PlainTextResponse("the API")(scope, receive, send)

        return app


def with_api(visitor: Visitor, token: str | None) -> tuple[TestClient, Api]:
    api = Api()
    sessions = Sessions.make(SECRET, token, 80, secure=False)
    site = create_site(visitor.site, sessions, token=token, api=api.make)
    return TestClient(site, base_url=ADDRESS), api


def test_the_api_needs_the_token_and_takes_no_cookie(visitor: Visitor) -> None:
    client, api = with_api(visitor, TOKEN)
    sessions = Sessions.make(SECRET, TOKEN, 80, secure=False)
    cookie = {"Cookie": f"aios_80={sessions.begin()}"}
    for path in ("/v1/models", "/openapi.json", "/metrics"):
        for headers in ({}, cookie, {"Authorization": "Bearer wrong"}):
            assert client.get(path, headers=headers).status_code == 401
    assert api.made == 0  # no model is loaded for a stranger
    right = {"Authorization": f"Bearer {TOKEN}"}
    assert client.get("/v1/models", headers=right).text == "the API"
    assert client.get("/settings", headers=right | {"Accept": "*/*"}).status_code == 401


def test_without_a_token_the_api_answers_this_machine_alone(visitor: Visitor) -> None:
    client, api = with_api(visitor, None)
    assert client.get("/v1/models", headers={"Host": "evil.example"}).status_code == 403
    assert api.made == 0
    assert client.get("/v1/models").text == "the API"


def test_the_api_is_made_once_however_many_ask(visitor: Visitor) -> None:
    client, api = with_api(visitor, None)

    async def ask_together() -> list[list[Message]]:
        headers = {"host": "localhost"}
        return await asyncio.gather(
            *(ask(client.app, "GET", "/v1/models", headers, ended) for _ in range(5))
        )

    assert [sent[0]["status"] for sent in asyncio.run(ask_together())] == [200] * 5
    assert api.made == 1


def test_an_api_that_cannot_be_made_is_tried_again(visitor: Visitor) -> None:
    tries = []

    def make() -> ASGIApp:
        tries.append(1)
        if len(tries) == 1:
            raise UsageError("the model is not here")
        return PlainTextResponse("the API")

    sessions = Sessions.make(SECRET, None, 80, secure=False)
    site = create_site(visitor.site, sessions, token=None, api=make)
    client = TestClient(site, base_url=ADDRESS)
    assert client.get("/v1/models").status_code >= 400
    assert client.get("/v1/models").text == "the API"


# ---------------------------------------------------------------- the secret


def test_the_secret_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    file = tmp_path / "web" / "secret"
    made = read_secret(file)
    assert len(made) == 32
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert read_secret(file) == made


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 33])
def test_a_secret_that_was_cut_short_is_made_anew(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "secret"
    file.write_bytes(content)
    made = read_secret(file)
    assert len(made) == 32
    assert made != content
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert read_secret(file) == made


def test_a_secret_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StorageError):
        read_secret(tmp_path / "file" / "secret")
