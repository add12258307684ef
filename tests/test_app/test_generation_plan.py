"""Estimates: from a timed probe before a run, and from a run's first passages."""

from __future__ import annotations

from pathlib import Path

import pytest

from aios.app.edits.generation_plan import PROBED, EarlyEstimate, describe_estimate, plan_generation
from aios.core.seal.passage_edits import PassageEdits
from aios.core.types import Passage
from tests.test_app.scripted_jobs import make_config, write_passages


def result(seconds: float, *, cached: int = 0, tokens: int = 10) -> PassageEdits:
    passage = Passage.make("A text.")
    return PassageEdits(
        passage, cached=cached, generated=5 - cached, tokens=tokens, seconds=seconds
    )


def test_the_estimate_comes_after_the_first_new_passages_and_scales_them_up() -> None:
    early = EarlyEstimate(100, 5, once_seconds=7.0)
    for _ in range(PROBED - 1):
        assert early.after(result(2.0), reused=False) is None
    found = early.after(result(2.0), reused=False)
    assert found is not None
    assert found.seconds == pytest.approx(207.0)
    assert found.tokens == 1000
    assert found.seconds_low < 207 < found.seconds_high


def test_what_an_earlier_run_has_made_costs_nothing() -> None:
    early = EarlyEstimate(100, 5)
    for _ in range(60):
        assert early.after(result(50.0), reused=True) is None
    estimates = [early.after(result(1.0), reused=False) for _ in range(PROBED)]
    assert estimates[-1] is not None
    assert estimates[-1].seconds == pytest.approx(40.0)


def test_the_share_of_cached_passages_is_taken_to_go_on() -> None:
    early = EarlyEstimate(200, 5)
    for _ in range(PROBED):
        assert early.after(result(0.0, cached=5), reused=False) is None
        last = early.after(result(1.0), reused=False)
    assert last is not None
    assert last.seconds == pytest.approx(100.0)


def test_a_run_that_is_over_by_then_makes_no_estimate() -> None:
    early = EarlyEstimate(PROBED, 5)
    assert [early.after(result(1.0), reused=False) for _ in range(PROBED)] == [None] * PROBED


def test_a_dry_run_times_passages_and_keeps_nothing(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    data = write_passages(tmp_path / "passages.jsonl")
    before = sorted(path.name for path in tmp_path.iterdir())
    plan = plan_generation(config, data, probe=True)
    assert plan.estimate is not None
    assert plan.estimate.tokens > 0
    assert plan.estimate.bytes_output > 0
    assert plan.estimate.bytes_journal > 0
    assert "probed passage" in describe_estimate(plan.estimate)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert plan_generation(config, data).estimate is None
