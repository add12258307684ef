"""One server for the tests of a module that do not stop it."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from tests.test_web.running import RunningServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with RunningServer(tmp_path_factory.mktemp("served")) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with server.client() as made:
        yield made
