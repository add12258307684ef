"""Behind a proxy with TLS: which names and origins are this site's, and which are not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from aios.core.config.serving_schemas import ServeConfig
from aios.core.errors import UsageError
from aios.web.manager import open_sessions
from aios.web.pages.assembly import create_site
from aios.web.pages.guarding import Sessions
from aios.web.public_address import PublicAddress
from aios.web.server import open_listener
from tests.test_web.asking import SECRET, pressed
from tests.test_web.visitor import Visitor

TOKEN = "a-token-that-nobody-guesses"
PUBLIC = "https://seal.example"


@pytest.fixture
def proxied(tmp_path: Path) -> Iterator[Visitor]:
    """A visitor who has signed in to a server behind a proxy with TLS."""
    found = Visitor(tmp_path, f"serve.public_url={PUBLIC}", token=TOKEN)
    answer = found.client.post("/login", data={"token": TOKEN}, headers={"Origin": PUBLIC})
    assert answer.url.path == "/"
    yield found
    found.close()


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "seal.example", "Origin": PUBLIC},  # a proxy that passes the name on
        {"Host": "SEAL.example:443", "Origin": PUBLIC},
        {"Host": "127.0.0.1:8000", "Origin": PUBLIC},  # one that does not
        {"Host": "localhost", "Origin": "http://localhost"},  # somebody at the machine itself
        {"Host": "seal.example", "Origin": PUBLIC, "Sec-Fetch-Site": "same-origin"},
    ],
)
def test_forms_of_the_public_address_do_what_they_say(
    proxied: Visitor, headers: dict[str, str]
) -> None:
    assert pressed(proxied, **cookie(proxied), **headers).status_code == 303
    assert proxied.settings.changed() == {"seed": "7"}


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "seal.example", "Origin": "http://seal.example"},  # another scheme
        {"Host": "seal.example", "Origin": "https://seal.example:8443"},
        {"Host": "seal.example", "Origin": "https://evil.example"},
        {"Host": "seal.example", "Origin": "null"},
        {"Host": "127.0.0.1:8000", "Origin": "https://127.0.0.1:8000"},
        {"Host": "evil.example", "Origin": "https://evil.example"},
        {"Host": "evil.example", "Origin": PUBLIC},
        {"Host": "seal.example", "Origin": PUBLIC, "Sec-Fetch-Site": "cross-site"},
    ],
)
def test_forms_of_other_addresses_do_nothing(proxied: Visitor, headers: dict[str, str]) -> None:
    assert pressed(proxied, **cookie(proxied), **headers).status_code == 403
    assert proxied.settings.changed() == {}


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "seal.example"},
        {"Forwarded": "host=seal.example;proto=https"},
        {"X-Original-Host": "seal.example"},
    ],
)
def test_what_a_proxy_adds_is_not_trusted(
    proxied: Visitor, visitor: Visitor, headers: dict[str, str]
) -> None:
    for one in (proxied, visitor):
        sent = {"Host": "evil.example", "Origin": "https://evil.example", **headers}
        assert pressed(one, **cookie(one), **sent).status_code == 403
        sent = {"Host": "localhost", "Origin": "https://localhost", **headers}
        assert pressed(one, **cookie(one), **sent).status_code == 403
        assert one.settings.changed() == {}


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("seal.example", 200),
        ("seal.example:443", 200),
        ("127.0.0.1:8000", 200),
        ("seal.example:8443", 403),
        ("seal.example.evil.example", 403),
        ("evil-seal.example", 403),
        ("evil.example", 403),
        ("seal.example@evil.example", 403),
        ("192.168.0.1", 403),
        ("", 403),
    ],
)
def test_a_name_that_is_bound_to_the_server_gains_nothing(
    proxied: Visitor, host: str, status: int
) -> None:
    answer = proxied.client.get("/settings", headers={**cookie(proxied), "Host": host})
    assert answer.status_code == status
    if status == 403:
        assert "seal.example, localhost or a loopback address only" in answer.text
    assert proxied.client.get("/health", headers={"Host": host}).status_code == 200


def test_the_api_without_a_token_answers_the_public_name_of_this_machine(
    tmp_path: Path,
) -> None:
    one = Visitor(tmp_path, "serve.public_url=https://localhost:8443")
    sessions = Sessions.make(SECRET, None, 80, secure=True)
    api = PlainTextResponse("the API")
    client = TestClient(create_site(one.site, sessions, token=None, api=lambda: api))
    for host, status in (("localhost:8443", 200), ("127.0.0.1", 200), ("evil.example", 403)):
        answer = client.get("/v1/models", headers={"Host": host})
        assert answer.status_code == status
    one.close()


def cookie(visitor: Visitor) -> dict[str, str]:
    """The visitor's cookie, whatever the name of the host."""
    visitor.look("/jobs")
    return {"Cookie": f"aios_80={visitor.client.cookies['aios_80']}"}


