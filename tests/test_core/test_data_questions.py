"""Questions from their own file, and giving them to passages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aios.core.data.questions import assign_questions, attach_questions, read_questions
from aios.core.errors import DataError
from aios.core.types import Passage, Question


def test_questions_file_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    entries = [
        {"passage_id": "p", "question": "Q1?", "answer": "A"},
        {"id": 7, "question": "Q2?", "answers": ["B", "C"], "category": "name"},
        {"passage_id": "p", "questions": [{"question": "Q3?", "answer": "D"}]},
        {"passage_id": "p", "question": "Q1?", "answer": "A"},
        {"passage_id": "gone", "question": "Q4?", "answers": [], "is_impossible": True},
    ]
    path.write_text("\n".join(json.dumps(entry) for entry in entries), "utf-8")
    assert read_questions(path) == {
        "p": (Question("Q1?", ("A",)), Question("Q3?", ("D",))),
        "7": (Question("Q2?", ("B", "C"), "name"),),
    }


def test_questions_file_as_json_list(tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    path.write_text('[{"passage_id": "p", "question": "Q?", "answer": "A"}]', "utf-8")
    assert read_questions(path) == {"p": (Question("Q?", ("A",)),)}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.jsonl", '{"passage_id": "p", "question": "Q?", "answer": "A"}\n{x', ":2: bad_json"),
        ("q.jsonl", '{"question": "Q?", "answer": "A"}', ":1: 'passage_id'"),
        ("q.jsonl", '\n{"passage_id": "p", "question": "Q?"}', ":2: question 1: no 'answer'"),
        ("q.jsonl", "", "holds no questions"),
        ("q.json", "[5]", ":1: not an object"),
        ("q.json", '{"p": []}', "not a list"),
        ("q.json", "{", "not valid JSON"),
        ("q.csv", "a,b", "unknown ending '.csv'"),
    ],
)
def test_bad_questions_file(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content, "utf-8")
    with pytest.raises(DataError, match=message) as caught:
        read_questions(path)
    assert caught.value.remedy


def test_missing_questions_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_questions(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        read_questions(tmp_path / "none.json")


def test_attached_questions_follow_the_passages_own() -> None:
    own, new = Question("Own?", ("a",)), Question("New?", ("b",))
    passages = [Passage.make("One", id="1", questions=(own,)), Passage.make("Two", id="2")]
    attached = attach_questions(passages, {"1": (new, own)})
    assert attached[0].questions == (own, new)
    assert attached[1] is passages[1]


def test_questions_about_a_split_passage_go_to_its_parts() -> None:
    passages = [
        Passage.make("Orla built it.", id="d#1"),
        Passage.make("It burned in 1904.", id="d#2"),
    ]
    question = Question("When did it burn?", ("1904",))
    attached = attach_questions(passages, {"d": (question,)})
    assert [p.questions for p in attached] == [(), (question,)]


def test_unknown_passage_ids_are_listed() -> None:
    questions = {f"no{n}": (Question("q", ("a",)),) for n in range(12)}
    with pytest.raises(DataError, match=r"'no0', .*'no9' and 2 more"):
        attach_questions([Passage.make("One", id="1")], questions)


def test_question_goes_to_the_part_with_its_answer_that_it_resembles_most() -> None:
    texts = ["In 1904 the mill opened.", "In 1904 the bridge burned.", "See page 19041. 川は長い。"]
    ask = [
        Question("When did the bridge burn?", ("1904",)),
        Question("When did the mill open?", ("1904",)),
        Question("What is long?", ("川",)),
        Question("Unknown?", ("nothing like it",)),
    ]
    given = assign_questions(texts, ask)
    assert [[q.question for q in part] for part in given] == [
        ["When did the mill open?", "Unknown?"],
        ["When did the bridge burn?"],
        ["What is long?"],
    ]
