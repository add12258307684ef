"""Paired statistics: coverage by simulation, known values, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from aios.core.errors import NonFiniteError, UsageError
from aios.core.evaluation.statistics import (
    FloatArray,
    Ratio,
    difference_interval,
    mcnemar,
    relative_change_interval,
    spread,
)

PASSAGES, EACH = 24, 5
CLUSTERS = [f"p{i}" for i in range(PASSAGES) for _ in range(EACH)]


def simulated(rng: np.random.Generator, mean: float, seeds: int, seed_sd: float) -> FloatArray:
    """Per-question losses [S, Q] with effects of passages, seeds and questions."""
    passage = np.repeat(rng.normal(0, 0.3, PASSAGES), EACH)
    own = rng.normal(0, 0.2, (seeds, PASSAGES * EACH))
    values: FloatArray = mean + passage + rng.normal(0, seed_sd, (seeds, 1)) + own
    return values


def coverage(seeds: int, seed_sd: float, clusters: list[str], repetitions: int = 400) -> float:
    """How often the interval of a true relative change of −10 % holds it."""
    rng, hits = np.random.default_rng(7), 0
    tokens = np.ones((seeds, PASSAGES * EACH))
    for repetition in range(repetitions):
        shared = np.repeat(rng.normal(0, 0.5, PASSAGES), EACH)
        control = Ratio(simulated(rng, 3.0, seeds, seed_sd) + shared, tokens)
        treatment = Ratio(simulated(rng, 2.7, seeds, seed_sd) + shared, tokens)
        found = relative_change_interval(treatment, control, clusters, samples=400, seed=repetition)
        hits += found.low <= -0.1 <= found.high
    return hits / repetitions


@pytest.mark.slow
def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    assert 0.90 <= coverage(1, 0.0, CLUSTERS) <= 0.99


@pytest.mark.slow
def test_the_interval_covers_the_truth_for_new_seeds() -> None:
    assert 0.90 <= coverage(5, 0.05, CLUSTERS) <= 0.99


@pytest.mark.slow
def test_ignoring_the_clusters_would_cover_too_rarely() -> None:
    assert coverage(1, 0.0, [str(i) for i in range(len(CLUSTERS))], 150) < 0.85


def test_estimate_is_the_ratio_of_pooled_sums() -> None:
    treatment = Ratio([[1.0, 2.0], [3.0, 2.0]], [[1, 1], [1, 1]])
    control = Ratio([4.0, 8.0], [1, 3])
    found = relative_change_interval(treatment, control, ["a", "b"], samples=50)
    assert found.estimate == pytest.approx(2.0 / 3.0 - 1)
    assert found.low <= found.high
    assert found.confidence == 0.95


def test_tokens_weigh_the_loss() -> None:
    treatment, control = Ratio([1.0, 30.0], [1, 10]), Ratio([2.0, 40.0], [1, 10])
    found = relative_change_interval(treatment, control, ["a", "b"], samples=50)
    assert found.estimate == pytest.approx(31 / 42 - 1)


def test_the_pairing_is_kept() -> None:
    rng = np.random.default_rng(1)
    control = rng.normal(5, 2, 60)
    clusters = [str(i // 3) for i in range(60)]
    found = difference_interval(control - 0.5, control, clusters, samples=300)
    assert (found.low, found.high) == pytest.approx((-0.5, -0.5))


def test_differing_seeds_widen_the_interval() -> None:
    rng = np.random.default_rng(2)
    control = rng.normal(3, 0.1, (3, 60))
    clusters = [str(i // 3) for i in range(60)]
    steady = difference_interval(control - 0.3, control, clusters)
    shifts = np.array([[-0.4], [0.0], [0.4]])
    shaky = difference_interval(control - 0.3 + shifts, control, clusters)
    assert shaky.high - shaky.low > 5 * (steady.high - steady.low)
    assert shaky.estimate == pytest.approx(steady.estimate)


def test_drawing_one_seed_fewer_gives_the_variance_of_the_mean() -> None:
    values = np.array([[1.0], [2.0], [4.0]]) * np.ones((1, 40))
    zeros = np.zeros((1, 40))
    clusters = [str(i) for i in range(40)]
    found = difference_interval(values, zeros, clusters, samples=20_000, confidence=0.5)
    draws = [(a + b) / 2 for a in (1, 2, 4) for b in (1, 2, 4)]
    assert np.var(draws) == pytest.approx(np.var([1, 2, 4], ddof=1) / 3)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(draws, [0.25, 0.75])))


def test_the_arms_may_have_different_numbers_of_seeds() -> None:
    found = difference_interval(np.ones((3, 4)), np.zeros(4), list("aabb"), samples=20)
    assert (found.estimate, found.low, found.high) == (1.0, 1.0, 1.0)


def test_order_of_questions_and_chunks_of_memory_do_not_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(3)
    ours, theirs = rng.normal(2, 1, 30), rng.normal(3, 1, 30)
    clusters = [str(i % 6) for i in range(30)]
    first = difference_interval(ours, theirs, clusters, seed=5, samples=100)
    order = rng.permutation(30)
    again = difference_interval(
        ours[order], theirs[order], [clusters[i] for i in order], seed=5, samples=100
    )
    assert (first.low, first.high) == pytest.approx((again.low, again.high))
    monkeypatch.setattr("aios.core.evaluation.statistics._CELLS_AT_ONCE", 7)
    chunked = difference_interval(ours, theirs, clusters, seed=5, samples=100)
    assert (first.low, first.high) == (chunked.low, chunked.high)


def test_one_passage_is_too_few_for_an_interval() -> None:
    with pytest.raises(UsageError, match="too few"):
        difference_interval([1.0, 2.0], [0.0, 1.0], ["a", "a"])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_no_numbers_are_refused(bad: float) -> None:
    with pytest.raises(NonFiniteError):
        difference_interval([bad, 1.0], [0.0, 1.0], ["a", "b"])


def test_a_control_of_zero_has_no_relative_change() -> None:
    zero = Ratio([0.0, 0.0], [1, 1])
    with pytest.raises(NonFiniteError):
        relative_change_interval(Ratio([1.0, 1.0], [1, 1]), zero, ["a", "b"])


def test_bad_shapes_and_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        difference_interval([1.0], [0.0, 1.0], ["a", "b"])
    with pytest.raises(ValueError, match="not positive"):
        relative_change_interval(Ratio([1, 1], [0, 1]), Ratio([1, 1], [1, 1]), ["a", "b"])
    with pytest.raises(ValueError, match="out of range"):
        difference_interval([1.0, 1.0], [0.0, 1.0], ["a", "b"], confidence=1.0)


def test_mcnemar_known_values() -> None:
    ours = [True] * 8 + [False] * 2 + [True] * 5 + [False] * 5
    theirs = [False] * 8 + [True] * 2 + [True] * 5 + [False] * 5
    found = mcnemar(ours, theirs)
    assert (found.b, found.c) == (8, 2)
    assert found.p_value == pytest.approx(0.109375)
    assert found.statistic == pytest.approx(2.5)


def test_mcnemar_without_disagreement() -> None:
    found = mcnemar([True, False], [True, False])
    assert (found.b, found.c, found.statistic, found.p_value) == (0, 0, 0.0, 1.0)


def test_mcnemar_of_equal_disagreement_is_one() -> None:
    assert mcnemar([True, False], [False, True]).p_value == 1.0


def test_mcnemar_switches_to_chi_squared_without_a_jump() -> None:
    def of(b: int, c: int) -> float:
        return mcnemar([True] * b + [False] * c, [False] * b + [True] * c).p_value

    assert of(540, 460) == pytest.approx(of(540, 461), rel=0.1)
    exact = 2 * sum(math.comb(1100, k) for k in range(501)) / 2**1100
    assert of(600, 500) == pytest.approx(exact, rel=0.02)


def test_mcnemar_takes_the_majority_over_seeds_and_a_tie_as_wrong() -> None:
    ours = [[True, True, False], [True, False, False], [False, True, False]]
    theirs = [[True, False, False], [False, True, False]]
    found = mcnemar(ours, theirs)
    assert (found.b, found.c) == (2, 0)


def test_mcnemar_refuses_different_questions() -> None:
    with pytest.raises(ValueError, match="questions"):
        mcnemar([True], [True, False])


def test_spread() -> None:
    found = spread([1.0, 2.0, 3.0])
    assert (found.mean, found.sd, found.min, found.max) == (2.0, 1.0, 1.0, 3.0)
    assert spread([4.0]).sd is None
    with pytest.raises(ValueError, match="no values"):
        spread([])