@pytest.mark.parametrize(
    ("public", "tls", "secure"),
    [
        (None, False, False),
        (None, True, True),
        ("https://seal.example", False, True),
        ("http://seal.example", False, False),
    ],
)
def test_cookies_go_over_tls_alone_where_browsers_come_over_tls(
    tmp_path: Path, public: str | None, tls: bool, secure: bool
) -> None:
    given = [] if public is None else [f"serve.public_url={public}"]
    visitor = Visitor(tmp_path, *given)
    sessions = open_sessions(visitor.settings, TOKEN, 8000, tls=tls)
    assert ("; Secure" in sessions.header("x")) is secure
    value = sessions.begin()
    sessions.end(sessions.id_of(value) or "")
    again = open_sessions(visitor.settings, TOKEN, 8000, tls=tls)
    assert again.id_of(value) is None
    assert open_sessions(visitor.settings, TOKEN, 8001, tls=tls).id_of(value) is None
    visitor.close()


# ---------------------------------------------------------------- the setting


@pytest.mark.parametrize(
    ("given", "origin"),
    [
        ("https://seal.example", "https://seal.example"),
        ("HTTPS://Seal.Example/", "https://seal.example"),
        ("https://seal.example:443", "https://seal.example"),
        ("http://seal.example:80/", "http://seal.example"),
        ("https://seal.example:8443", "https://seal.example:8443"),
        ("https://[2001:DB8::1]:8443", "https://[2001:db8::1]:8443"),
    ],
)
def test_an_address_is_kept_as_browsers_write_it(given: str, origin: str) -> None:
    assert ServeConfig(public_url=given).public_url == origin


@pytest.mark.parametrize(
    "given",
    [
        "",
        "seal.example",
        "ftp://seal.example",
        "https://",
        "https://seal.example/aios",
        "https://seal.example?x",
        "https://seal.example#x",
        "https://user@seal.example",
        "https://seal.example:0",
        "https://seal.example:65536",
        "https://seal.example:443:443",
        "https://seal example",
        "https://seal.example\n",
        "https://größe.example",
        "https://*.example",
        "*",
    ],
)
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(ValidationError, match="public_url"):
        ServeConfig(public_url=given)


@pytest.mark.parametrize(
    ("origin", "named", "not_named"),
    [
        ("https://a.example", ("a.example", "A.example:443"), ("a.example:80", "a.example.")),
        ("https://a.example:8443", ("a.example", "a.example:8443"), ("a.example:443",)),
        ("http://[::2]", ("[::2]", "[::2]:80"), ("[::2]:443", "::2", "[::3]")),
        ("http://[::2]:81", ("[::2]", "[::2]:81"), ("[::2]:80",)),
    ],
)
def test_a_host_header_names_it_with_or_without_its_port(
    origin: str, named: tuple[str, ...], not_named: tuple[str, ...]
) -> None:
    address = PublicAddress(origin)
    assert all(address.names(host) for host in named)
    assert not any(address.names(host) for host in (*not_named, "", "x" * 9999))
    assert address.secure is origin.startswith("https")


def test_a_public_address_needs_a_token() -> None:
    with pytest.raises(UsageError, match=r"seal\.example can be reached from other machines"):
        open_listener(ServeConfig(port=0, public_url=PUBLIC), None)
