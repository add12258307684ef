"""Metrics of answers: SQuAD normalisation and the scores that rest on it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios.core.errors import NonFiniteError, UsageError
from aios.core.evaluation.metrics import (
    AnswerResult,
    contains_answer,
    exact_match,
    f1,
    normalize_answer,
    perplexity,
    summarize,
)
from aios.core.types import Question, Score


def judged(
    logprob: float = -2.0, tokens: int = 2, prediction: str = "Otrar", probe: str = "p1"
) -> AnswerResult:
    question = Question("Which town?", ("Otrar", "the town of Otrar"), "name")
    return AnswerResult.judge(probe, "a", question, Score(logprob, tokens, False), prediction)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Old\tHarbour.", "old harbour"),
        ("an apple, a day", "apple day"),
        ("12-inch", "12inch"),
        ("theatre", "theatre"),
        ("“Otrar”", "otrar"),
        ("1890–1892", "18901892"),
        ("ﬁve", "five"),
        ("A", "a"),
        ("#", "#"),
        ("", ""),
        ("   ", ""),
    ],
)
def test_normalisation_follows_squad(text: str, normal: str) -> None:
    assert normalize_answer(text) == normal


def test_exact_match_takes_any_accepted_answer() -> None:
    assert exact_match("The town of Otrar!", ("Otrar", "the town of Otrar"))
    assert not exact_match("Otrar town", ("Otrar", "the town of Otrar"))


def test_an_empty_prediction_is_never_right() -> None:
    for answer in ("A", "the", "...", "Otrar"):
        assert not exact_match("", (answer,))
        assert f1("", (answer,)) == 0.0
        assert not contains_answer("", (answer,))


def test_no_accepted_answer_is_never_right() -> None:
    assert (exact_match("x", ()), f1("x", ()), contains_answer("x", ())) == (False, 0.0, False)
    assert not contains_answer("x", ("",))


def test_f1_is_token_overlap_best_over_answers() -> None:
    assert f1("red old barn", ("the old barn",)) == pytest.approx(2 * (2 / 3) * 1 / (2 / 3 + 1))
    assert f1("barn", ("silo", "barn")) == 1.0
    assert f1("barn barn", ("barn",)) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("prediction", "answer", "found"),
    [
        ("It was built in 1912 by hand", "1912", True),
        ("It was built in 1912", "12", False),
        ("the heart", "art", False),
        ("they seized the town of Otrar.", "the town of Otrar", True),
        ("Otrar, of the town", "town of Otrar", False),
    ],
)
def test_contains_answer_needs_whole_words_in_order(
    prediction: str, answer: str, found: bool
) -> None:
    assert contains_answer(prediction, (answer,)) is found


messy = st.text("aAthe .,-#é“2", max_size=12)


@given(messy, messy)
def test_an_exact_match_has_f1_one_and_is_contained(prediction: str, answer: str) -> None:
    value = f1(prediction, (answer,))
    assert 0.0 <= value <= 1.0
    if exact_match(prediction, (answer,)) and normalize_answer(answer):
        assert value == pytest.approx(1.0)
        assert contains_answer(prediction, (answer,))


def test_judge_fills_every_metric() -> None:
    result = judged(prediction="They took Otrar")
    assert (result.exact, result.contains, result.category) == (False, True, "name")
    assert result.f1 == pytest.approx(0.5)
    assert result.loss == 1.0


def test_loss_is_over_tokens_not_over_questions() -> None:
    summary = summarize([judged(-1.0, 1), judged(-9.0, 4, "no", "p2")])
    assert summary.loss == 2.0
    assert summary.perplexity == pytest.approx(math.e**2)
    assert (summary.exact, summary.contains, summary.f1) == (0.5, 0.5, 0.5)
    assert (summary.greedy, summary.n) == (0.0, 2)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_names_its_probe(value: float) -> None:
    with pytest.raises(NonFiniteError, match="probe-7"):
        judged(value, probe="probe-7")
    bad = AnswerResult("probe-8", "a", "q", ("x",), value, 1, False, "x", True, 1.0, True)
    with pytest.raises(NonFiniteError, match="probe-8"):
        summarize([judged(), bad])


def test_no_questions_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no questions"):
        summarize([])


def test_perplexity_of_a_diverged_loss_is_refused() -> None:
    assert perplexity(0.0) == 1.0
    for loss in (1e4, math.nan, math.inf):
        with pytest.raises(NonFiniteError, match="perplexity"):
            perplexity(loss)
