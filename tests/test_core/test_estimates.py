"""Estimates from a probe: their value, their interval, and the edges."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import pytest

from aios.core.estimates import (
    Estimate,
    Probe,
    ProbedPassage,
    compare,
    estimate,
    spread_indices,
)


@dataclass(frozen=True)
class Plan:
    """The shape of `aios.app.edits.generation_plan.GeneratePlan`."""

    passages: int
    candidates: int
    cached: int = 0
    prompt_tokens: int = 0


def probe(*seconds: float, prompts: tuple[int, ...] = (), wall: float | None = None) -> Probe:
    lengths = prompts or (0,) * len(seconds)
    return Probe(
        tuple(
            ProbedPassage(s, round(100 * s), length, 50, 40, 30)
            for s, length in zip(seconds, lengths, strict=True)
        ),
        sum(seconds) if wall is None else wall,
    )


def relative_width(found: Estimate) -> float:
    return found.seconds_high / found.seconds - 1


def test_the_mean_passage_times_the_passages() -> None:
    found = estimate(Plan(100, 500), probe(2.0, 4.0, 3.0, 3.0))
    assert found.seconds == pytest.approx(300)
    assert found.tokens == 30_000
    assert (found.bytes_output, found.bytes_cache, found.bytes_journal) == (5000, 4000, 3000)
    assert found.seconds_low < 300 < found.seconds_high
    assert found.basis == "4 probed passages"


def test_times_in_flight_together_are_scaled_to_the_wall_time() -> None:
    together = estimate(Plan(100, 500), probe(4.0, 4.0, 4.0, 4.0, wall=4.0))
    assert together.seconds == pytest.approx(100)


def test_passages_without_times_of_their_own_share_the_wall_time() -> None:
    assert estimate(Plan(10, 10), probe(0.0, 0.0, wall=6.0)).seconds == pytest.approx(30)


def test_one_passage_gives_from_half_to_double() -> None:
    found = estimate(Plan(100, 500), probe(3.0))
    assert (found.seconds_low, found.seconds, found.seconds_high) == pytest.approx((150, 300, 600))
    assert found.basis == "1 probed passage"


def test_equal_passages_still_leave_a_margin() -> None:
    found = estimate(Plan(1000, 1000), probe(2.0, 2.0, 2.0, 2.0))
    assert found.seconds == pytest.approx(2000)
    assert relative_width(found) == pytest.approx(0.1)


def test_two_unequal_passages_give_a_wide_interval_that_stays_above_zero() -> None:
    found = estimate(Plan(1000, 1000), probe(0.1, 10.0))
    assert 0 < found.seconds_low < found.seconds / 2
    assert relative_width(found) > 1
    assert relative_width(found) < 9.01


def test_a_probe_of_the_whole_file_leaves_the_least_margin() -> None:
    found = estimate(Plan(4, 20), probe(1.0, 9.0, 2.0, 5.0))
    assert relative_width(found) == pytest.approx(0.1)


def test_what_the_cache_holds_takes_only_its_own_time() -> None:
    everything = estimate(Plan(100, 500, cached=500), Probe((), 0.0, 3.0, cached_seconds=0.02))
    assert everything.seconds == pytest.approx(5)
    assert (everything.tokens, everything.basis) == (0, "all from the cache")
    assert everything.seconds_high == pytest.approx(5.5)
    half = estimate(Plan(100, 500, cached=250), probe(2.0, 2.0))
    assert half.seconds == pytest.approx(100)
    assert half.bytes_cache == 2000
    assert half.bytes_output == 5000


def test_without_a_probed_passage_the_upper_end_is_open() -> None:
    found = estimate(Plan(10, 50), Probe((), 0.0, once_seconds=2.0))
    assert found.seconds == pytest.approx(2.0)
    assert math.isinf(found.seconds_high)
    assert found.basis == "no passage was probed"


def test_no_passages_cost_nothing_but_the_start() -> None:
    assert estimate(Plan(0, 0), Probe((), 0.0, once_seconds=4.0)).seconds == pytest.approx(4.0)


def test_what_is_done_once_is_added_once() -> None:
    timed = Probe(probe(2.0, 2.0).passages, 4.0, once_seconds=30.0)
    assert estimate(Plan(10, 10), timed).seconds == pytest.approx(50)


def test_prompt_lengths_correct_a_probe_of_short_passages() -> None:
    prompts = (100, 110, 120, 130, 140, 150)
    seconds = tuple(0.01 * length for length in prompts)
    plan = Plan(1000, 1000, prompt_tokens=300 * 1000)
    found = estimate(plan, probe(*seconds, prompts=prompts))
    assert found.seconds == pytest.approx(3000)
    assert found.basis.endswith("and the length of the prompts")


def test_prompt_lengths_that_explain_nothing_are_left_out() -> None:
    found = estimate(
        Plan(1000, 1000, prompt_tokens=900_000),
        probe(3.0, 1.0, 2.0, 1.0, 3.0, 2.0, prompts=(100, 110, 120, 130, 140, 120)),
    )
    assert found.seconds == pytest.approx(2000)
    assert found.basis == "6 probed passages"


def test_huge_files_are_plain_arithmetic() -> None:
    found = estimate(Plan(10**9, 5 * 10**9), probe(1.0, 1.5, 2.0))
    assert found.seconds == pytest.approx(1.5e9)
    assert found.tokens == 150 * 10**9
    assert math.isfinite(found.seconds_high)


def test_nine_of_ten_intervals_hold_the_truth() -> None:
    source = random.Random(7)
    held = 0
    for _ in range(300):
        costs = [source.gammavariate(4, 0.5) for _ in range(400)]
        chosen = [costs[i] for i in spread_indices(400, 8)]
        found = estimate(Plan(400, 400), probe(*chosen))
        held += found.seconds_low <= sum(costs) <= found.seconds_high
    assert held / 300 > 0.86


def test_probed_passages_are_spread_over_the_file() -> None:
    assert spread_indices(100, 4) == (12, 37, 62, 87)
    assert spread_indices(3, 8) == (0, 1, 2)
    assert spread_indices(0, 5) == ()
    assert spread_indices(10, 0) == ()


def made(low: float, seconds: float, high: float) -> Estimate:
    return Estimate(low, seconds, high, 0, 0, 0, 0, "")


@pytest.mark.parametrize(
    ("found", "actual", "line"),
    [
        (made(540, 720, 960), 780, "estimated 12 min (9–16), took 13 min"),
        (made(33, 50, 80), 47, "estimated 50 s (33–80), took 47 s"),
        (made(2.0, 4.0, 8.0), 3.2, "estimated 4.0 s (2.0–8.0), took 3.2 s"),
        (made(7200, 10800, 14400), 9000, "estimated 3.0 h (2.0–4.0), took 2.5 h"),
        (made(1, 2, math.inf), 30, "estimated 2.0 s (1.0–∞), took 30 s"),
        (made(150, 300, 600), 45, "estimated 5.0 min (2.5–10.0), took 45 s"),
    ],
)
def test_estimate_and_actual_stand_in_one_line(found: Estimate, actual: float, line: str) -> None:
    assert compare(found, actual) == line
