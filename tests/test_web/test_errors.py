"""What clients are told where something is wrong on the server's side: whose id, and no path."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from aios.core import errors
from aios.core.errors import AIOSError, BackendError, QueueFullError, UsageError
from aios.web.errors import from_aios
from tests.openai_server import LOOPBACK
from tests.test_web.running import RunningServer, ask

pytestmark = LOOPBACK

SECRET = "/srv/secret/registry.json"
# The message of these is the client's own business, or names nothing of the server's disk.
SHOWN = {
    UsageError,
    errors.UnknownStrategyError,
    errors.ExpertExistsError,
    errors.UnknownExpertError,
    errors.FrozenExpertError,
    BackendError,
    errors.OutOfMemoryError,
    errors.NonFiniteError,
    QueueFullError,
}


def kinds(base: type[AIOSError] = AIOSError) -> Iterator[type[AIOSError]]:
    yield base
    for kind in base.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield from kinds(kind)


@pytest.mark.parametrize("kind", list(kinds()), ids=lambda kind: kind.__name__)
def test_errors_of_this_machine_are_logged_and_not_shown(
    kind: type[AIOSError], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "aios.web"):
        told = from_aios(kind(f"{SECRET} is corrupt", "restore it"))
    if kind in SHOWN:
        assert told.status_code < 500
        assert SECRET in told.detail
    else:
        assert told.status_code == 500
        assert SECRET not in told.detail
        assert SECRET in caplog.text


def test_a_failure_in_the_middle_is_the_servers(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "aios.web"):
        told = from_aios(BackendError(f"cannot read {SECRET}"), begun=True)
    assert told.status_code == 500
    assert SECRET not in told.detail
    assert SECRET in caplog.text


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("damaged", "model"),
    [
        ("adapter_model.safetensors", "art"),
        ("adapter_model.safetensors", "auto"),
        ("expert.json", "art"),
    ],
)
def test_a_damaged_expert_is_named_and_no_path_is(
    tmp_path: Path, damaged: str, model: str, stream: bool
) -> None:
    with RunningServer(tmp_path) as server:
        server.writer.batch.read_adapters = True
        (tmp_path / "experts" / "art" / damaged).write_bytes(b"damaged")
        answer = server.post("/v1/chat/completions", ask("of art", stream=stream, model=model))
        assert answer.status == 400
        assert "expert art cannot answer" in answer.error["message"]
        assert str(tmp_path) not in answer.text
        other = server.post("/v1/chat/completions", ask("of art", stream=stream, model="physics"))
        assert other.status == 200
