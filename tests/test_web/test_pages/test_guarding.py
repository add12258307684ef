"""Who may see pages and press buttons, and what the frame of all pages promises."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import PlainTextResponse, Response
from starlette.testclient import TestClient

from aios.core.errors import UsageError
from aios.web.pages import assembly
from aios.web.pages.calls import Call, get, local_path, post
from aios.web.pages.guarding import PAGE_POLICY, Sessions
from aios.web.pages.site import Note, Notes
from tests.test_web.asking import HEADERS, SECRET, ask, headers_of, other_site, pressed
from tests.test_web.visitor import ADDRESS, Visitor

# ---------------------------------------------------------------- on loopback without a token


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "evil.example:80",
        "127.0.0.1.evil.example",
        "192.168.0.1",
        "0.0.0.0",
        "[::2]",
        "localhost:80@evil.example",
        "localhost, evil.example",
        "",
    ],
)
def test_a_name_that_is_bound_to_this_machine_gains_nothing(visitor: Visitor, host: str) -> None:
    for path in ("/settings", "/static/app.js", "/jobs-table/live", "/nowhere"):
        answer = visitor.client.get(path, headers={"Host": host})
        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers
        assert headers_of(answer) == HEADERS
    assert pressed(visitor, Host=host, Origin=f"http://{host}").status_code == 403
    assert visitor.settings.changed() == {}


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9000", "127.0.0.1", "[::1]:80"])
def test_names_of_this_machine_are_answered(visitor: Visitor, host: str) -> None:
    assert visitor.client.get("/settings", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://localhost"},
        {"Origin": "http://localhost:81"},
        {"Origin": "http://localhost.evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "something new"},
    ],
)
def test_a_form_of_another_site_does_nothing(visitor: Visitor, headers: dict[str, str]) -> None:
    answer = pressed(visitor, **headers)
    assert answer.status_code == 403
    assert "nothing was done" in answer.text
    assert visitor.settings.changed() == {}


def test_a_form_of_this_site_does_what_it_says(visitor: Visitor) -> None:
    assert pressed(visitor, **{"Sec-Fetch-Site": "same-origin"}).status_code == 303
    assert visitor.settings.changed() == {"seed": "7"}


@pytest.mark.parametrize(
    "code", [None, "", "0" * 64, "é", "\ud800".encode("utf-8", "surrogatepass")]
)
def test_a_wrong_or_missing_code_does_nothing(visitor: Visitor, code: str | bytes | None) -> None:
    data: dict[str, Any] = {"key": "seed", "value": "7"}
    if code is not None:
        data["code"] = code
    visitor.look("/settings")
    answer = visitor.client.post("/settings/change", data=data, headers={"Origin": ADDRESS})
    assert answer.status_code == 200
    assert "Nothing was done" in answer.text
    assert visitor.settings.changed() == {}


def test_the_code_of_another_session_does_nothing(visitor: Visitor) -> None:
    code = visitor.code()
    visitor.client.cookies.clear()
    data = {"code": code, "key": "seed", "value": "7"}
    visitor.client.post("/settings/change", data=data, headers={"Origin": ADDRESS})
    assert visitor.settings.changed() == {}


def test_a_code_may_come_in_a_header(visitor: Visitor) -> None:
    headers = {"Origin": ADDRESS, "X-Code": visitor.code(), "Accept": "application/json"}
    data = {"key": "seed", "value": "7", "back": "/settings"}
    answer = visitor.client.post("/settings/change", data=data, headers=headers)
    assert answer.json()["go"] == "/settings"
    assert visitor.settings.changed() == {"seed": "7"}


@pytest.mark.parametrize(
    "path", ["/settings/reset-all", "/settings/doctor/begin", "/logout", "/settings/models/use"]
)
def test_a_button_is_not_pressed_by_looking(visitor: Visitor, path: str) -> None:
    page = visitor.look(path, status=405)
    assert "This cannot be done" in page


# ---------------------------------------------------------------- where buttons lead


@pytest.mark.parametrize(
    "text",
    [
        "//evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "/a\\..\\evil.example",
        "///evil.example",
        "//[evil",
        "http://evil.example",
        "http://[evil",
        "javascript:alert(1)",
        "/\tevil",
        "/\nSet-Cookie: a=b",
        "\t//evil.example",
        " //evil.example",
        "/\x00",
        "/\u202eevil",
        "evil.example",
        "",
    ],
)
def test_a_button_leads_to_no_other_site(visitor: Visitor, text: str) -> None:
    assert local_path(text, "/jobs") == "/jobs"
    data = {"code": visitor.code(), "key": "seed", "back": text}
    answer = visitor.client.post(
        "/settings/reset", data=data, headers={"Origin": ADDRESS}, follow_redirects=False
    )
    assert answer.status_code == 303
    assert re.match(r"/settings\?note=[\w-]+$", answer.headers["location"])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("/", "/"),
        ("/jobs/x?q=a%20b&page=2", "/jobs/x?q=a%20b&page=2"),
        ("/jobs?note=old&q=1", "/jobs?q=1"),
        ("/settings?q=a#key-seed", "/settings?q=a#key-seed"),
        ("/go?to=http://evil.example", "/go?to=http://evil.example"),
        ("/größe", "/größe"),
    ],
)
def test_a_path_of_this_site_is_kept_without_its_old_note(text: str, found: str) -> None:
    assert local_path(text, "/jobs") == found


def test_a_note_is_shown_once_and_its_key_cannot_be_guessed(visitor: Visitor) -> None:
    note = Note("<b>done</b>", remedy="<i>now</i>")
    path = f"/settings?note={visitor.site.notes.leave(note)}"
    page = visitor.look(path)
    assert "&lt;b&gt;done&lt;/b&gt;" in page
    assert "<i>now" not in page
    assert "done" not in visitor.look(path).split("settings-top")[0].split("<main")[1]


def test_notes_that_nobody_takes_are_bounded() -> None:
    notes = Notes()
    keys = [notes.leave(Note(str(number))) for number in range(600)]
    assert notes.take(keys[0]) is None
    assert notes.take(keys[-1]) == Note("599")


# ---------------------------------------------------------------- headers, errors, bounds


def test_every_answer_has_the_headers(visitor: Visitor) -> None:
    for path in ("/settings", "/jobs", "/jobs/nothing", "/nowhere", "/static/app.js",
                 "/static/nothing.js", "/charts.css", "/health"):  # fmt: skip
        assert headers_of(visitor.client.get(path)) == HEADERS, path
    assert headers_of(pressed(visitor)) == HEADERS
    assert headers_of(visitor.client.put("/settings")) == HEADERS


def test_the_policy_allows_nothing_inline_and_nothing_from_elsewhere() -> None:
    rules = dict(rule.strip().split(" ", 1) for rule in PAGE_POLICY.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert rules["frame-ancestors"] == rules["base-uri"] == "'none'"
    assert "unsafe" not in PAGE_POLICY
    assert "*" not in PAGE_POLICY
    assert "http" not in PAGE_POLICY


def test_pages_hold_nothing_inline(visitor: Visitor) -> None:
    for path in ("/settings", "/settings/models", "/settings/doctor", "/jobs"):
        page = visitor.look(path)
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]* src=)", page), path


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/", "Home"),
        ("/files", "Home"),
        ("/experts", "Experts"),
        ("/experts/-/trash", "Experts"),
        ("/goals", "Experts"),
        ("/edits", "Self-edits"),
        ("/edits/preview", "Self-edits"),
        ("/cache", "Self-edits"),
        ("/ab-tests", "A/B tests"),
        ("/runs", "A/B tests"),
        ("/runs/compare", "A/B tests"),
        ("/restem", "ReST-EM"),
        ("/chat", "Chat"),
        ("/jobs", "Jobs"),
        ("/settings", "Settings"),
        ("/settings/models", "Settings"),
    ],
)
def test_the_menu_marks_where_one_is(visitor: Visitor, path: str, name: str) -> None:
    menu = visitor.look(path).partition('<nav aria-label="Main">')[2].partition("</nav>")[0]
    assert re.findall(r'<a href="[^"]*" aria-current="page">(.*?)</a>', menu) == [name]


def test_files_beside_the_static_ones_are_not_served(visitor: Visitor) -> None:
    for path in ("/static/../manager.py", "/static/%2e%2e/manager.py", "/static/..%2fmanager.py"):
        assert visitor.client.get(path).status_code == 404


def test_a_bug_is_told_without_its_details_and_with_the_headers(
    visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(call: Call) -> Response:
        raise KeyError("a detail")

    def wrong(call: Call) -> Response:
        raise UsageError("there is no <b>thing</b>", "Look <i>elsewhere</i>.")

    site = other_site(visitor, monkeypatch, get("/broken", broken), get("/wrong", wrong))
    client = TestClient(site, base_url=ADDRESS, raise_server_exceptions=False)
    answer = client.get("/broken", headers={"Accept": "text/html"})
    assert answer.status_code == 500
    assert "a detail" not in answer.text
    assert headers_of(answer) == HEADERS
    answer = client.get("/wrong", headers={"Accept": "text/html"})
    assert answer.status_code == 404
    assert "&lt;b&gt;thing" in answer.text
    answer = client.get("/wrong", headers={"Accept": "application/json"})
    assert answer.json() == {"text": "there is no <b>thing</b>", "remedy": "Look <i>elsewhere</i>."}


def test_a_form_that_is_too_large_is_refused(tmp_path: Path) -> None:
    visitor = Visitor(tmp_path, "serve.max_body_bytes=2000")
    data = {"code": visitor.code(), "key": "chat.system", "value": "x" * 3000}
    answer = visitor.client.post("/settings/change", data=data, headers={"Origin": ADDRESS})
    assert answer.status_code == 413
    assert headers_of(answer) == HEADERS
    assert visitor.settings.changed() == {}
    visitor.close()


@pytest.fixture
def taken(visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """A site of which only the taking of files is of the test."""

    def take(call: Call) -> Response:
        found = call.upload("file")
        return PlainTextResponse(str(found.size) if found else "none")

    monkeypatch.setattr(assembly, "MOST_UPLOAD_BYTES", 3000)
    site = other_site(visitor, monkeypatch, post(assembly.UPLOAD_PATH, take))
    with TestClient(site, base_url=ADDRESS, headers={"Origin": ADDRESS}) as client:
        client.get("/nowhere")
        session = Sessions.make(SECRET, None, 80, secure=False)
        client.headers["X-Code"] = session.code(str(session.id_of(client.cookies["aios_80"])))
        yield client


def test_an_upload_within_the_bound_is_taken(taken: TestClient) -> None:
    assert taken.post(assembly.UPLOAD_PATH, files={"file": ("a.txt", b"x" * 1000)}).text == "1000"


@pytest.mark.parametrize("accept", ["text/html", "application/json", "*/*"])
def test_an_upload_that_says_it_is_too_large_is_refused(taken: TestClient, accept: str) -> None:
    answer = taken.post(
        assembly.UPLOAD_PATH, files={"file": ("a.txt", b"x" * 4000)}, headers={"Accept": accept}
    )
    assert answer.status_code == 413
    assert "MiB at most" in answer.text
    assert headers_of(answer) == HEADERS


def test_an_upload_that_does_not_say_how_large_it_is_is_cut_off(taken: TestClient) -> None:
    boundary = b"--b\r\nContent-Disposition: form-data; name=file; filename=a\r\n\r\n"
    asked = []

    def parts() -> Iterator[bytes]:
        yield boundary
        for number in range(100):
            asked.append(number)
            yield b"x" * 100

    answer = taken.post(
        assembly.UPLOAD_PATH,
        content=parts(),
        headers={"Content-Type": "multipart/form-data; boundary=b"},
    )
    assert answer.status_code == 413
    assert headers_of(answer) == HEADERS


def test_an_upload_that_never_ends_is_given_up(
    taken: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assembly, "UPLOAD_SECONDS", 0.05)
    head = b"--b\r\nContent-Disposition: form-data; name=file; filename=a\r\n\r\nx"
    headers = {
        "host": "localhost",
        "origin": ADDRESS,
        "x-code": taken.headers["X-Code"],
        "cookie": f"aios_80={taken.cookies['aios_80']}",
        "content-type": "multipart/form-data; boundary=b",
    }
    sent = asyncio.run(
        ask(taken.app, "POST", assembly.UPLOAD_PATH, headers, lambda parts: False, body=head)
    )
    assert sent[0]["status"] == 408
