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
    at = item.rfind(_ANSWER) if loss_on == "answer" else -1
    begin = at + len(_ANSWER) if at >= 0 else 0
    return TrainExample(item, ((begin, len(item)),), edit.strategy, edit.passage_id)


def augmented_examples(
    passages: Sequence[Passage],
    edits: Iterable[SelfEdit],
    *,
    passage_copies: int = 1,
    loss_on: LossOn = "all",
) -> tuple[TrainExample, ...]:
    """Passages and self-edits as one training set.

    Passages without an edit are in it all the same, so a failed generation costs its edits only.
    """
    return (*passage_examples(passages, passage_copies), *edit_examples(edits, loss_on))
