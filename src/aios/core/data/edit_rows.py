"""Self-edits as rows of a file, both ways, and as rows for chat and instruction tuning.

A row holds ``text`` (the items joined), ``items``, ``passage_id``, ``strategy``, ``edit`` (the
candidate number, from 0), ``model``, ``seed``, ``tokens``, ``quality`` (scores by name) and
``completion``. A score that is not a finite number is written as null and read as absent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from aios.core.data.rejects import Reject, one_line
from aios.core.data.structured_records import jsonl_values, parquet_rows
from aios.core.errors import DataError
from aios.core.types import Passage, SelfEdit

Row = dict[str, object]

EDIT_COLUMNS = (
    "text",
    "items",
    "passage_id",
    "strategy",
    "edit",
    "model",
    "seed",
    "tokens",
    "quality",
    "completion",
)

_OPENING_WORDS = 8
_INT64 = range(-(2**63), 2**63)


def to_row(edit: SelfEdit) -> Row:
    """The row of a self-edit, made of JSON values."""
    return {
        "text": edit.text,
        "items": list(edit.items),
        "passage_id": edit.passage_id,
        "strategy": edit.strategy,
        "edit": edit.index,
        "model": edit.model,
        "seed": edit.seed,
        "tokens": edit.tokens,
        "quality": {
            name: float(score) if math.isfinite(score) else None
            for name, score in edit.scores.items()
        },
        "completion": edit.completion,
    }


def from_row(row: Mapping[str, object]) -> SelfEdit:
    """The self-edit of a row that may come from anywhere.

    Raises:
        ValueError: A value is missing or of the wrong type; the message names its key.
    """
    items = row.get("items")
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise ValueError("'items' is not a list of texts")
    return SelfEdit(
        passage_id=_text(row, "passage_id"),
        strategy=_text(row, "strategy"),
        index=_integer(row, "edit", least=0),
        items=tuple(items),
        model=_text(row, "model", ""),
        seed=_integer(row, "seed", default=0),
        completion=_text(row, "completion", ""),
        tokens=_integer(row, "tokens", default=0, least=0),
        scores=_scores(row.get("quality")),
    )


def _text(row: Mapping[str, object], key: str, default: str | None = None) -> str:
    value = row.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise ValueError(f"{key!r} is {one_line(repr(value), 40)}, not a text")
    return value


def _integer(
    row: Mapping[str, object], key: str, *, default: int | None = None, least: int = _INT64.start
) -> int:
    value = row.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value not in _INT64:
        raise ValueError(f"{key!r} is {one_line(repr(value), 40)}, not a whole number of 64 bits")
    if value < least:
        raise ValueError(f"{key!r} is {value}, below {least}")
    return value


def _scores(value: object) -> dict[str, float]:
    if value is None:
        return {}
    if isinstance(value, list):  # Parquet: a list of {name, value}
        value = {
            entry.get("name"): entry.get("value") for entry in value if isinstance(entry, dict)
        }
    if not isinstance(value, dict):
        raise ValueError("'quality' is not an object")
    scores: dict[str, float] = {}
    for name, score in value.items():
        if score is None:
            continue
        number = isinstance(score, (int, float)) and not isinstance(score, bool)
        if not isinstance(name, str) or not number or not math.isfinite(score):
            raise ValueError(
                f"'quality' has {one_line(repr(score), 40)} for {one_line(name, 40)!r}"
            )
        scores[name] = float(score)
    return scores


def read_edits(path: Path) -> Iterator[SelfEdit]:
    """Reads self-edits that an earlier run wrote, one at a time.

    Args:
        path: A ``.jsonl`` or ``.parquet`` file in the full format.

    Raises:
        DataError: The ending is another, the file is unreadable, or a row is not a self-edit (the
            message gives its line); raised while iterating.
        UsageError: A Parquet file, and pyarrow is not installed.
    """
    for line, row in _rows(path):
        try:
            edit = from_row(row)
        except (ValueError, OverflowError) as error:
            raise DataError(
                f"{path}:{line}: not a self-edit: {error}",
                "Give a .jsonl or .parquet file that 'aios seal generate' wrote.",
            ) from error
        yield edit


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    ending = path.suffix.lower()
    if ending == ".parquet":
        yield from parquet_rows(path, EDIT_COLUMNS)
    elif ending == ".jsonl":
        for item in jsonl_values(path):
            if isinstance(item, Reject):
                detail = f"{item.reason}: {item.detail}"
                raise DataError(f"{path}:{item.line}: not a self-edit: {detail}")
            yield item
    else:
        raise DataError(
            f"{path}: unknown ending {ending!r} for self-edits",
            "Known endings: .jsonl, .parquet (a .txt file does not say which passage is whose).",
        )


def conversations(edit: SelfEdit, passage: Passage) -> Iterator[tuple[str, str, bool]]:
    """A self-edit as prompts and replies for instruction tuning.

    An item ``Question: …`` / ``Answer: …`` gives the question and its answer. All other items of
    the edit are one reply, in lines, to the request to say what is known about the passage's
    title (or about the passage with that beginning). The passage itself is never in the prompt:
    what is trained is knowing it.

    Yields:
        Prompt, reply, and whether it is a question and its answer.
    """
    statements: list[str] = []
    for item in edit.items:
        if pair := _question_answer(item):
            yield *pair, True
        elif item.strip():
            statements.append(item.strip())
    if statements:
        subject = passage.title
        if not subject:
            opening = passage.text.split()[:_OPENING_WORDS]
            subject = f'the text that begins "{" ".join(opening)}"'
        yield f"State what you know about {subject}.", "\n".join(statements), False


def _question_answer(item: str) -> tuple[str, str] | None:
    """Question and answer, if the item is one pair of them and nothing else."""
    asked, _, answered = item.strip().partition("\nAnswer:")
    question, answer = asked.removeprefix("Question:").strip(), answered.strip()
    if not asked.startswith("Question:") or not question or not answer:
        return None
    return None if "\nQuestion:" in answer else (question, answer)


def _messages(prompt: str, reply: str, _is_question: bool) -> Row:
    return {
        "messages": [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": reply},
        ]
    }


def _prompt_completion(prompt: str, reply: str, is_question: bool) -> Row:
    if is_question:
        return {"prompt": f"Question: {prompt}\nAnswer:", "completion": f" {reply}"}
    return {"prompt": f"{prompt}\n", "completion": reply}


def _alpaca(prompt: str, reply: str, _is_question: bool) -> Row:
    return {"instruction": prompt, "input": "", "output": reply}


def _sharegpt(prompt: str, reply: str, _is_question: bool) -> Row:
    return {"conversations": [{"from": "human", "value": prompt}, {"from": "gpt", "value": reply}]}


CHAT_FORMATS: dict[str, Callable[[str, str, bool], Row]] = {
    "messages": _messages,
    "prompt-completion": _prompt_completion,
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
}
"""Rows for training tools, by the format's name; each holds only the keys that the format has."""
