"""The table of measured results says what the raw results say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scripts import results_table


def test_the_pages_have_the_table_of_the_raw_results() -> None:
    text = results_table.table()

    stale = [
        page.name
        for page in results_table.PAGES
        if results_table.page_with(page, text) != page.read_text(encoding="utf-8")
    ]

    assert not stale, "run python -m scripts.results_table"


def test_every_account_of_a_result_exists() -> None:
    results = [*results_table.learning(), *results_table.speed()]

    for result in results:
        assert (results_table.ROOT / result.account.partition("#")[0]).is_file(), result
    assert len(results) > 20


def test_a_benchmark_from_another_machine_is_not_mixed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = json.loads((results_table.BENCHMARKS / "cache.json").read_text(encoding="utf-8"))
    document["machine"]["cores"] = 64
    (tmp_path / "cache.json").write_text(json.dumps(document), encoding="utf-8")
    monkeypatch.setattr(results_table, "BENCHMARKS", tmp_path)

    with pytest.raises(AssertionError, match="cache"):
        results_table.benchmark("cache")


def test_a_page_without_markers_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("no table here\n", encoding="utf-8")

    with pytest.raises(ValueError, match="results: begin"):
        results_table.page_with(page, "table")
