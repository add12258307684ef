"""Requests made up from our description of the API: nothing crashes, answers are as described."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.openai_server import LOOPBACK
from tests.test_web.running import RunningServer

pytestmark = [*LOOPBACK, pytest.mark.slow]

EXAMPLES = 40
CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
]
ROUTES = {
    "GET /health",
    "GET /metrics",
    "GET /ready",
    "GET /v1/models",
    "GET /v1/models/{model}",
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /v1/feedback",
}


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_made_up_requests_are_answered_as_described(
    server: RunningServer, mode: GenerationMode
) -> None:
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/openapi.json")
    found = [each.ok() for each in schema.get_all_operations() if isinstance(each, Ok)]
    operations = {operation.label: operation for operation in found}
    assert set(operations) == ROUTES
    for label, operation in operations.items():
        if mode is GenerationMode.NEGATIVE and not label.startswith("POST"):
            continue  # nothing of a GET can be wrong

        @given(operation.as_strategy(mode))
        @settings(
            max_examples=EXAMPLES if label.startswith("POST") else 5,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        def check(case: schemathesis.Case[Any]) -> None:
            case.call_and_validate(checks=CHECKS, timeout=20)

        check()
    assert server.request("GET", "/health").status == 200
