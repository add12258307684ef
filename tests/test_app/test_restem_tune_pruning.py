"""When a trial of a tuning is stopped: the permutation test and what feeds it."""

from __future__ import annotations

import random

import pytest

from aios.app.restem.tuning.pruning import HeldOutWatch, chance_of_worse
from aios.core.events import CandidateTried, StageProgress

ORDER = ["a", "b", "c", "d", "e", "f"]


@pytest.mark.parametrize(
    ("differences", "chance"),
    [
        ([], 1.0),
        ([-1.0], 0.5),
        ([-1.0] * 4, 1 / 16),
        ([1.0] * 4, 1.0),
        ([0.0] * 5, 1.0),
        ([-2.0, 1.0], 0.5),
        ([-3.0, -2.0, 1.0], 2 / 8),
    ],
)
def test_the_chance_is_the_share_of_flips_that_are_as_low(
    differences: list[float], chance: float
) -> None:
    assert chance_of_worse(differences) == pytest.approx(chance)


def test_many_differences_are_judged_alike_by_the_approximation() -> None:
    rng = random.Random(1)
    values = [rng.gauss(-0.3, 1.0) for _ in range(14)]
    exact = chance_of_worse(values)
    assert chance_of_worse([*values, 0.0]) == pytest.approx(exact, abs=0.02)
    assert chance_of_worse([0.0] * 20) == 0.5
    assert chance_of_worse([-1.0] * 20) < 1e-4


def test_runs_that_are_alike_are_seldom_stopped() -> None:
    rng = random.Random(2)
    stopped = sum(chance_of_worse([rng.gauss(0, 1) for _ in range(8)]) < 0.1 for _ in range(400))
    assert 0.05 < stopped / 400 < 0.15


def tried(passage: str, improvement: float | None, number: int = 1) -> CandidateTried:
    return CandidateTried(number, True, passage, "rewrite", 0, 1, improvement)


def feed(watch: HeldOutWatch, values: dict[str, float], number: int = 1, done: int = 0) -> None:
    for done, (passage, value) in enumerate(values.items(), start=done + 1):  # noqa: B020
        for _ in range(2):
            watch(tried(passage, value, number))
        watch(StageProgress(f"round {number}: held-out", done))


def test_a_run_is_stopped_once_it_is_worse_on_enough_passages() -> None:
    watch = HeldOutWatch(ORDER, 2, [dict.fromkeys(ORDER, 1.0)])
    feed(watch, dict.fromkeys(ORDER[:3], 0.5))
    assert [watch.worse] == [False]
    feed(watch, {"d": 0.5}, done=3)
    assert watch.worse
    assert watch.course == [(1, 0.5), (2, 0.5), (3, 0.5), (4, 0.5)]
    assert watch.rounds == (dict.fromkeys(ORDER[:4], 0.5),)


def test_a_better_run_and_one_without_a_rival_go_on() -> None:
    for rival in ([dict.fromkeys(ORDER, 0.1)], []):
        watch = HeldOutWatch(ORDER, 2, rival)
        feed(watch, dict.fromkeys(ORDER, 0.5))
        assert not watch.worse


def test_rounds_are_compared_with_the_same_round() -> None:
    watch = HeldOutWatch(ORDER, 2, [dict.fromkeys(ORDER, 0.1), dict.fromkeys(ORDER, 2.0)])
    feed(watch, dict.fromkeys(ORDER, 1.0), 1)
    assert [watch.worse] == [False]
    feed(watch, dict.fromkeys(ORDER, 1.0), 2)
    assert watch.worse
    assert [step for step, _ in watch.course] == list(range(1, 13))


def test_what_the_filter_took_counts_nothing_and_what_failed_does_not_count() -> None:
    watch = HeldOutWatch(ORDER, 2, [])
    watch(tried("a", 1.0))  # the other one of "a" was filtered
    watch(tried("b", 1.0))
    watch(tried("b", None))
    watch(tried("d", None))
    watch(tried("d", None))
    watch(StageProgress("round 1: held-out", 4))
    assert watch.rounds == ({"a": 0.5, "b": 1.0, "c": 0.0},)


def test_the_untrained_generator_and_the_training_passages_are_not_followed() -> None:
    watch = HeldOutWatch(ORDER, 2, [dict.fromkeys(ORDER, 9.0)])
    feed(watch, dict.fromkeys(ORDER, 0.0), 0)
    watch(CandidateTried(1, False, "a", "rewrite", 0, 1, 0.0))
    watch(StageProgress("round 1: try", 6))
    assert watch.rounds == ()
    assert not watch.worse
