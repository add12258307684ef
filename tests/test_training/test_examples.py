from __future__ import annotations

import pytest

from aios.core.training.examples import (
    augmented_examples,
    edit_examples,
    passage_examples,
    passage_text,
)
from aios.core.types import Passage, SelfEdit, TrainExample

PAIR = "Question: Who built the mill?\nAnswer: Tove Lind"
FACT = "Tove Lind built the mill."


def edit(*items: str, passage_id: str = "p", strategy: str = "self-qa") -> SelfEdit:
    return SelfEdit(passage_id, strategy, 0, items)


def carried(example: TrainExample) -> str:
    """The text that carries loss."""
    return "".join(example.text[start:end] for start, end in example.loss_spans)


def test_a_passage_is_trained_on_with_its_title() -> None:
    assert passage_text(Passage.make("The mill.", title="Arn")) == "Arn\nThe mill."
    assert passage_text(Passage.make("The mill.")) == "The mill."


def test_a_passage_carries_loss_as_a_whole_and_stands_as_often_as_asked() -> None:
    passages = [Passage.make("One.", id="a"), Passage.make("Two.", id="b")]
    examples = passage_examples(passages, copies=2)
    assert [example.text for example in examples] == ["One.", "One.", "Two.", "Two."]
    assert [example.passage_id for example in examples] == ["a", "a", "b", "b"]
    assert all(carried(example) == example.text for example in examples)
    assert {example.source for example in examples} == {"passage"}
    assert passage_examples(passages, copies=0) == []


def test_each_item_of_an_edit_is_an_example_with_its_origin() -> None:
    examples = edit_examples([edit(FACT, PAIR), edit(FACT, passage_id="q", strategy="rewrite")])
    assert [example.text for example in examples] == [FACT, PAIR, FACT]
    assert [(e.source, e.passage_id) for e in examples] == [
        ("self-qa", "p"),
        ("self-qa", "p"),
        ("rewrite", "q"),
    ]
    assert all(carried(example) == example.text for example in examples)


@pytest.mark.parametrize(
    ("item", "loss"),
    [
        (PAIR, " Tove Lind"),
        ("Question: Why?\nAnswer: So.\nAnswer: And so.", " So.\nAnswer: And so."),
        (FACT, FACT),
        ("A play.\nAnswer: a line of it", "A play.\nAnswer: a line of it"),  # no pair
        ("Question: Why?", "Question: Why?"),
        ("Question: Why?\nAnswer:", "Question: Why?\nAnswer:"),
        ("Question: Why?\nAnswer: ", "Question: Why?\nAnswer: "),
    ],
)
def test_loss_on_the_answer_leaves_out_the_question_of_a_pair_only(item: str, loss: str) -> None:
    (example,) = edit_examples([edit(item)], "answer")
    assert carried(example) == loss
    assert example.text == item


def test_augmented_data_are_the_passages_and_then_the_edits() -> None:
    passages = [Passage.make("One.", id="p")]
    examples = augmented_examples(passages, [edit(FACT, PAIR)], passage_copies=2, loss_on="answer")
    assert [example.text for example in examples] == ["One.", "One.", FACT, PAIR]
    assert carried(examples[-1]) == " Tove Lind"


def test_edits_may_come_from_a_generator() -> None:
    examples = augmented_examples([Passage.make("One.", id="p")], (edit(FACT) for _ in range(2)))
    assert [example.text for example in examples] == ["One.", FACT, FACT]


def test_a_passage_without_edits_keeps_its_text_even_where_copies_are_none() -> None:
    passages = [Passage.make(text, id=text) for text in ("with", "without", "empty")]
    edits = [edit(FACT, passage_id="with"), edit(passage_id="empty")]
    examples = augmented_examples(passages, edits, passage_copies=0)
    assert [example.text for example in examples] == ["without", "empty", FACT]
