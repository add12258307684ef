"""The benchmark of the server under load: what its clients count, on a server in this process."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.openai_server import LOOPBACK
from tests.test_web.running import EXPERTS, RunningServer

pytestmark = [*LOOPBACK, pytest.mark.slow]

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODULES = ("_results", "server_load")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    found = importlib.import_module("server_load")
    monkeypatch.setattr(found, "EXPERTS", EXPERTS)
    monkeypatch.setattr(found, "questions", lambda: ["count"])
    yield found
    for name in MODULES:
        sys.modules.pop(name, None)


def test_clients_count_answers_tokens_and_times(bench: Any, server: RunningServer) -> None:
    tally = asyncio.run(bench.load(server.url, 4, 0.5, 64))
    assert tally.errors == {}
    assert {answer[1] for answer in tally.answers} == {"base", *EXPERTS}
    assert {answer[2] for answer in tally.answers} == {10, 11}  # an expert's name is a word more
    assert all(0 < first <= end for _, _, _, first, end in tally.answers)
    rows = bench.rows_of("4 clients", tally)
    assert [row["metric"] for row in rows][:3] == [
        "tokens",
        "answers",
        "time to first token, p50",
    ]
    assert all(row["min"] <= row["median"] <= row["max"] and row["n"] > 1 for row in rows)
    facts = bench.facts_of(tally)
    assert facts["answers"] == len(tally.answers)
    assert facts["percentiles (s)"]["end"]["p50"] <= facts["percentiles (s)"]["end"]["p99"]


def test_errors_are_counted_by_kind_and_429_is_waited_for(bench: Any, tmp_path: Path) -> None:
    with RunningServer(tmp_path) as server:
        server.writer.full = True
        tally = asyncio.run(bench.load(server.url, 3, 0.5, 8))
        assert tally.errors == {"429": 3}  # each waits a second, as it is told
        server.writer.full = False
        server.writer.batch.fail_after = 1
        tally = asyncio.run(bench.load(server.url, 1, 0.2, 8))
        assert set(tally.errors) == {"APIError"}  # in the middle of a stream
    with pytest.raises(SystemExit, match="nothing was answered"):
        bench.rows_of("1 client", tally)


def test_percentiles_are_of_the_nearest_rank(bench: Any) -> None:
    samples = [float(number) for number in range(100, 0, -1)]
    assert [bench.percentile(samples, percent) for percent in (50, 95, 99)] == [50, 95, 99]
    assert bench.percentile([7.0], 99) == 7.0
