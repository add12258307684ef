"""Items found again in their completion, and the loss of their lines."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios.core.seal.quality import FilterSettings, QualityFilter
from aios.core.seal.quality_loss import item_loss, lines_of_item
from aios.core.seal.strategies import get_strategy
from aios.core.types import Passage, SelfEdit

PASSAGE = Passage.make("The town of Otrar has a citadel and a wall.", title="Otrar")


def items_of(strategy: str, completion: str) -> list[str]:
    return get_strategy(strategy).parse_output(completion, PASSAGE, finish_reason="stop")


@pytest.mark.parametrize(
    ("strategy", "completion", "expected"),
    [
        (
            "implications",
            "Here is the list:\n\n1. **Otrar** has a citadel.\n2. Otrar has a wall.",
            [(2,), (3,)],
        ),
        (
            "implications",
            "1. The town of Otrar has a wall and\na citadel that stands.\n2. Otrar is a town.",
            [(0, 1), (2,)],
        ),
        ("implications", "1. Otrar has a wall. 2. Otrar has a citadel.", [(0,), (0,)]),
        (
            "self-qa",
            "Question 1: Which town has a wall?\nAnswer 1: Otrar\n\nQuestion 2: What has Otrar?\n"
            "Answer 2: A wall",
            [(0, 1), (3, 4)],
        ),
        (
            "self-qa",
            "Question 1: Who came?\nQuestion 2: Who went?\nAnswer 1: Ada\nAnswer 2: Bo",
            [(1, 2)],
        ),
        ("rewrite", "Rewrite 1:\nA wall and a citadel stand in Otrar.", [(1,)]),
    ],
)
def test_items_are_found_in_the_lines_they_came_from(
    strategy: str, completion: str, expected: list[tuple[int, ...]]
) -> None:
    items = items_of(strategy, completion)
    assert [lines_of_item(item, completion) for item in items] == expected


def test_words_that_a_parser_took_out_of_the_middle_do_not_hide_an_item() -> None:
    completion = "first line\nOtrar has a <|x|> wall and a tall citadel in the east\nlast line"
    item = "Otrar has a wall and a tall citadel in the east"
    assert lines_of_item(item, completion) == (1,)


def test_an_item_that_is_not_there_has_no_lines() -> None:
    assert lines_of_item("A wholly different sentence.", "1. Otrar has a wall.") == ()
    assert lines_of_item("", "1. Otrar has a wall.") == ()
    assert lines_of_item("Otrar has a wall.", "") == ()


def test_the_loss_of_an_item_is_that_of_its_lines_by_length() -> None:
    completion = "1. Otrar has\nno wall.\n\n2. It is a town of merchants."
    losses = (1.0, 4.0, math.nan, 9.0)
    joined = "Otrar has no wall."
    assert item_loss(joined, completion, losses) == pytest.approx((12 * 1 + 8 * 4) / 20)
    assert item_loss("It is a town of merchants.", completion, losses) == 9.0


@pytest.mark.parametrize(
    "losses",
    [(), (1.0,), (math.nan, math.nan), (math.inf, math.nan), (0.0, 0.0)],
    ids=["none", "too few", "not a number", "infinite", "no tokens"],
)
def test_an_unknown_loss_is_none(losses: Sequence[float]) -> None:
    assert item_loss("Otrar has a wall.", "Otrar has a wall.\n", losses) is None


@given(st.text(max_size=80), st.text(max_size=200))
def test_any_texts_give_lines_in_range(item: str, completion: str) -> None:
    lines = lines_of_item(item, completion)
    count = len(completion.split("\n"))
    assert list(lines) == sorted(set(lines))
    assert all(0 <= line < count for line in lines)
    loss = item_loss(item, completion, [1.0] * count)
    assert loss is None or loss == pytest.approx(1.0)


def filtered(losses: tuple[float, ...], settings: FilterSettings) -> tuple[list[str], list[str]]:
    completion = "1. Otrar is a town with a wall.\n2. The citadel of Otrar has a wall."
    edit = SelfEdit(
        PASSAGE.id,
        "implications",
        0,
        tuple(items_of("implications", completion)),
        completion=completion,
        line_losses=losses,
    )
    result = QualityFilter(settings, lambda text: len(text.split())).filter(PASSAGE, [edit])
    return [f"{d.reason}: {d.detail}" for d in result.drops], [
        f"{edit.scores.get('loss')}" for edit in result.kept
    ]


def test_an_item_of_a_line_that_the_model_found_improbable_is_dropped() -> None:
    settings = FilterSettings(min_length=1)
    assert filtered((0.5, 4.0), settings) == (["improbable: 4.00 nats a token > 2.5"], ["0.5"])
    assert filtered((0.5, 2.5), settings) == ([], ["2.5"])


def test_without_losses_or_a_limit_nothing_is_improbable() -> None:
    assert filtered((), FilterSettings(min_length=1)) == ([], ["None"])
    assert filtered((9.0, 9.0), FilterSettings(min_length=1, max_loss=None)) == ([], ["9.0"])
    off = FilterSettings(min_length=1, enable_quality_filter=False)
    assert filtered((9.0, 9.0), off) == ([], ["9.0"])


def test_an_answer_is_found_right_behind_its_question() -> None:
    completion = "Paris is far.\nWhich town is meant?\nParis\nNot Paris at all."
    item = "Question: Which town is meant?\nAnswer: Paris"
    assert lines_of_item(item, completion) == (1, 2)
