"""Selection: which candidates of a passage the generator learns from."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios.core.restem import Tried, TriedPassage
from aios.core.seal.selection import choose
from aios.core.trials import Reward
from aios.core.types import Failure, SelfEdit

MARGIN = 0.1
Keep = Literal["threshold", "best_of_k"]


def tried(index: int, gain: float | None, *, kept: bool = False) -> Tried:
    edit = SelfEdit("p", "rewrite", index, (f"text {index}",))
    if gain is None:
        return Tried(edit, None, failures=(Failure("train", "t", "out of memory"),), kept=kept)
    value = float(gain > MARGIN)
    reward = Reward(value, 3.0, 3.0 - gain, 5, "logprob", MARGIN, None, "loss", "auto", gain)
    return Tried(edit, reward, (gain,), kept=kept)


def passage(*gains: float | None, name: str = "p") -> TriedPassage:
    candidates = tuple(tried(index, gain) for index, gain in enumerate(gains))
    return TriedPassage(name, candidates, len(gains), len(gains), 0, 3.0, 2.9)


def kept(found: TriedPassage) -> list[int]:
    return [one.edit.index for one in found.candidates if one.kept]


def test_threshold_keeps_the_best_of_those_that_were_rewarded() -> None:
    given_passage = passage(0.2, 0.05, 0.4, 0.3)
    assert kept(choose([given_passage], "threshold", 1)[0]) == [2]
    assert kept(choose([given_passage], "threshold", 2)[0]) == [2, 3]
    assert kept(choose([given_passage], "threshold", 9)[0]) == [0, 2, 3]


def test_threshold_keeps_nothing_of_a_passage_where_nothing_was_rewarded() -> None:
    first, second = choose([passage(0.05, -0.2), passage(0.5, name="q")], "threshold", 2)
    assert (first.passage_id, kept(first)) == ("p", [])
    assert (second.passage_id, kept(second)) == ("q", [0])


def test_best_of_k_keeps_the_best_even_below_the_baseline() -> None:
    assert kept(choose([passage(-0.4, -0.1, -0.2)], "best_of_k", 1)[0]) == [1]
    assert kept(choose([passage(-0.4, -0.1, -0.2)], "best_of_k", 2)[0]) == [1, 2]


@pytest.mark.parametrize("keep", ["threshold", "best_of_k"])
def test_ties_go_to_the_earlier_candidate(keep: Keep) -> None:
    assert kept(choose([passage(0.2, 0.4, (0.1 + 0.7) / 2)], keep, 1)[0]) == [1]
    assert kept(choose([passage(0.2, (0.1 + 0.7) / 2, 0.4)], keep, 1)[0]) == [1]


@pytest.mark.parametrize("keep", ["threshold", "best_of_k"])
def test_a_candidate_without_a_reward_is_never_kept(keep: Keep) -> None:
    assert kept(choose([passage(None, 0.2, None)], keep, 3)[0]) == [1]
    assert kept(choose([passage(None, None)], keep, 3)[0]) == []


def test_earlier_marks_are_taken_away() -> None:
    marked = TriedPassage("p", (tried(0, 0.2, kept=True), tried(1, 0.3)), 2, 2, 0, 3.0, 2.9)
    assert kept(choose([marked], "threshold", 1)[0]) == [1]


@given(
    st.lists(st.none() | st.floats(-1, 1), max_size=8),
    st.sampled_from(["threshold", "best_of_k"]),
    st.integers(1, 4),
)
def test_what_is_kept_is_no_worse_than_what_is_not(
    gains: list[float | None], keep: Keep, most: int
) -> None:
    before = passage(*gains)
    (after,) = choose([before], keep, most)
    able = [g for g in gains if g is not None and (keep == "best_of_k" or g > MARGIN)]
    mine = [gains[index] or 0.0 for index in kept(after)]
    assert len(mine) == min(most, len(able))
    assert sorted(mine, reverse=True) == pytest.approx(sorted(able, reverse=True)[: len(mine)])
    assert [one.edit for one in after.candidates] == [one.edit for one in before.candidates]


def test_a_rule_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="no rule"):
        choose([], "threshold", 0)
    with pytest.raises(ValueError, match="no rule"):
        choose([], "best", 1)  # type: ignore[arg-type]
