"""How reliable rewards are: known tables, planted noise, and tables that say nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aios.core.errors import NonFiniteError, UsageError
from aios.core.seal.reliability import Reliability, estimate_noise, report

Table = dict[str, dict[int, list[float]]]

# Six targets rated by four judges: the worked example of Shrout & Fleiss (1979), tables 2 and 4.
SHROUT_FLEISS: list[list[float]] = [
    [9, 2, 5, 8],
    [6, 1, 3, 2],
    [8, 4, 6, 8],
    [7, 1, 2, 6],
    [10, 5, 6, 9],
    [6, 2, 4, 7],
]


def drawn(
    seed: int,
    *,
    passages: int = 200,
    candidates: int = 5,
    repeats: int = 3,
    effect: float = 0.0,
    noise: float = 1.0,
    passage_effect: float = 2.0,
) -> Table:
    """Rewards with planted standard deviations of passages, candidates and repeats."""
    rng = np.random.default_rng(seed)
    levels = passage_effect * rng.standard_normal((passages, 1, 1))
    true = effect * rng.standard_normal((passages, candidates, 1))
    rewards = levels + true + noise * rng.standard_normal((passages, candidates, repeats))
    return {
        f"passage-{p}": {c: row.tolist() for c, row in enumerate(table)}
        for p, table in enumerate(rewards)
    }


def test_the_intraclass_correlation_is_that_of_the_published_example() -> None:
    result = report({"p": dict(enumerate(SHROUT_FLEISS))})
    assert result.raw.icc == pytest.approx(0.17, abs=0.005)
    assert result.raw.icc_mean == pytest.approx(0.44, abs=0.005)
    assert result.within.icc == pytest.approx(result.raw.icc)  # a single passage
    assert result.repeats == 4
    assert result.noise is not None
    assert result.noise.sd == pytest.approx(math.sqrt(6.26), abs=0.002)
    assert (result.noise.n, result.noise.repeats) == (6, 4)
    assert result.standard_error == pytest.approx(result.noise.sd / 2)
    assert result.interval is None  # one passage cannot be resampled


def test_two_passages_worked_by_hand() -> None:
    result = report({"p": {0: [0.0, 0.2], 1: [0.6, 0.8]}, "q": {0: [5.0, 5.2], 1: [5.2, 5.0]}})
    # Within: MSB = (0.36 + 0) / 2, MSW = 4 * 0.02 / 4.
    assert result.within.icc == pytest.approx((0.18 - 0.02) / (0.18 + 0.02))
    assert result.within.icc_mean == pytest.approx((0.18 - 0.02) / 0.18)
    assert result.tied_share == 0.5
    assert result.chance_picks == 0.5
    assert result.raw.icc is not None
    assert result.raw.icc > 0.99


@pytest.mark.slow
@settings(max_examples=12)
@given(st.integers(0, 2**32 - 1))
def test_pure_noise_has_no_reliability_however_much_passages_differ(seed: int) -> None:
    result = report(drawn(seed))
    assert result.within.icc == pytest.approx(0, abs=0.13)
    assert result.within.pearson == pytest.approx(0, abs=0.13)
    assert result.within.spearman == pytest.approx(0, abs=0.13)
    assert result.raw.icc is not None
    assert result.raw.icc > 0.6
    assert result.noise is not None
    assert result.noise.sd == pytest.approx(1, abs=0.12)


@pytest.mark.slow
def test_the_estimate_within_passages_is_unbiased_under_pure_noise() -> None:
    found = [report(drawn(seed, passages=20, candidates=3)).within.icc for seed in range(150)]
    assert np.mean([icc for icc in found if icc is not None]) == pytest.approx(0, abs=0.03)


@pytest.mark.slow
@settings(max_examples=12)
@given(st.integers(0, 2**32 - 1), st.floats(0.5, 3))
def test_planted_effects_are_found(seed: int, effect: float) -> None:
    result = report(drawn(seed, effect=effect))
    true = effect**2 / (effect**2 + 1)
    assert result.within.icc == pytest.approx(true, abs=0.13)
    assert result.within.pearson == pytest.approx(true, abs=0.13)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(2, 6))
def test_without_noise_reliability_is_perfect(seed: int, repeats: int, candidates: int) -> None:
    table = drawn(seed, passages=8, candidates=candidates, repeats=repeats, effect=1.0, noise=0.0)
    result = report(table)
    assert result.within.icc == pytest.approx(1)
    assert result.within.icc_mean == pytest.approx(1)
    assert result.within.pearson == pytest.approx(1)
    assert result.correct_picks == 1
    assert result.gain_share == pytest.approx(1)
    assert result.interval == pytest.approx((1, 1))
    assert result.noise is not None
    assert result.noise.sd == pytest.approx(0, abs=1e-9)


rewards = st.floats(-100, 100).map(lambda x: round(x, 3))
tables = st.dictionaries(
    st.text(max_size=3),
    st.dictionaries(st.integers(0, 9), st.lists(rewards, max_size=4), max_size=4),
    max_size=8,
).filter(lambda table: any(r for candidates in table.values() for r in candidates.values()))


def numbers(result: Reliability) -> list[float]:
    values = [result.standard_error, result.tied_share, result.correct_picks, result.gain_share]
    for agreement in (result.within, result.raw):
        values += [agreement.icc, agreement.icc_mean, agreement.pearson, agreement.spearman]
    return [value for value in values if value is not None]


@settings(max_examples=60)
@given(tables)
def test_any_table_gives_finite_numbers_or_none(table: Table) -> None:
    result = report(table)
    assert all(math.isfinite(value) for value in numbers(result))
    for value in (result.within.icc, result.raw.icc, result.within.pearson, result.raw.spearman):
        assert value is None or -1 - 1e-6 <= value <= 1 + 1e-6
    assert result.rewards == sum(len(r) for c in table.values() for r in c.values())
    sentence = result.describe()
    assert sentence.endswith(".")
    assert "nan" not in sentence


@settings(max_examples=40)
@given(tables, st.floats(0.5, 20), st.lists(st.floats(-5, 5), min_size=8, max_size=8))
def test_agreement_within_passages_ignores_their_level_and_the_scale(
    table: Table, scale: float, levels: list[float]
) -> None:
    moved = {
        passage: {c: [scale * r + levels[i] for r in repeats] for c, repeats in candidates.items()}
        for i, (passage, candidates) in enumerate(table.items())
    }
    one, other = report(table).within, report(moved).within
    assert (one.icc is None) == (other.icc is None)
    if one.icc is not None:
        assert other.icc == pytest.approx(one.icc, abs=1e-4)


def test_the_order_of_passages_and_candidates_does_not_matter() -> None:
    table = drawn(3, passages=6, effect=1.0)
    turned = {p: dict(reversed(list(c.items()))) for p, c in reversed(list(table.items()))}
    one, other = report(table), report(turned)
    assert numbers(other) == pytest.approx(numbers(one))


def test_unequal_numbers_of_repeats_and_candidates_keep_the_estimate_right() -> None:
    rng = np.random.default_rng(0)
    table: Table = {}
    for passage, candidates in drawn(1, passages=600, repeats=5, effect=1.0).items():
        kept = list(candidates.items())[: rng.integers(1, 6)]
        table[passage] = {c: repeats[: rng.integers(1, 6)] for c, repeats in kept}
    result = report(table)
    assert result.within.icc == pytest.approx(0.5, abs=0.06)
    assert result.noise is not None
    assert result.noise.sd == pytest.approx(1, abs=0.06)
    assert 2 < result.repeats < 4


def test_one_repeat_only_says_nothing_of_reliability() -> None:
    result = report(drawn(0, passages=6, repeats=1))
    assert result.noise is None
    assert result.standard_error is None
    assert result.within == result.raw
    assert result.within.icc is result.within.pearson is None
    assert result.correct_picks is None
    assert result.tied_share == 0
    assert "not known" in result.describe()
    assert estimate_noise({"p": {0: [1.0], 1: [2.0]}}) is None


def test_one_candidate_a_passage_leaves_no_choice_to_measure() -> None:
    result = report({f"p{i}": {0: [float(i), i + 0.5, i - 0.5]} for i in range(6)})
    assert result.within.icc is None
    assert result.tied_share is None
    assert result.raw.icc is not None
    assert result.noise is not None
    assert "cannot be computed" in result.describe()


def test_rewards_that_are_all_equal_have_no_correlation() -> None:
    result = report({f"p{i}": {c: [1.0, 1.0] for c in range(3)} for i in range(6)})
    assert result.within.icc is result.raw.icc is result.within.pearson is None
    assert result.tied_share == 1
    assert result.noise is not None
    assert result.noise.sd == 0


def test_candidates_and_passages_without_a_reward_are_left_out() -> None:
    table: Table = {"p": {0: [0.0, 1.0], 1: [1.0, 2.0], 2: []}, "q": {0: []}}
    result = report(table)
    assert (result.passages, result.candidates, result.rewards) == (1, 2, 4)


def test_ties_are_of_means_up_to_rounding() -> None:
    result = report({"p": {0: [0.1, 0.2, 0.3], 1: [0.2, 0.2, 0.2], 2: [0.0, 0.0, 0.0]}})
    assert result.tied_share == 1


def test_spearman_sees_an_order_that_pearson_does_not() -> None:
    repeats = [[float(x), math.exp(3 * x)] for x in range(6)]
    result = report({"p": dict(enumerate(repeats))})
    assert result.within.spearman == pytest.approx(1)
    assert result.within.pearson is not None
    assert result.within.pearson < 0.8


def test_expected_picks_lie_between_chance_and_certainty() -> None:
    result = report(drawn(5, effect=0.5))
    assert result.chance_picks == pytest.approx(0.2)
    assert result.correct_picks is not None
    assert 0.3 < result.correct_picks < 0.7
    assert result.within.icc_mean is not None
    assert result.gain_share == pytest.approx(math.sqrt(result.within.icc_mean))
    # What was planted says the same: how often the best mean has the best true reward.
    rng = np.random.default_rng(9)
    true = 0.5 * rng.standard_normal((20_000, 5))
    means = true + rng.standard_normal((20_000, 5)) / math.sqrt(3)
    share = (true.argmax(axis=1) == means.argmax(axis=1)).mean()
    assert result.correct_picks == pytest.approx(share, abs=0.08)


def test_the_interval_covers_the_estimate_and_narrows_with_passages() -> None:
    few, many = report(drawn(0, passages=10, effect=1)), report(drawn(0, passages=300, effect=1))
    for result in (few, many):
        assert result.interval is not None
        assert result.within.icc is not None
        assert result.interval[0] < result.within.icc < result.interval[1]
    assert few.interval is not None
    assert many.interval is not None
    assert many.interval[1] - many.interval[0] < (few.interval[1] - few.interval[0]) / 2


def test_noise_alone_is_that_of_the_report() -> None:
    table = drawn(0, passages=6)
    assert estimate_noise(table) == report(table).noise


def test_the_sentence_gives_the_figures() -> None:
    result = report(drawn(1, effect=1.0))
    sentence = result.describe()
    assert result.within.icc is not None
    assert f"ICC {result.within.icc:.2f}" in sentence
    assert "20% by chance" in sentence
    assert sentence.count(". ") == 0


def test_empty_tables_and_numbers_that_are_none_are_refused() -> None:
    tables: list[Table] = [{}, {"p": {}}, {"p": {0: []}}]
    for empty in tables:
        with pytest.raises(UsageError, match="no rewards"):
            report(empty)
    with pytest.raises(NonFiniteError, match="passage p, candidate 3"):
        report({"p": {3: [0.0, math.nan]}})
