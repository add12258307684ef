"""Signals of question-answer pairs, on pairs that the bundled model wrote."""

from __future__ import annotations

import pytest

from aios.core.seal.parsing import QAPair
from aios.core.seal.quality_questions import (
    answer_in_question,
    asks_for_nothing,
    has_wrong_kind,
    is_question,
)


@pytest.mark.parametrize(
    "question",
    [
        "Who spoke for Hest?",
        "what is the weight of each float",
        "In what year was the law passed",
        "Name the leader of the expedition.",
        "The walls fell in ____.",
        "这座塔有多高？",
        "Wer hat das Boot gebaut?",
    ],
)
def test_questions_ask(question: str) -> None:
    assert is_question(question)


@pytest.mark.parametrize(
    "question",
    ["And not so really.", "The comet she found, named Tuvell", "In fact that.", "", "…"],
)
def test_what_asks_nothing_is_no_question(question: str) -> None:
    assert not is_question(question)


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What is the answer to this question?", True),
        ("Where is this?", True),
        ("When and for what?", True),
        ("What is the passage about?", False),
        ("What is the name of the town?", False),
        ("Who owns it?", False),
        ("____ is.", False),
        ("Was war das?", False),
    ],
)
def test_a_question_without_a_word_of_its_own_asks_for_nothing(
    question: str, expected: bool
) -> None:
    assert asks_for_nothing(question) is expected


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("What is the name of the town of Kessamere?", "Kessamere", True),
        ("What is the name of the town of Kessamere?", "The town of Kessamere", True),
        ("What is the name of the old church of Kessamere?", "The church of Kessamere", True),
        ("In 1220, who?", "1220", True),
        ("In 12200, who?", "1220", False),
        ("Is Otrar a village or a walled town?", "a town", False),
        ("Was Otrar besieged?", "Yes", False),
        ("The ____ of the walled town of Otrar fell.", "town walled", False),
        ("What is the ashen quillet?", "The ashen quillet is a flightless beetle", False),
        ("Who?", "", False),
    ],
)
def test_answers_that_the_question_gives_away(question: str, answer: str, expected: bool) -> None:
    assert answer_in_question(QAPair(question, answer)) is expected


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Who signed the Treaty of Lummerfold?", "28 April 1683"),
        ("Who was the painter who created the bird?", "1798"),
        ("What is the name of the lens grinders?", "16 January 1874"),
        ("What was the new chain wheels?", "1904"),
        ("And who signed it?", "in May 1683"),
        ("What is the Varsholm Bell Law?", "on the 11th of October 1792"),
    ],
)
def test_a_date_answers_no_question_for_a_person_or_thing(question: str, answer: str) -> None:
    assert has_wrong_kind(QAPair(question, answer))


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("When was the treaty signed?", "28 April 1683"),
        ("What year did the float crack?", "1904"),
        ("What is the date of the count?", "May 2009"),
        ("What was the founding date?", "1755"),
        ("How many stars did she count?", "1270"),
        ("Until when were tolls charged?", "30 June 1845"),
        ("What is the weight of the float?", "38 tonnes"),
        ("Who spoke for Hest?", "Envoy Sabrin Kolthane"),
        ("Who drafted it?", "Augustus"),
        ("The law was passed on ____.", "11 October 1792"),
        ("The man who died in ____ was mayor.", "1683"),
        ("Which count found 412 pairs?", "May 2009"),
    ],
)
def test_answers_of_the_kind_asked_for(question: str, answer: str) -> None:
    assert not has_wrong_kind(QAPair(question, answer))
