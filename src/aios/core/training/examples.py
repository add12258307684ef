"""From passages and self-edits to training examples, with the parts that carry loss."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from aios.core.types import Passage, SelfEdit, TrainExample

LossOn = Literal["all", "answer"]
_ANSWER = "\nAnswer:"


def passage_text(passage: Passage) -> str:
    """The text of a passage as it is trained on: its title, if it has one, and the text."""
    return f"{passage.title}\n{passage.text}" if passage.title else passage.text


def passage_examples(passages: Iterable[Passage], copies: int = 1) -> list[TrainExample]:
    """Each passage as one example, `copies` times."""
    return [
        TrainExample.whole(passage_text(passage), passage_id=passage.id)
        for passage in passages
        for _ in range(copies)
    ]


def edit_examples(edits: Iterable[SelfEdit], loss_on: LossOn = "all") -> list[TrainExample]:
    """Each item of each edit as one example.

    Args:
        edits: The edits.
        loss_on: ``answer`` restricts the loss of question-answer items to the answer; all other
            items carry loss as a whole.
    """
    return [_example(item, edit, loss_on) for edit in edits for item in edit.items]


def _example(item: str, edit: SelfEdit, loss_on: LossOn) -> TrainExample:
    begin = 0
    if loss_on == "answer" and item.startswith("Question:"):
        question, marker, answer = item.partition(_ANSWER)
        if answer.strip():
            begin = len(question) + len(marker)
    return TrainExample(item, ((begin, len(item)),), edit.strategy, edit.passage_id)


def augmented_examples(
    passages: Sequence[Passage],
    edits: Iterable[SelfEdit],
    *,
    passage_copies: int = 1,
    loss_on: LossOn = "all",
) -> tuple[TrainExample, ...]:
    """Passages and self-edits as one training set.

    Args:
        passages: The passages.
        edits: Their self-edits.
        passage_copies: Times each passage is in it; one without any edit is in it at least once,
            so a failed generation costs its edits and not the passage.
        loss_on: See `edit_examples`.
    """
    edits = list(edits)
    with_edits = {edit.passage_id for edit in edits if edit.items}
    copies = [
        example
        for passage in passages
        for example in passage_examples(
            [passage], passage_copies or int(passage.id not in with_edits)
        )
    ]
    return (*copies, *edit_examples(edits, loss_on))
