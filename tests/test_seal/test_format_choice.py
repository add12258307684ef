"""The choice of the format: dealing candidates to arms, and moving shares to what pays."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aios.core.restem import Tried, TriedPassage
from aios.core.seal.format_choice import arm_reports, deal, even_shares, next_shares
from aios.core.trials import Reward
from aios.core.types import Failure, SelfEdit

ARMS = ("cloze", "implications", "rewrite", "self-qa")


def tried(
    arm: str, gain: float | None, *, tokens: int = 100, trained: int = 400, index: int = 0
) -> Tried:
    """A candidate; with `gain` None all of its trials failed."""
    edit = SelfEdit("p", arm, index, (f"{arm} {index}",), tokens=tokens)
    if gain is None:
        return Tried(edit, None, train_tokens=trained, failures=(Failure("train", "t", "lost"),))
    value = float(gain > 0.1)
    reward = Reward(value, 3.0, 3.0 - gain, 5, "logprob", 0.1, None, "loss", "auto", gain)
    return Tried(edit, reward, (gain,), 0.0, trained)


def passage(*candidates: Tried, name: str = "p") -> TriedPassage:
    return TriedPassage(name, candidates, len(candidates), len(candidates), 0, 3.0, 2.9)


def round_of(gains: Mapping[str, list[float | None]], **kw: int) -> list[TriedPassage]:
    return [passage(*(tried(arm, gain, **kw) for arm, row in gains.items() for gain in row))]


def counts(passages: list[TriedPassage]) -> dict[str, int]:
    return dict(Counter(c.edit.strategy for p in passages for c in p.candidates))


@st.composite
def some_shares(draw: st.DrawFn) -> dict[str, float]:
    weights = draw(st.lists(st.integers(0, 1000), min_size=1, max_size=7).filter(any))
    return {f"arm{n}": weight / sum(weights) for n, weight in enumerate(weights)}


# ------------------------------------------------------------ even shares and dealing


def test_even_shares_are_equal_and_sum_to_one() -> None:
    assert even_shares(["a", "b", "c", "d"]) == {"a": 0.25, "b": 0.25, "c": 0.25, "d": 0.25}


@pytest.mark.parametrize("arms", [[], ["a", "a"]])
def test_arms_are_named_each_once(arms: list[str]) -> None:
    with pytest.raises(ValueError, match="each once"):
        even_shares(arms)


@given(some_shares(), st.integers(0, 30), st.integers(1, 12), st.integers(0, 2**63))
def test_dealing_is_exact_and_as_even_as_the_totals_allow(
    shares: dict[str, float], size: int, candidates: int, seed: int
) -> None:
    names = [f"p{n}" for n in range(size)]
    hands = deal(shares, names, candidates, seed)
    assert list(hands) == names
    totals: Counter[str] = Counter()
    for hand in hands.values():
        assert sum(hand.values()) == candidates
        assert all(count > 0 for count in hand.values())
        totals.update(hand)
    for arm in shares:
        mine = [hand.get(arm, 0) for hand in hands.values()]
        assert not mine or max(mine) - min(mine) <= 1
    quotas = {arm: share * candidates * size for arm, share in shares.items()}
    over = {arm: totals[arm] - quota for arm, quota in quotas.items()}
    assert all(abs(surplus) < 1 for surplus in over.values())
    # by largest remainder: none that was rounded down had a larger one than one rounded up
    up = [1 - surplus for surplus in over.values() if surplus > 1e-6]
    down = [-surplus for surplus in over.values() if surplus < -1e-6]
    assert not (up and down) or min(up) >= max(down) - 1e-6


@given(some_shares(), st.integers(1, 20), st.integers(1, 8), st.integers(0, 2**63), st.randoms())
def test_dealing_depends_on_the_seed_and_not_on_any_order(
    shares: dict[str, float], size: int, candidates: int, seed: int, rng: object
) -> None:
    names = [f"p{n}" for n in range(size)]
    turned = dict(reversed(list(shares.items())))
    first = deal(shares, names, candidates, seed)
    assert first == deal(shares, names, candidates, seed)
    assert first == deal(turned, names[::-1], candidates, seed)


def test_another_seed_gives_the_odd_candidates_to_other_passages() -> None:
    names = [f"p{n}" for n in range(20)]
    dealt = [deal({"a": 0.9, "b": 0.1}, names, 5, seed) for seed in range(8)]
    with_b = {tuple(name for name, hand in one.items() if "b" in hand) for one in dealt}
    assert all(len(names) == 10 for names in with_b)
    assert len(with_b) > 1


def test_no_arm_always_gets_the_odd_candidate() -> None:
    takers = {
        arm
        for seed in range(20)
        for arm, count in deal(even_shares(["a", "b"]), ["p"], 3, seed)["p"].items()
        if count == 2
    }
    assert takers == {"a", "b"}


def test_an_arm_without_a_candidate_is_left_out() -> None:
    assert deal({"a": 1.0, "b": 0.0}, ["p"], 5, 0) == {"p": {"a": 5}}


def test_enough_arms_make_all_candidates_of_a_passage_differ() -> None:
    hands = deal(even_shares(["a", "b", "c", "d", "e"]), ["p", "q", "r"], 5, 3)
    assert hands == dict.fromkeys("pqr", dict.fromkeys("abcde", 1))


@pytest.mark.parametrize(
    ("shares", "passages", "candidates"),
    [
        ({"a": 0.5, "b": 0.4}, ["p"], 1),
        ({"a": 1.5, "b": -0.5}, ["p"], 1),
        ({"a": math.nan}, ["p"], 1),
        ({}, ["p"], 1),
        ({"a": 1.0}, ["p", "p"], 1),
        ({"a": 1.0}, ["p"], 0),
    ],
)
def test_what_cannot_be_dealt_is_refused(
    shares: dict[str, float], passages: list[str], candidates: int
) -> None:
    with pytest.raises(ValueError, match=r"shares|deal"):
        deal(shares, passages, candidates, 0)


# ------------------------------------------------------------ shares follow what pays


@given(
    st.lists(
        st.lists(st.none() | st.floats(-3, 3, allow_nan=False), max_size=6),
        min_size=1,
        max_size=4,
    ),
    st.floats(0, 1),
    st.integers(0, 3),
    st.integers(0, 300),
)
@settings(max_examples=200)
def test_shares_sum_to_one_and_keep_the_floor(
    rows: list[list[float | None]], floor: float, lost: int, tokens: int
) -> None:
    gains = dict(zip(ARMS, rows, strict=False))
    shares = even_shares(list(gains))
    passages = round_of(gains, tokens=tokens, trained=2 * tokens)
    asked = {arm: len(row) + lost for arm, row in gains.items()}
    found = next_shares(passages, asked, shares, floor=floor)
    assert list(found) == list(shares)
    assert math.isclose(sum(found.values()), 1, abs_tol=1e-9)
    assert min(found.values()) >= floor / len(gains) - 1e-9
    assert found == next_shares(passages, asked, shares, floor=floor)


def test_an_arm_that_pays_twice_as_much_for_a_token_gets_more() -> None:
    passages = round_of({"a": [0.2] * 20, "b": [0.4] * 20})
    found = next_shares(passages, counts(passages), even_shares(["a", "b"]), floor=0.3)
    # values 1 and 2, five candidates of 1.5 added to 20: 1.1 and 1.9
    assert found["b"] == pytest.approx(0.15 + 0.7 * 1.9 / 3)
    assert found["a"] == pytest.approx(0.15 + 0.7 * 1.1 / 3)


def test_a_long_arm_with_the_same_improvement_gets_less() -> None:
    short = [tried("short", 0.3, tokens=100, trained=400)] * 10
    long = [tried("long", 0.3, tokens=200, trained=800)] * 10
    shares = even_shares(["short", "long"])
    asked = {"short": 10, "long": 10}
    found = next_shares([passage(*short, *long)], asked, shares, floor=0.0)
    assert found["short"] > 0.5 > found["long"]
    reports = arm_reports([passage(*short, *long)], asked, shares, found)
    assert reports["short"].value == pytest.approx(1000 * 0.3 / 500)
    assert reports["long"].value == pytest.approx(reports["short"].value / 2)


def test_few_candidates_move_shares_less_than_many() -> None:
    shares = even_shares(["a", "b"])
    found = [
        next_shares(passages, counts(passages), shares, floor=0.0)["b"]
        for n in (1, 10, 100)
        for passages in [round_of({"a": [0.1] * n, "b": [0.5] * n})]
    ]
    assert 0.5 < found[0] < found[1] < found[2] < 5 / 6


def test_harm_is_no_debt() -> None:
    shares = even_shares(["a", "b"])
    found = [
        next_shares(
            round_of({"a": [0.4, loss], "b": [0.1, 0.1]}), {"a": 2, "b": 2}, shares, floor=0.1
        )
        for loss in (0.0, -0.1, -50.0)
    ]
    assert found[0] == found[1] == found[2]


def test_a_candidate_that_was_filtered_away_counts_as_no_gain() -> None:
    passages = round_of({"a": [0.3] * 6, "b": [0.3] * 6})
    shares = even_shares(["a", "b"])
    assert next_shares(passages, {"a": 6, "b": 6}, shares, floor=0.0)["a"] == pytest.approx(0.5)
    found = next_shares(passages, {"a": 6, "b": 12}, shares, floor=0.0)
    assert found["a"] > 0.5
    # 12 were written (100 tokens each), 6 of them trained on (400 each)
    report = arm_reports(passages, {"a": 6, "b": 12}, shares, found)["b"]
    assert report.value == pytest.approx(1000 * 1.8 / (12 * 100 + 6 * 400))


def test_a_failed_trial_is_not_a_zero() -> None:
    shares = even_shares(["a", "b"])
    whole = round_of({"a": [0.3] * 4, "b": [0.2] * 4})
    with_failures = round_of({"a": [0.3] * 4, "b": [0.2] * 4 + [None] * 4})
    expected = next_shares(whole, {"a": 4, "b": 4}, shares, floor=0.2)
    assert next_shares(with_failures, {"a": 4, "b": 8}, shares, floor=0.2) == expected


def test_an_arm_all_of_whose_trials_failed_is_taken_as_average() -> None:
    passages = round_of({"a": [0.2] * 4, "b": [None] * 4})
    found = next_shares(passages, {"a": 4, "b": 4}, even_shares(["a", "b"]), floor=0.0)
    assert found["b"] == pytest.approx(0.5)


def test_an_arm_that_was_asked_for_nothing_is_taken_as_average() -> None:
    shares = {"a": 1.0, "b": 0.0}
    found = next_shares(round_of({"a": [0.2] * 4}), {"a": 4}, shares, floor=0.0)
    assert found["b"] == pytest.approx(0.5)


@pytest.mark.parametrize("gains", [{"a": [0.0, -1.0], "b": [-0.2]}, {"a": [None], "b": [None]}, {}])
def test_without_any_gain_shares_stay(gains: dict[str, list[float | None]]) -> None:
    shares = {"a": 0.7, "b": 0.3}
    passages = round_of(gains)
    assert next_shares(passages, {"a": 3, "b": 3}, shares, floor=0.3) == shares


def test_without_any_gain_a_share_below_the_floor_is_raised() -> None:
    found = next_shares([], {"a": 3, "b": 3}, {"a": 1.0, "b": 0.0}, floor=0.4)
    assert found == pytest.approx({"a": 0.8, "b": 0.2})


def test_text_that_cost_no_token_does_not_divide_by_zero() -> None:
    passages = round_of({"a": [0.2] * 3, "b": [0.1] * 3}, tokens=0, trained=0)
    found = next_shares(passages, {"a": 3, "b": 3}, even_shares(["a", "b"]), floor=0.0)
    assert 0.5 < found["a"] < 2 / 3


def test_planted_payoffs_are_found_over_rounds_and_the_floor_stays() -> None:
    pays = {"a": 0.4, "b": 0.05, "c": 0.0}
    shares = even_shares(list(pays))
    for number in range(3):
        hands = deal(shares, [f"p{n}" for n in range(16)], 5, number)
        passages = [
            passage(*(tried(arm, pays[arm]) for arm, n in hand.items() for _ in range(n)))
            for hand in hands.values()
        ]
        shares = next_shares(passages, counts(passages), shares, floor=0.3)
    assert shares["a"] > 0.6
    assert shares["c"] >= 0.1


# ------------------------------------------------------------ reports and refusals


def test_a_report_says_what_an_arm_came_to() -> None:
    passages = [
        passage(tried("a", 0.3, tokens=80), tried("a", -0.1, tokens=120), tried("b", None)),
        passage(tried("a", 0.05, tokens=100), name="q"),
    ]
    shares, following = {"a": 0.8, "b": 0.2}, {"a": 0.7, "b": 0.3}
    reports = arm_reports(passages, {"a": 4, "b": 1}, shares, following)
    a, b = reports["a"], reports["b"]
    assert (a.share, a.asked, a.tried, a.rewarded, a.next_share) == (0.8, 4, 3, 1, 0.7)
    assert a.improvement == pytest.approx(0.25 / 3)
    assert a.tokens == 100
    assert a.value == pytest.approx(1000 * 0.35 / (4 * 100 + 3 * 400))
    assert (b.asked, b.tried, b.rewarded, b.improvement, b.value) == (1, 0, 0, None, 0.0)


@pytest.mark.parametrize(
    ("asked", "shares", "floor", "message"),
    [
        ({"a": 2}, {"a": 1.0}, 1.5, "floor"),
        ({"a": 2}, {"a": 1.0}, math.nan, "floor"),
        ({"a": 1}, {"a": 1.0}, 0.3, "asked for"),
        ({"a": 2}, {"b": 1.0}, 0.3, "no arm"),
        ({"a": 2}, {"a": 0.5}, 0.3, "sum to 1"),
    ],
)
def test_what_does_not_fit_is_refused(
    asked: dict[str, int], shares: dict[str, float], floor: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        next_shares(round_of({"a": [0.1, 0.2]}), asked, shares, floor=floor)


def test_a_report_needs_every_next_share() -> None:
    with pytest.raises(ValueError, match="next share"):
        arm_reports([], {"a": 1}, {"a": 1.0}, {})


def test_a_single_candidate_decides_nothing() -> None:
    shares = even_shares(ARMS)
    found = next_shares(round_of({"cloze": [2.0]}), {"cloze": 1}, shares, floor=0.0)
    assert found == pytest.approx(shares)
