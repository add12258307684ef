"""Seconds of a job from pieces of earlier work."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest

from aios.core.estimates import LEAST_MARGIN, SINGLE_MARGIN, describe_range
from aios.core.restem_workload import Span
from aios.core.training_costs import (
    ONCE,
    PARTS,
    Manner,
    Paces,
    RunCosts,
    estimate,
    missing,
    pace,
    paces_of,
)
from aios.core.training_work import ArmWork, TrainingWork

MANNER = Manner("model on this machine", "cloze, 1", "rank 8, batches of 4", "16 tokens")
RUN = RunCosts(
    MANNER,
    written=((10.0, 5.0),),
    trained=((1000.0, 10.0), (1000.0, 10.0)),
    scored=((500.0, 1.0), (500.0, 1.0)),
    answered=((20.0, 4.0), (20.0, 4.0)),
    once_seconds=7.0,
    peak_memory_bytes=10**9,
    characters_per_token=4.5,
    edit_tokens=(2.0, 2.0),
    edit_items=(3.0, 3.0),
)
WORK = TrainingWork(
    Span.exactly(4.0),
    (
        ArmWork("base", 1, Span(0, 0, 0), Span.exactly(100), 10),
        ArmWork("passage", 2, Span.exactly(3000), Span.exactly(600), 10),
    ),
)


def test_a_single_piece_is_half_to_double() -> None:
    found = pace([(100.0, 5.0)])
    assert found.middle == pytest.approx(0.05)
    assert (found.low, found.high) == pytest.approx((0.025, 0.1))


def test_equal_pieces_are_a_tenth_off_at_least() -> None:
    found = pace([(100.0, 5.0)] * 9)
    assert math.log(found.high / found.middle) == pytest.approx(LEAST_MARGIN)


def test_the_longest_piece_counts_most_in_the_middle() -> None:
    assert pace([(1.0, 1.0), (99.0, 9.0)]).middle == pytest.approx(0.1)


def test_few_pieces_are_half_to_double_or_as_far_as_they_lie_apart() -> None:
    near = pace([(100.0, 5.0), (100.0, 7.0)])
    assert near.high / near.middle <= math.exp(SINGLE_MARGIN) + 1e-9
    far = pace([(100.0, 1.0), (100.0, 20.0)])
    assert far.low == pytest.approx(0.01)


@pytest.mark.parametrize("count", [3, 9, 30])
def test_nine_of_ten_further_pieces_lie_in_the_range(count: int) -> None:
    rng = random.Random(count)
    hits = 0
    for _ in range(400):
        *pieces, last = [(100.0, 5 * math.exp(rng.gauss(0, 0.15))) for _ in range(count + 1)]
        found = pace(pieces)
        hits += found.low <= last[1] / 100 <= found.high
    assert hits / 400 > 0.86


def test_time_is_work_at_the_pace_of_earlier_runs() -> None:
    found = estimate(WORK, paces_of([RUN], MANNER))
    assert found is not None
    middles = {part: span.middle for part, span in found.parts.items()}
    assert tuple(middles) == (*PARTS, ONCE)
    expected = {
        "self-edits": 4 * 0.5,
        "training": 6000 * 0.01,
        "validation": 1300 * 0.002,
        "answers": 30 * 0.2,
        ONCE: 7.0,
    }
    assert middles == pytest.approx(expected)
    assert found.seconds.middle == pytest.approx(sum(expected.values()))
    assert found.seconds.low < found.seconds.middle < found.seconds.high
    assert found.arms["base"].middle == pytest.approx(0.2 + 2.0)
    assert found.arms["passage"].middle == pytest.approx(30 + 1.2 + 2.0)


@pytest.mark.parametrize(
    ("change", "lacks"),
    [
        ({"where": "another machine"}, PARTS),
        ({"writing": "rewrite"}, ("self-edits",)),
        ({"training": "rank 64"}, ("training",)),
        ({"answering": "99 tokens"}, ("answers",)),
    ],
)
def test_a_pace_counts_only_for_work_of_the_same_manner(
    change: dict[str, str], lacks: tuple[str, ...]
) -> None:
    paces = paces_of([replace(RUN, manner=replace(MANNER, **change))], MANNER)
    assert missing(WORK, paces) == lacks
    assert estimate(WORK, paces) is None
    whole = paces.filled(paces_of([RUN], MANNER))
    assert missing(WORK, whole) == ()


def test_what_is_not_to_be_done_needs_no_pace() -> None:
    paces = paces_of([replace(RUN, written=())], MANNER)
    assert estimate(WORK, paces) is None
    assert estimate(replace(WORK, written=Span(0, 0, 0)), paces) is not None


def test_memory_is_the_most_of_runs_that_trained_likewise() -> None:
    small = replace(RUN, peak_memory_bytes=5)
    other = replace(RUN, peak_memory_bytes=9**12, manner=replace(MANNER, training="rank 64"))
    assert paces_of([small, RUN, other], MANNER).peak_memory_bytes == 10**9
    assert paces_of([other], MANNER).peak_memory_bytes is None
    filled = paces_of([other], MANNER).filled(Paces({}, peak_memory_bytes=7, device="cuda"))
    assert (filled.peak_memory_bytes, filled.device) == (7, "cuda")


def test_runs_that_helped_are_counted_once() -> None:
    other = replace(RUN, manner=Manner("elsewhere", "x", "y", "z"))
    found = paces_of([RUN, RUN, other], MANNER)
    assert found.runs == 1  # the same run twice
    assert paces_of([RUN, replace(RUN, once_seconds=8.0)], MANNER).runs == 2
    assert paces_of([], MANNER) == Paces({})


@pytest.mark.parametrize(
    "change",
    [
        {"trained": ((0.0, 1.0),)},
        {"trained": ((1.0, -1.0),)},
        {"scored": ((math.nan, 1.0),)},
        {"written": ((math.inf, 1.0),)},
        {"answered": ((1.0, 1.0),) * 65},
        {"once_seconds": -1.0},
        {"peak_memory_bytes": -1},
        {"edit_tokens": (math.nan,)},
        {"characters_per_token": 0.0},
    ],
)
def test_impossible_measurements_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"piece|number|characters"):
        replace(RUN, **change)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (360, 540, "6.0 to 9.0 min"),
        (61, 90, "61 to 90 s"),
        (600, 1500, "10 to 25 min"),
        (9000, 36000, "2.5 to 10.0 h"),
        (2.01, 2.04, "2.0 s"),
        (60, math.inf, "60 s at least"),
    ],
)
def test_a_range_is_told_in_one_unit(low: float, high: float, words: str) -> None:
    assert describe_range(low, high) == words
