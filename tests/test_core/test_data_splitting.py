"""Sentences and token budgets."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aios.core.data.splitting import sentence_spans, split_passage, split_sentences

MESSY = st.text(
    alphabet=st.sampled_from(list("aB1 .!?…\n\t\"'”)(]-,;:。！」と•é\u3000\x85U")), max_size=80
)
TEXTS = st.one_of(MESSY, st.text(max_size=80))


def count_characters(text: str) -> int:
    return len(text)


def visible(*texts: str) -> str:
    return "".join("".join(text.split()) for text in texts)


@pytest.mark.parametrize(
    "sentences",
    [
        ["Dr. Smith met Mr. J. R. Jones.", "He left."],
        ["The U.S. Army came.", "It stayed in the U.S.", "The army left."],
        ["We use e.g. Python, i.e. this.", "OK?"],
        ["It cost 3.5 million.", '"Why?" he asked.', "“Go!”", "She went."],
        ["At 5 p.m. Monday it shut.", "They left at 6 p.m.", "The shop closed."],
        ["1. First item.", "2. Second item."],
        ["See Fig. 3 and No. 5.", "He said no.", "Soldiers came."],
        ["Acme Inc. Holdings fell.", "So did Bolt Inc.", "The rest rose."],
        ["Wait...", "What?!", "Yes."],
        ["It ended.[12]", "Then.[note 4]", "More.:3, 218–228", "End"],
        ["iPhone sold.", "iPhone won."],
        ["He wrote vol. 4 in Sept. 1904.", "It sold."],
        ["Louis XIV.", "The king"],
        ["Jean-J. Rousseau wrote etc. and so on.", "Ph.D. students came."],
        ["نص أول.", "نص ثان؟", "نعم"],
        ["यह है।", "वह है।"],
        ["(He left.)", "Then she did."],
    ],
)
def test_sentences(sentences: list[str]) -> None:
    assert split_sentences(" ".join(sentences)) == sentences


def test_sentences_of_scripts_without_spaces() -> None:
    text = "今日は晴れ。明日！「行く。」と言った。「本当？」彼は笑った。"
    assert split_sentences(text) == [
        "今日は晴れ。",
        "明日！",
        "「行く。」と言った。",
        "「本当？」",
        "彼は笑った。",
    ]


def test_blank_lines_and_list_items_end_sentences_and_wrapped_lines_do_not() -> None:
    text = "Heading\n\nA line\nthat goes on.  Next\n- item one\n* item two\n3) item three\n"
    assert split_sentences(text) == [
        "Heading",
        "A line that goes on.",
        "Next",
        "- item one",
        "* item two",
        "3) item three",
    ]


def test_marks_that_stand_alone_belong_to_the_sentence_before() -> None:
    assert split_sentences("He paused . . . Then he left !") == [
        "He paused . . .",
        "Then he left !",
    ]


def test_no_text_has_no_sentences() -> None:
    assert split_sentences("") == split_sentences(" \n\n ") == []


@given(TEXTS)
@settings(max_examples=300, deadline=None)
def test_sentences_keep_every_character_but_white_space(text: str) -> None:
    sentences = split_sentences(text)
    assert visible(*sentences) == visible(text)
    assert all(sentence and sentence == sentence.strip() for sentence in sentences)
    assert [" ".join(text[a:b].split()) for a, b in sentence_spans(text)] == sentences


@given(TEXTS, st.integers(1, 30))
@settings(max_examples=300, deadline=None)
def test_parts_fit_the_budget_and_keep_every_character(text: str, budget: int) -> None:
    parts = split_passage(text, budget, count_characters)
    assert visible(*parts) == visible(text)
    assert all(part == part.strip() and 0 < len(part) <= budget for part in parts)


@given(MESSY, st.integers(2, 12))
@settings(max_examples=100, deadline=None)
def test_parts_fit_although_tokens_do_not_add_up(text: str, budget: int) -> None:
    def count(part: str) -> int:  # joining costs extra, as a tokenizer may
        return 1 + sum(1 + len(word) // 4 for word in part.split()) + part.count(" ") // 2

    for part in split_passage(text, budget, count):
        assert count(part) <= budget or len(part) == 1


def test_sentences_are_packed_up_to_the_budget() -> None:
    text = "Aa bb. Cc dd. Ee ff. Gg hh."
    assert split_passage(text, 4, lambda t: len(t.split())) == ["Aa bb. Cc dd.", "Ee ff. Gg hh."]


def test_text_within_the_budget_stays_as_it_is() -> None:
    assert split_passage("  A b.\n\nC d. ", 10, count_characters) == ["A b.\n\nC d."]


def test_long_sentence_is_cut_between_clauses_then_words_then_characters() -> None:
    assert split_passage("aa bb, cc dd; ee ff gg hh.", 3, lambda t: len(t.split())) == [
        "aa bb,",
        "cc dd;",
        "ee ff gg",
        "hh.",
    ]
    assert split_passage("abcdefghij", 4, count_characters) == ["abcd", "efgh", "ij"]


def test_character_over_the_budget_is_kept() -> None:
    assert split_passage("ab", 1, lambda text: 3 * len(text)) == ["a", "b"]


def test_blank_text_has_no_parts_and_bad_budget_is_refused() -> None:
    assert split_passage(" \n", 5, count_characters) == []
    with pytest.raises(ValueError, match="budget is 0"):
        split_passage("a", 0, count_characters)


@pytest.mark.parametrize(
    "text",
    ["." * 50_000 + "x", "\n" * 50_000, ("." + ")" * 999 + "x") * 50, "." + "[1]" * 20_000 + "x"],
)
def test_hostile_text_takes_linear_time(text: str) -> None:
    started = time.perf_counter()
    split_sentences(text)
    assert time.perf_counter() - started < 2
