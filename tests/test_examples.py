"""The sample data in `examples/` is what its README says it is.

Takes the files as they lie in the repository; needs nothing but the standard library.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
CATEGORIES = {"name", "number", "date", "cause", "condition"}
MIN_PASSAGES = 24
MIN_QUESTIONS = 5
PASSAGE_WORDS = (70, 130)
RETENTION_WORDS = (900, 1300)
MAX_ANSWER_WORDS = 5
MIN_CATEGORY_SHARE = 0.15
SHARED_NGRAM = 8


def words(text: str) -> list[str]:
    """The text's words and numbers in lower case, without punctuation."""
    return re.findall(r"[a-z0-9]+(?:[.,'-][a-z0-9]+)*", text.lower())


def contains(text: str, phrase: str) -> bool:
    """Whether the words of `phrase` stand side by side in `text`."""
    return f" {' '.join(words(phrase))} " in f" {' '.join(words(text))} "


def ngrams(text: str, size: int = SHARED_NGRAM) -> set[tuple[str, ...]]:
    """All runs of `size` words in the text."""
    found = words(text)
    return {tuple(found[start : start + size]) for start in range(len(found) - size + 1)}


@pytest.fixture(scope="module")
def passages() -> list[dict[str, Any]]:
    lines = (EXAMPLES / "passages.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def retention() -> str:
    return (EXAMPLES / "retention.txt").read_text(encoding="utf-8")


def test_every_line_has_the_documented_keys(passages: list[dict[str, Any]]) -> None:
    for passage in passages:
        assert set(passage) == {"id", "title", "text", "questions"}
        for question in passage["questions"]:
            assert set(question) == {"question", "answer", "category"}
            assert all(value == value.strip() != "" for value in question.values())


def test_there_are_enough_passages_and_questions(passages: list[dict[str, Any]]) -> None:
    assert len(passages) >= MIN_PASSAGES
    few = [p["id"] for p in passages if len(p["questions"]) < MIN_QUESTIONS]
    assert not few


def test_ids_titles_and_questions_are_unique(passages: list[dict[str, Any]]) -> None:
    for key in ("id", "title", "text"):
        assert len({p[key] for p in passages}) == len(passages), key
    asked = [q["question"] for p in passages for q in p["questions"]]
    assert not [text for text, count in Counter(asked).items() if count > 1]


def test_ids_are_kebab_case(passages: list[dict[str, Any]]) -> None:
    kebab = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
    assert not [p["id"] for p in passages if not kebab.fullmatch(p["id"])]


def test_passages_have_the_stated_length(passages: list[dict[str, Any]]) -> None:
    shortest, longest = PASSAGE_WORDS
    counts = {p["id"]: len(p["text"].split()) for p in passages}
    assert not {k: n for k, n in counts.items() if not shortest <= n <= longest}


def test_answers_are_short_and_stand_verbatim_in_their_passage(
    passages: list[dict[str, Any]],
) -> None:
    for passage in passages:
        for question in passage["questions"]:
            answer = question["answer"]
            whole_words = rf"(?<!\w){re.escape(answer)}(?!\w)"
            assert re.search(whole_words, passage["text"]), (passage["id"], answer)
            assert len(answer.split()) <= MAX_ANSWER_WORDS, (passage["id"], answer)


def test_an_answer_stands_in_no_other_passage_when_it_is_a_name_or_full_date(
    passages: list[dict[str, Any]],
) -> None:
    for passage in passages:
        for question in passage["questions"]:
            if question["category"] not in {"name", "date"}:
                continue
            holders = [p["id"] for p in passages if contains(p["text"], question["answer"])]
            assert holders == [passage["id"]], question


def test_categories_are_known_and_balanced(passages: list[dict[str, Any]]) -> None:
    counts = Counter(q["category"] for p in passages for q in p["questions"])
    assert set(counts) == CATEGORIES
    shares = {category: count / counts.total() for category, count in counts.items()}
    assert not {c: share for c, share in shares.items() if share < MIN_CATEGORY_SHARE}


def test_every_passage_asks_for_each_category(passages: list[dict[str, Any]]) -> None:
    for passage in passages:
        asked = {q["category"] for q in passage["questions"]}
        assert asked == CATEGORIES, passage["id"]


def test_no_question_contains_its_answer(passages: list[dict[str, Any]]) -> None:
    for passage in passages:
        for question in passage["questions"]:
            assert not contains(question["question"], question["answer"]), question


def test_every_question_names_its_subject(passages: list[dict[str, Any]]) -> None:
    for passage in passages:
        for question in passage["questions"]:
            assert passage["title"].lower() in question["question"].lower(), question
            assert question["question"].endswith("?"), question


def test_answers_within_a_passage_differ(passages: list[dict[str, Any]]) -> None:
    for passage in passages:
        answers = [q["answer"].lower() for q in passage["questions"]]
        assert len(set(answers)) == len(answers), passage["id"]


def test_titles_occur_in_no_other_passage_and_not_in_the_retention_text(
    passages: list[dict[str, Any]], retention: str
) -> None:
    for passage in passages:
        others = [p for p in passages if p is not passage]
        assert contains(passage["text"], passage["title"]), passage["id"]
        texts = [p["title"] + " " + p["text"] for p in others] + [retention]
        assert not any(contains(text, passage["title"]) for text in texts), passage["id"]


def test_no_two_texts_share_a_long_run_of_words(
    passages: list[dict[str, Any]], retention: str
) -> None:
    texts = {p["id"]: ngrams(p["text"]) for p in passages} | {"retention": ngrams(retention)}
    for (first, left), (second, right) in combinations(texts.items(), 2):
        assert not left & right, (first, second)


def test_retention_text_has_the_stated_length_and_several_paragraphs(retention: str) -> None:
    fewest, most = RETENTION_WORDS
    assert fewest <= len(retention.split()) <= most
    assert len([block for block in retention.split("\n\n") if block.strip()]) >= 5


def test_retention_text_answers_no_name_or_date(
    passages: list[dict[str, Any]], retention: str
) -> None:
    for passage in passages:
        for question in passage["questions"]:
            if question["category"] in {"name", "date"}:
                assert not contains(retention, question["answer"]), question
