"""Tokens, names of hosts, headers: who may ask, and what browsers are told."""

from __future__ import annotations

import hmac
from pathlib import Path
from typing import Any

import openai
import pytest

from aios.core.config.serving_schemas import ServeConfig
from aios.core.errors import StorageError, UsageError
from aios.web import security
from aios.web.security import is_loopback_name, read_token
from aios.web.server import open_listener, tls_context
from tests.openai_server import LOOPBACK
from tests.test_web.running import RunningServer, ask

pytestmark = LOOPBACK

TOKEN = "a-token-of-more-than-16-characters"
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with RunningServer(tmp_path_factory.mktemp("guarded"), token=TOKEN) as running:
        yield running


def bearer(token: str, scheme: str = "Bearer") -> dict[str, str]:
    return {"Authorization": f"{scheme} {token}"}


def test_the_right_token_opens_every_route(guarded: RunningServer) -> None:
    assert guarded.post(CHAT, ask("count"), bearer(TOKEN)).status == 200
    assert guarded.post(CHAT, ask("count"), bearer(TOKEN, "bearer")).status == 200
    assert guarded.request("GET", "/metrics", headers=bearer(TOKEN)).status == 200
    with guarded.client() as client:
        assert len(list(client.models.list())) == 4


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer(""),
        bearer("wrong"),
        bearer(TOKEN[:-1]),
        bearer(TOKEN + "x"),
        bearer(TOKEN, "Basic"),
        bearer("ÿ" * 20),
        {"Authorization": TOKEN},
        {"X-Api-Key": TOKEN},
    ],
)
def test_without_the_right_token_nothing_is_told(
    guarded: RunningServer, headers: dict[str, str]
) -> None:
    for method, path in (
        ("GET", "/v1/models"),
        ("POST", CHAT),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
        ("GET", "/nowhere"),
    ):
        answer = guarded.request(method, path, headers=headers)
        assert answer.status == 401
        assert answer.error["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"


def test_the_official_client_is_told_that_its_key_is_wrong(guarded: RunningServer) -> None:
    with guarded.client(api_key="wrong") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_health_needs_no_token(guarded: RunningServer) -> None:
    assert guarded.request("GET", "/health").json == {"status": "ok"}
    assert guarded.request("GET", "/ready").json == {"status": "ready"}


def test_tokens_are_compared_in_constant_time(
    guarded: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[int, int]] = []

    def compare(sent: bytes, expected: bytes) -> bool:
        compared.append((len(sent), len(expected)))
        return hmac.compare_digest(sent, expected)

    class Watched:
        compare_digest = staticmethod(compare)

    monkeypatch.setattr(security, "hmac", Watched)
    for token in ("x", TOKEN):
        guarded.request("GET", "/v1/models", headers=bearer(token))
    assert compared == [(32, 32), (32, 32)]  # digests: not even the length shows


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST.:80", 200),
        ("127.0.0.1:8000", 200),
        ("127.8.8.8", 200),
        ("[::1]:8000", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost@evil.example", 403),
        ("192.168.0.1", 403),
        ("[::2]", 403),
        ("", 403),
    ],
)
def test_without_a_token_only_loopback_names_are_answered(
    server: RunningServer, host: str, status: int
) -> None:
    answer = server.request("GET", "/v1/models", headers={"Host": host})
    assert answer.status == status
    assert status == 200 or answer.error["code"] == "wrong_host"


def test_with_a_token_any_name_will_do(guarded: RunningServer) -> None:
    headers = {"Host": "models.example", **bearer(TOKEN)}
    assert guarded.request("GET", "/v1/models", headers=headers).status == 200


@pytest.mark.parametrize("host", ["localhost:", "localhost:x", "::1", "[::1", "[::1]x", "²7.0.0.1"])
def test_odd_names_of_hosts_are_refused(host: str) -> None:
    assert not is_loopback_name(host)


def test_other_origins_are_told_nothing(server: RunningServer) -> None:
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    for answer in (
        server.request("OPTIONS", CHAT, headers=headers),
        server.post(CHAT, ask("count"), headers),
        server.request("GET", "/nowhere", headers=headers),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "server" not in answer.headers


def test_a_token_is_read_from_a_private_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"  {TOKEN}\n")
    file.chmod(0o600)
    assert read_token(file, {"AIOS_TOKEN": "another-token-of-the-environment"}) == TOKEN
    assert read_token(None, {"AIOS_TOKEN": TOKEN}) == TOKEN
    assert read_token(None, {}) is None
    for mode in (0o644, 0o604, 0o660):
        file.chmod(mode)
        with pytest.raises(UsageError, match="others may read"):
            read_token(file, {})


@pytest.mark.parametrize("text", ["", "short", "with a space in the middle", "x" * 4097, "ü" * 20])
def test_what_is_no_token_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "token"
    file.write_text(text)
    file.chmod(0o600)
    with pytest.raises((UsageError, StorageError)):
        read_token(file, {})
    if text:
        with pytest.raises(UsageError):
            read_token(None, {"AIOS_TOKEN": text})


def test_a_token_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="token"):
        read_token(tmp_path / "token", {})


def test_beyond_loopback_a_token_is_required() -> None:
    with pytest.raises(UsageError, match="no token") as caught:
        open_listener(ServeConfig(host="0.0.0.0", port=0), None)
    assert "--token-file" in caught.value.remedy
    open_listener(ServeConfig(host="0.0.0.0", port=0), TOKEN).close()
    open_listener(ServeConfig(host="127.0.0.1", port=0), None).close()


def test_an_address_that_is_taken_or_nowhere_is_an_error() -> None:
    taken = open_listener(ServeConfig(port=0), None)
    try:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"127.0.0.1:{port}"):
            open_listener(ServeConfig(port=port), None)
    finally:
        taken.close()
    for host in ("256.256.256.256", "192.0.2.1", "a" * 100):
        with pytest.raises(UsageError, match="cannot listen"):
            open_listener(ServeConfig(host=host, port=0), TOKEN)


def test_certificates_that_cannot_be_used_are_errors(tmp_path: Path) -> None:
    broken = tmp_path / "broken.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nnothing\n-----END CERTIFICATE-----\n")
    assert tls_context(ServeConfig()) is None
    with pytest.raises(UsageError, match="no certificate"):
        tls_context(ServeConfig(tls_key=broken))
    for file in (broken, tmp_path / "missing.pem", tmp_path):
        with pytest.raises(UsageError, match="cannot use"):
            tls_context(ServeConfig(tls_certificate=file))
