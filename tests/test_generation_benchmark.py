"""The parts of the generation benchmark that need no model."""

from __future__ import annotations

import importlib
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from aios.core.types import SamplingParams

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
MODULES = ("_generation_job", "_generation_llama", "_generation_table", "_results", "generation")


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of the benchmarks for one test."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module
    for name in MODULES:
        sys.modules.pop(name, None)


def a_job(load: Any, passages: int = 3) -> Any:
    prompts = tuple(f"prompt {i}" for i in range(passages))
    return load("_generation_job").Job(prompts, 2, SamplingParams(max_new_tokens=8))


@dataclass
class FakeContestant:
    name: str
    lengths: list[int]
    settings: dict[str, Any] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)

    def prepare(self) -> None:
        self.log.append("prepare")

    def write(self, job: Any) -> list[int]:
        self.log.append("write")
        return self.lengths

    def close(self) -> None:
        self.log.append("close")


def test_batches_cover_all_rows_once_and_differ_by_one_at_most(load: Any) -> None:
    batches = load("_generation_job").even_batches(50, 16)

    assert [row for batch in batches for row in batch] == list(range(50))
    assert sorted(len(batch) for batch in batches) == [12, 12, 13, 13]


def test_seeds_differ_between_completions_and_rounds_but_not_between_runs(load: Any) -> None:
    job = a_job(load)
    first = [seed for i in range(3) for seed in job.seeds_of(i)]

    assert len(set(first)) == 6
    assert job.seeds_of(1) == a_job(load).seeds_of(1)
    assert job.with_seed(1).seeds_of(0) != job.seeds_of(0)


def test_a_contestant_is_prepared_before_the_clock_and_must_write_everything(load: Any) -> None:
    module = load("_generation_job")
    whole = FakeContestant("whole", [3] * 6)

    tally = module.measure(whole, a_job(load))

    assert (tally.completions, tally.tokens) == (6, 18)
    assert whole.log == ["prepare", "write"]
    with pytest.raises(RuntimeError, match="5 completions of 6"):
        module.measure(FakeContestant("short", [3] * 5), a_job(load))


def test_separate_requests_come_back_to_a_prompt_after_the_slots_are_used(load: Any) -> None:
    job = a_job(load)
    asked = list(load("_generation_llama").requests_of(job, "separate", 2))

    assert [prompt[-1] for prompt, _, _ in asked] == list("010122")
    assert {seed for _, seed, _ in asked} == {s for i in range(3) for s in job.seeds_of(i)}


def test_a_request_together_asks_for_all_completions_of_a_passage(load: Any) -> None:
    asked = list(load("_generation_llama").requests_of(a_job(load), "together", 10))

    assert [(prompt, count) for prompt, _, count in asked] == [(f"prompt {i}", 2) for i in range(3)]


def test_ratios_are_taken_within_a_round(load: Any) -> None:
    tally, bench = load("_generation_job").Tally, load("generation")
    report = bench.Report()

    bench.speeds(
        report,
        {
            "aios": [tally(10, 100, 1.0), tally(10, 100, 2.0)],
            "other": [tally(10, 100, 2.0), tally(10, 100, 4.0)],
        },
    )

    assert report.ratios["aios/other"] == {"median": 2.0, "min": 2.0, "max": 2.0}
    assert report.ratios["aios/other (completions)"]["median"] == 2.0


def test_the_results_stand_between_the_markers_of_the_page(load: Any) -> None:
    table = load("_generation_table")
    spread = {"median": 2.0, "min": 1.5, "max": 2.5}
    names = ("aios", "other")
    document = {
        "date": "2026-01-02T03:04:05+00:00",
        "machine": {"cores": 2, "cpu": "a processor"},
        "versions": {"torch": "2"},
        "job": {
            "passages": 3,
            "candidates": 2,
            "prompt_tokens": 30,
            "rounds": 1,
            "sampling": {"max_new_tokens": 8},
        },
        "settings": {"aios": {"width": 32}, "other": {"rows": 16}},
        "rows": [
            {"name": name, "metric": metric, "unit": "x", **spread}
            for name in names
            for metric in ("generated tokens", "completions")
        ],
        "ratios": {"aios/other": spread},
    }

    page = table.put(f"before {table.BEGIN} old {table.END} after", table.section(document))

    assert page.startswith("before ")
    assert page.endswith(" after")
    assert " old " not in page
    assert "| other | 2 (1.5 to 2.5) | 2 (1.5 to 2.5) | **2 (1.5 to 2.5)** | rows 16 |" in page
    with pytest.raises(ValueError, match="no <!--"):
        table.put("a page", "text")


def test_the_page_has_the_markers(load: Any) -> None:
    page = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    table = load("_generation_table")

    assert page.count(table.BEGIN) == page.count(table.END) == 1


def test_quick_makes_the_job_small_and_searches_nothing(load: Any) -> None:
    asked = load("generation").parse(["--quick", "--passages", "28"])

    assert (asked.rounds, asked.passages, asked.max_new_tokens) == (1, 2, 8)
    assert asked.batch_rows
    assert asked.slots


def test_wrong_options_end_the_program_before_anything_heavy_is_loaded() -> None:
    command = [sys.executable, str(BENCHMARKS / "generation.py"), "--rounds", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert ended.returncode == 2
    assert "give at least 1" in ended.stderr
