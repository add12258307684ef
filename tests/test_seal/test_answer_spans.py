from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios.core.data.splitting import split_sentences
from aios.core.seal.answer_spans import AnswerSpan, find_answer_spans

PASSAGES = Path(__file__).parents[2] / "examples" / "passages.jsonl"
SENTENCES = [
    sentence
    for line in PASSAGES.read_text(encoding="utf-8").splitlines()
    for sentence in split_sentences(json.loads(line)["text"])
]
WORDS = st.sampled_from(
    "The Brellow engine Osanne Verrick 4 March 1871 38 9,200 1.5km 12% $3.50 twelve hundred of in "
    "because if until silt U.S. Émile Łódź the and was 1904, (the) — … 'tis mill-race é".split()
)
TEXTS = st.one_of(st.lists(WORDS, max_size=25).map(" ".join), st.text(max_size=80))


def answers(sentence: str, kind: str | None = None) -> list[str]:
    return [
        sentence[span.start : span.end]
        for span in find_answer_spans(sentence)
        if kind is None or span.kind == kind
    ]


@pytest.mark.parametrize(
    ("sentence", "found"),
    [
        ("It first turned on 4 March 1871 in the rain.", ["4 March 1871"]),
        ("The lock was opened on March 4, 1871 by a clerk.", ["March 4, 1871"]),
        ("The lock was opened in March 1871.", ["March 1871"]),
        ("Work began on May 3rd and ended in 1904.", ["May 3rd", "1904"]),
        ("The chapel is older than the 5th century.", ["the 5th century"]),
        ("It was fashionable in the 1920s.", ["the 1920s"]),
        ("There are 1,904 steps and 12 doors.", []),
    ],
)
def test_dates(sentence: str, found: list[str]) -> None:
    assert answers(sentence, "date") == found


@pytest.mark.parametrize(
    ("sentence", "found"),
    [
        ("Each float weighs 38 tonnes.", ["38 tonnes"]),
        ("It lifts 9,200 litres of water a minute.", ["9,200 litres"]),
        ("The wall is 3.25 metres high.", ["3.25 metres"]),
        ("It cost $1,200.50 and 12% more later.", ["$1,200.50", "12%"]),
        ("They keep 12 in the yard.", ["12"]),
        ("About 30 per cent of the eels died.", ["30 per cent"]),
        ("The guild has twenty-four members.", ["twenty-four members"]),
        ("It took two hundred men.", ["two hundred men"]),
        ("The path is 1.5km long.", []),  # no half of a number
        ("Take part A12 out.", []),
        ("Nothing is counted here.", []),
    ],
)
def test_numbers(sentence: str, found: list[str]) -> None:
    assert answers(sentence, "number") == found


@pytest.mark.parametrize(
    ("sentence", "found"),
    [
        ("It was designed by the millwright Osanne Verrick.", ["Osanne Verrick"]),
        ("He joined the Guild of Salt and Rope in Dunmery.", ["Guild of Salt and Rope", "Dunmery"]),
        ("In the inn Émile Zola met Łukasz Żak.", ["Émile Zola", "Łukasz Żak"]),
        ("В 1871 году Москва приняла Ивана Петрова.", ["Москва", "Ивана Петрова"]),
        ("Brellow lies on the coast.", []),  # a capital begins every sentence
        ("The Brellow Engine stands idle.", ["Brellow Engine"]),  # without its article
        ("Old Dunmery lies on the coast.", ["Old Dunmery"]),
    ],
)
def test_names(sentence: str, found: list[str]) -> None:
    assert answers(sentence, "name") == found


@pytest.mark.parametrize(
    ("sentence", "found"),
    [
        ("It was ordered because of silt in the drains.", ["silt in the drains"]),
        ("The crank is locked when the tide is low, with a pin.", ["the tide is low"]),
        ("It runs only at spring tides; then it rests.", ["spring tides"]),
        ("The rind is washed so that it stays soft.", ["it stays soft"]),
        ("It stops if dry.", []),  # too short to ask for
    ],
)
def test_clauses(sentence: str, found: list[str]) -> None:
    assert answers(sentence, "clause") == found


def test_phrases_follow_an_article_or_a_preposition() -> None:
    sentence = "Two floats of tarred larch drive a crank through bronze links."
    assert answers(sentence, "phrase") == ["tarred larch drive", "crank", "bronze links"]


def test_a_date_goes_before_the_number_and_the_name_in_it() -> None:
    assert answers("They left on 4 March 1871 at dawn.") == ["4 March 1871", "dawn"]


def test_a_clause_may_hold_other_answers() -> None:
    sentence = "The valve shuts when the level passes nine metres."
    found = find_answer_spans(sentence)
    clause = next(span for span in found if span.kind == "clause")
    number = next(span for span in found if span.kind == "number")
    assert clause.start < number.start < number.end <= clause.end


@pytest.mark.parametrize("sentence", ["", " ", "Word", "x" * 5000, "...", "____", "the of and"])
def test_nothing_to_ask_for(sentence: str) -> None:
    assert find_answer_spans(sentence) == []


def test_digits_alone_are_an_answer() -> None:
    assert find_answer_spans("1234567") == [AnswerSpan(0, 7, "number")]


def test_a_very_long_sentence_is_searched_in_reasonable_time() -> None:
    sentence = "the pump of Dunmery lifts 9,200 litres and " * 400
    assert len(find_answer_spans(sentence)) >= 800


def test_the_example_passages_have_answers_of_every_kind() -> None:
    kinds = {span.kind for sentence in SENTENCES for span in find_answer_spans(sentence)}
    assert kinds == {"date", "number", "name", "clause", "phrase"}
    asked = sum(bool(find_answer_spans(sentence)) for sentence in SENTENCES)
    assert asked > 0.95 * len(SENTENCES)


@given(st.one_of(st.sampled_from(SENTENCES), TEXTS))
def test_spans_are_texts_of_the_sentence_at_word_boundaries(sentence: str) -> None:
    for span in find_answer_spans(sentence):
        answer = sentence[span.start : span.end]
        assert 0 <= span.start < span.end <= len(sentence)
        assert answer == answer.strip() != ""
        before, after = sentence[: span.start][-1:], sentence[span.end :][:1]
        assert not (before.isalnum() and answer[0].isalnum()), (before, answer)
        assert not (after.isalnum() and answer[-1].isalnum()), (answer, after)


@given(st.one_of(st.sampled_from(SENTENCES), TEXTS))
def test_spans_do_not_overlap_but_for_clauses(sentence: str) -> None:
    found = find_answer_spans(sentence)
    assert found == sorted(found)
    assert len({(span.start, span.end) for span in found}) == len(found)
    for group in ("clause", "other"):
        spans = [span for span in found if (span.kind == "clause") == (group == "clause")]
        for first, second in pairwise(spans):
            assert first.end <= second.start


def test_a_phrase_may_begin_behind_the_first_word_and_has_at_most_four_words() -> None:
    assert answers("the old stone mill of orvane", "phrase") == ["old stone mill", "orvane"]
    assert answers("the dark old tall stone of orvane", "phrase")[0] == "dark old tall stone"
    assert answers("the dark old tall stone mill of orvane", "phrase") == ["orvane"]
