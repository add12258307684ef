"""What a temporary expert is trained on: a self-edit, in any of its forms, and its passage.

Takes a record, a plain text or training examples; gives training examples. One training text is
one item of the self-edit, so a question stays with its answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from aios.core.errors import UsageError
from aios.core.training.examples import LossOn, edit_examples, passage_examples
from aios.core.types import Passage, SelfEdit, TrainExample

Edit = str | SelfEdit | Sequence[TrainExample]
Passages = Passage | Mapping[str, Passage] | None
_OPEN_QUESTION = re.compile(r"Question:.*")  # one line


class EmptyEditError(UsageError):
    """A self-edit holds nothing to train on."""


def trainable_examples(
    edit: Edit, passage: Passage | None, *, passage_copies: int, loss_on: LossOn
) -> tuple[TrainExample, ...]:
    """The examples of an edit, after so many copies of its passage, if one is given.

    Args:
        edit: The self-edit; a text is an item a line, an answer with its question.
        passage: The passage that is trained on too; None for none.
        passage_copies: Times it stands among the examples.
        loss_on: Which part of question-answer items carries loss.

    Raises:
        EmptyEditError: The edit holds nothing to train on.
    """
    if isinstance(edit, str):
        passage_id = "" if passage is None else passage.id
        edit = SelfEdit(passage_id, "text", 0, tuple(text_items(edit)))
    if isinstance(edit, SelfEdit):
        made = edit_examples([edit], loss_on)
        examples = [example for example in made if example.text.strip()]
    else:
        examples = list(edit)
    if not examples:
        raise EmptyEditError(
            "the self-edit is empty: there is nothing to train on",
            "give at least one text, or leave the passage out of this round",
        )
    copies = [] if passage is None else passage_examples([passage], passage_copies)
    return (*copies, *examples)


def text_items(text: str) -> list[str]:
    """The items of a self-edit that is given as a text, as `SelfEdit.text` joins them.

    Each line that is not empty is one, but for a line that begins with ``Answer:``, which goes on
    with the ``Question:`` above it.
    """
    items: list[str] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("Answer:") and items and _OPEN_QUESTION.fullmatch(items[-1]):
            items[-1] = f"{items[-1]}\n{line}"
        else:
            items.append(line)
    return items


def passage_of(edit: Edit, passages: Passages) -> Passage | None:
    """The passage that is trained on with an edit.

    Raises:
        UsageError: Passages are given by id, and the edit has none, or one that is not among them.
    """
    if passages is None or isinstance(passages, Passage):
        return passages
    if not isinstance(edit, SelfEdit):
        raise UsageError(
            "passages are given by their ids, and an edit has no passage id",
            "give self-edits (SelfEdit), or one passage for all",
        )
    if edit.passage_id not in passages:
        raise UsageError(
            f"passage {edit.passage_id!r} of a self-edit is not among the passages given",
            "give the passages that the self-edits were made from",
        )
    return passages[edit.passage_id]
