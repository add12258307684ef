"""Conversations: what may be said, the window that a model sees, and files of messages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios.app.chat.conversation import (
    MAX_CHARACTERS,
    MAX_MESSAGES,
    Conversation,
    Message,
    check_messages,
    fit_window,
    last_question,
)
from aios.backends.scripted import ScriptedModel
from aios.core.errors import DataError, StorageError, UsageError

OVERHEAD = 2  # words that the template puts around a message


class TemplatedModel(ScriptedModel):
    """A scripted model with a chat template that costs tokens and names roles."""

    def format_chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        return "\n".join(f"<{m['role']}> {m['content']} </>" for m in messages)


MODEL = TemplatedModel()


def said(*texts: str) -> tuple[Message, ...]:
    """The user and the assistant in turns, the user first."""
    roles = ("user", "assistant")
    return tuple(Message(roles[i % 2], text) for i, text in enumerate(texts))  # type: ignore[arg-type]


def words(count: int, name: str = "w") -> str:
    return " ".join(f"{name}{i}" for i in range(count))


def test_all_of_a_short_conversation_is_seen() -> None:
    window = fit_window(MODEL, said("one", "two", "three"), system="Be brief.", max_tokens=100)
    assert window.prompt == (
        "<system> Be brief. </>\n<user> one </>\n<assistant> two </>\n<user> three </>"
    )
    assert (window.kept, window.left_out, window.cut) == (3, 0, 0)
    assert window.tokens == MODEL.count_tokens(window.prompt)


def test_older_turns_are_left_out_whole() -> None:
    talk = said(words(5, "a"), words(5, "b"), words(5, "c"), words(5, "d"), words(5, "e"))
    turn = 2 * (5 + OVERHEAD)
    window = fit_window(MODEL, talk, system="", max_tokens=turn + 5 + OVERHEAD)
    assert window.prompt.startswith("<user> c0")
    assert (window.kept, window.left_out) == (3, 2)
    window = fit_window(MODEL, talk, system="", max_tokens=turn + 5 + OVERHEAD - 1)
    assert window.prompt.startswith("<user> e0")
    assert (window.kept, window.left_out) == (1, 4)


def test_the_system_text_stays_when_turns_go() -> None:
    talk = said(words(5, "a"), words(5, "b"), words(5, "c"))
    window = fit_window(MODEL, talk, system="Be brief.", max_tokens=12)
    assert window.prompt == f"<system> Be brief. </>\n<user> {words(5, 'c')} </>"
    own = (Message("system", "Rhyme."), *talk, Message("system", "In Latin."))
    window = fit_window(MODEL, own, system="Be brief.", max_tokens=14)
    assert window.prompt.startswith("<system> Rhyme.\n\nIn Latin. </>\n<user> c0")


def test_of_a_single_message_that_is_too_long_the_end_is_kept() -> None:
    talk = said("early", "answer", words(1000))
    window = fit_window(MODEL, talk, system="", max_tokens=20)
    assert window.tokens == 20
    assert window.prompt.startswith("<user> w982 ")
    assert window.prompt.endswith(" w999 </>")
    assert window.left_out == 2
    assert window.cut == len(words(1000)) - len(window.prompt) + len("<user>  </>")


def test_a_cut_begins_with_a_word_unless_there_is_none_near() -> None:
    class Letters(TemplatedModel):
        def count_tokens(self, text: str) -> int:
            return len(text)

    def seen(text: str, max_tokens: int) -> str:
        talk = (Message("user", text),)
        window = fit_window(Letters(), talk, system="", max_tokens=max_tokens)
        return window.prompt.removeprefix("<user> ").removesuffix(" </>")

    around = len("<user>  </>")
    assert seen("lighthouse keeper", around + 10) == "keeper"
    assert seen("x" * 100, around + 10) == "x" * 10


def test_a_system_text_without_room_for_the_message_is_refused() -> None:
    with pytest.raises(UsageError, match="leaves no room"):
        fit_window(MODEL, said("hello"), system=words(50), max_tokens=20)


def test_messages_of_one_role_in_a_row_are_put_together() -> None:
    talk = (Message("user", "one"), Message("user", "two"), Message("assistant", "three"))
    window = fit_window(MODEL, (*talk, Message("user", "four")), system="", max_tokens=50)
    assert window.prompt == "<user> one\n\ntwo </>\n<assistant> three </>\n<user> four </>"


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=30),
    system=st.integers(0, 10),
    max_tokens=st.integers(16, 120),
)
def test_the_window_is_the_longest_that_fits(
    lengths: list[int], system: int, max_tokens: int
) -> None:
    talk = said(*(words(n, f"m{i}-") for i, n in enumerate(lengths)))
    head = words(system, "s")
    window = fit_window(MODEL, talk, system=head, max_tokens=max_tokens)
    assert window.tokens <= max_tokens
    assert window.kept + window.left_out == len(talk)
    fitting = [
        first
        for first in {*range(0, len(talk), 2), len(talk) - 1}
        if sum(n + OVERHEAD for n in lengths[first:]) + (system + OVERHEAD if system else 0)
        <= max_tokens
    ]
    if fitting:
        assert (window.left_out, window.cut) == (min(fitting), 0)
    else:
        assert window.cut > 0
        assert window.kept == 1


def test_few_windows_are_rendered_of_a_long_conversation() -> None:
    class Counting(TemplatedModel):
        rendered = 0

        def format_chat(self, messages: Sequence[Mapping[str, str]]) -> str:
            Counting.rendered += 1
            return super().format_chat(messages)

    talk = said(*(words(3) for _ in range(MAX_MESSAGES - 1)))
    fit_window(Counting(), talk, system="", max_tokens=1024)
    assert Counting.rendered < 15


@pytest.mark.parametrize(
    ("messages", "part"),
    [
        ("hello", "must be a list"),
        ({"role": "user"}, "must be a list"),
        (None, "must be a list"),
        ([], "none of the user"),
        (["hello"], "messages[0] must be an object"),
        ([{"role": "robot", "content": "x"}], "messages[0].role is 'robot'"),
        ([{"role": ["user"], "content": "x"}], "messages[0].role is"),
        ([{"role": "user"}], "messages[0].content must be a text, not NoneType"),
        ([{"role": "user", "content": 7}], "must be a text, not int"),
        ([{"role": "user", "content": " \n"}], "messages[0].content is empty"),
        ([{"role": "user", "content": "\ud800"}], "half a surrogate pair"),
        ([{"role": "assistant", "content": "x"}], "none of the user"),
        ([{"role": "user", "content": "x"}] * (MAX_MESSAGES + 1), "at most 4,096"),
        ([{"role": "user", "content": "x" * (MAX_CHARACTERS // 2 + 1)}] * 2, "together"),
        ([{"role": "user", "content": "x" * (MAX_CHARACTERS + 1)}], "at most 4,000,000"),
    ],
)
def test_messages_that_cannot_be_used_are_refused(messages: object, part: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_messages(messages)
    assert part in str(caught.value)
    assert len(str(caught.value)) < 300


def test_empty_answers_are_left_out_and_records_pass() -> None:
    checked = check_messages(
        [
            {"role": "user", "content": "one", "name": "somebody"},
            {"role": "assistant", "content": ""},
            Message("user", "two"),
        ]
    )
    assert checked == (Message("user", "one"), Message("user", "two"))


def test_an_empty_system_message_says_that_there_is_to_be_none() -> None:
    asked = {"role": "user", "content": "one"}
    checked = check_messages([{"role": "system", "content": ""}, asked])
    window = fit_window(MODEL, checked, system="Be brief.", max_tokens=100)
    assert window.prompt == "<user> one </>"
    own = check_messages([{"role": "system", "content": " "}, Message("system", "Rhyme."), asked])
    window = fit_window(MODEL, own, system="Be brief.", max_tokens=100)
    assert window.prompt == "<system> Rhyme. </>\n<user> one </>"


def test_the_last_question_is_what_is_routed() -> None:
    talk = (Message("system", "s"), *said("one", "two", "three", "four"))
    assert last_question(talk) == ("three", ("one",))


def test_a_turn_can_be_taken_back() -> None:
    talk = Conversation("Be brief.")
    assert talk.take_back() is None
    talk.ask("one")
    talk.answer("two")
    talk.ask("three")
    talk.answer("four")
    before = talk.messages
    assert talk.turns == 2
    assert talk.take_back() == "three"
    assert [m.content for m in talk.messages] == ["Be brief.", "one", "two"]
    talk.restore(before)
    assert talk.messages == before
    talk.reset()
    assert talk.messages == (Message("system", "Be brief."),)
    with pytest.raises(UsageError, match="empty"):
        talk.ask("  ")
    assert talk.turns == 0


def test_a_conversation_comes_back_from_its_file(tmp_path: Path) -> None:
    talk = Conversation("Be brief.")
    talk.ask("one\ntwo")
    talk.answer("drei ü")
    talk.save(tmp_path / "talk.json")
    again = Conversation()
    again.ask("something else")
    again.load(tmp_path / "talk.json")
    assert again.messages == talk.messages
    empty = Conversation("s")
    empty.save(tmp_path / "empty.json")
    again.load(tmp_path / "empty.json")
    assert again.messages == (Message("system", "s"),)


def test_a_plain_list_of_messages_is_read(tmp_path: Path) -> None:
    path = tmp_path / "messages.json"
    path.write_text('[{"role": "system", "content": "s"}, {"role": "user", "content": "one"}]')
    talk = Conversation()
    talk.load(path)
    assert talk.messages == (Message("system", "s"), Message("user", "one"))


@pytest.mark.parametrize(
    "document",
    [
        {"format": "another", "messages": []},
        {"messages": "hello"},
        {"messages": None},
        {"system": 7, "messages": []},
        [{"role": "root", "content": "x"}],
        [[]],
        7,
    ],
)
def test_a_file_that_is_no_conversation_changes_nothing(document: Any, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    path.write_text(json.dumps(document))
    talk = Conversation("s")
    talk.ask("one")
    with pytest.raises(DataError, match="is no conversation"):
        talk.load(path)
    assert talk.messages == (Message("system", "s"), Message("user", "one"))


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "talk.json").write_bytes(b"\xff{")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    for name in ("talk.json", "deep.json", "gone.json", "."):
        with pytest.raises(StorageError):
            Conversation().load(tmp_path / name)
