"""What of a conversation counts as a passage: statements, the telling ones first, and bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios.core.seal.conversation_passages import (
    MAX_CHARACTERS,
    MAX_MESSAGES,
    as_statement,
    conversation_passages,
    statements,
    worth_of,
)
from aios.core.types import Passage


def words(text: str) -> int:
    return len(text.split())


def user(*texts: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text} for text in texts]


def texts(messages: list[dict[str, str]], limit: int = 10, **settings: object) -> list[str]:
    found = conversation_passages(messages, limit, count_tokens=words, **settings)  # type: ignore[arg-type]
    return [passage.text for passage in found]


@pytest.mark.parametrize(
    ("said", "statement"),
    [
        ("Hello, I am Mira.", "I am Mira."),
        ("Please remember that my dog is called Rufus.", "My dog is called Rufus."),
        ("Yes, my locker code is 4471.", "My locker code is 4471."),
        ("By the way, the gate opens at 9:30.", "The gate opens at 9:30."),
        ("Note: the gate opens at 9:30.", "The gate opens at 9:30."),
        ("I'm vegetarian.", "I'm vegetarian."),
        ("I’m vegetarian.", "I’m vegetarian."),
        ("When I was ten we moved to Tolvik", "When I was ten we moved to Tolvik"),
        ("Will is my brother.", "Will is my brother."),
        ("my  sister\nlives in Orvane", "My sister lives in Orvane"),
    ],
)
def test_a_statement_is_kept_without_what_leads_up_to_it(said: str, statement: str) -> None:
    assert as_statement(said) == statement


@pytest.mark.parametrize(
    "said",
    [
        "Hi there!",
        "Thanks a lot, that sounds good.",
        "Great, thanks! See you tomorrow.",
        "Ok.",
        "How interesting!",
        "What is my dog called?",
        "what is my dog called",
        "Can you help me with Cardel cheese",
        "Do you know Tolvik?",
        "Tell me about Cardel cheese.",
        "Let's talk about the mill at Orvane.",
        "Please write 3 lines about Tolvik.",
        "Don't forget to buy milk.",
        "Remember to call Ilse Brandt.",
        "",
        "   ",
        "...",
    ],
)
def test_questions_greetings_and_commands_are_no_statements(said: str) -> None:
    runs = list(statements(said, words))
    assert runs == []


def test_neighbouring_statements_are_one_passage_and_a_question_parts_them() -> None:
    said = "My dog is called Rufus. He is 4 years old. Isn't that old? We live in Tolvik."
    assert list(statements(said, words)) == [
        "My dog is called Rufus. He is 4 years old.",
        "We live in Tolvik.",
    ]


def test_names_and_numbers_come_first() -> None:
    said = user(
        "The weather was rather wet in the hills.",
        "I prefer tea.",
        "Ilse Brandt visits on 14 March.",
    )
    assert texts(said) == [
        "Ilse Brandt visits on 14 March.",
        "I prefer tea.",
        "The weather was rather wet in the hills.",
    ]
    assert texts(said, limit=1) == ["Ilse Brandt visits on 14 March."]


def test_what_was_not_learned_yet_comes_first_and_what_is_excluded_never() -> None:
    said = user("Ilse Brandt visits on 14 March at 9:30.", "I prefer tea.")
    best, other = conversation_passages(said, 2, count_tokens=words)
    assert texts(said, learned={best.id}) == [other.text, best.text]
    assert texts(said, exclude={best.id}) == [other.text]


def test_among_equals_the_latest_comes_first() -> None:
    assert texts(user("My cat is Minka.", "My dog is Rufus.")) == [
        "My dog is Rufus.",
        "My cat is Minka.",
    ]


def test_only_the_roles_that_are_asked_for_count() -> None:
    said = [
        {"role": "system", "content": "The user lives in Tolvik."},
        {"role": "user", "content": "My dog is called Rufus."},
        {"role": "assistant", "content": "Rufus is a name of Roman origin."},
    ]
    assert texts(said) == ["My dog is called Rufus."]
    assert len(texts(said, roles=("user", "assistant"))) == 2


def test_a_passage_that_was_said_twice_is_there_once() -> None:
    said = user("My dog is called Rufus.", "my dog is  called Rufus.")
    assert texts(said) == ["My dog is called Rufus."]


def test_ids_depend_on_the_text_alone() -> None:
    (first,) = conversation_passages(user("My dog is called Rufus."), 1, count_tokens=words)
    more = user("I live in Tolvik.", "My dog is called Rufus.")
    again = conversation_passages(more, 2, count_tokens=words)
    assert first.id in {passage.id for passage in again}
    assert first.id == Passage.make("My dog is called Rufus.").id


def test_code_is_left_out() -> None:
    said = user("My server is called Anvil.\n```\nport = 8080. Rufus = 4471.\n```\nIt has 4 disks.")
    joined = " ".join(texts(said))
    assert "Anvil" in joined
    assert "4 disks" in joined
    assert "8080" not in joined


def test_a_long_statement_is_cut_to_size() -> None:
    said = "The list has " + " ".join(f"Item{i}" for i in range(300)) + "."
    runs = list(statements(said, words, 20))
    assert len(runs) > 10
    assert max(map(words, runs)) <= 20


def test_what_is_read_is_bounded() -> None:
    said = user("My dog is called Rufus.", *["I like tea."] * MAX_MESSAGES)
    assert texts(said) == ["I like tea."]
    long = "x" * MAX_CHARACTERS + ". My dog is called Rufus."
    assert not any("Rufus" in text for text in texts(user(long)))


def test_nothing_to_ask_for_is_no_passage() -> None:
    assert worth_of("It rained.") == 0
    assert texts(user("It simply was like that.")) == []


@given(st.lists(st.text(max_size=300), max_size=5), st.integers(0, 4))
def test_anything_may_be_said(said: list[str], limit: int) -> None:
    found = conversation_passages(user(*said), limit, count_tokens=words)
    assert len(found) <= limit
    assert all(words(passage.text) <= 96 and passage.text for passage in found)


def test_where_code_was_left_out_a_statement_ends() -> None:
    said = "My server is called Anvil\n```\nport = 8080\n```\nIt has 4 disks."
    assert list(statements(said, words)) == ["My server is called Anvil It has 4 disks."]
