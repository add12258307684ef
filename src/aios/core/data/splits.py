"""Splits into training, selection and report sides, and a check that nothing leaks across.

Passages are split by near-duplicate group, so that no text has a copy on the other side.
Questions are split within each passage: one part chooses checkpoints and settings, the other is
reported. Every choice depends on the seed and the passages' ids, not on the file's order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from aios.core.data.near_duplicates import near_duplicate_groups, nearest, words
from aios.core.data.rejects import one_line
from aios.core.errors import DataError, UsageError
from aios.core.seeds import derive
from aios.core.types import Passage, Question

_KEY_WORDS = 3
_LEAST_CONTAINED_WORDS = 4


def _check_fraction(fraction: float) -> None:
    if not 0 <= fraction < 1:
        raise UsageError(f"the split's fraction is {fraction}", "Give a number in [0, 1).")


def split_by_group(
    passages: Sequence[Passage], fraction: float, seed: int, *, threshold: float = 0.8
) -> tuple[tuple[Passage, ...], tuple[Passage, ...]]:
    """Splits passages into training and validation; near-duplicates stay together.

    So do the parts that a long passage was split into, unless there is no other passage.

    Args:
        passages: Passages with unique ids.
        fraction: Share of the passages for validation, in [0, 1). What is drawn comes as close to
            it as whole groups allow, but neither side is left empty where it is above 0.
        seed: The run's seed.
        threshold: Jaccard similarity from which two texts are near-duplicates.

    Returns:
        Training and validation passages, each in the given order.

    Raises:
        UsageError: The fraction or the threshold is out of range.
        DataError: `fraction` is above 0 and all passages are near-duplicates of one another.
    """
    _check_fraction(fraction)
    if fraction == 0 or not passages:
        return tuple(passages), ()
    numbers = near_duplicate_groups([passage.text for passage in passages], threshold)
    groups = _with_parts_together(passages, numbers)
    if len(groups) < 2:  # one long document: its parts are all there is to split
        groups = [
            [p for p, n in zip(passages, numbers, strict=True) if n == number]
            for number in dict.fromkeys(numbers)
        ]
    if len(groups) < 2:
        raise DataError(
            f"{len(passages)} passages form one near-duplicate group and cannot be split",
            "Add passages with other texts, or set the validation share to 0.",
        )
    order = sorted(groups, key=lambda group: derive(seed, "split", min(p.id for p in group)))
    target = fraction * len(passages)
    drawn: set[str] = set()
    for group in order:
        closer = abs(len(drawn) + len(group) - target) < abs(len(drawn) - target)
        if closer and len(drawn) + len(group) < len(passages):
            drawn.update(passage.id for passage in group)
    if not drawn:
        drawn.update(passage.id for passage in min(order, key=len))
    return (
        tuple(passage for passage in passages if passage.id not in drawn),
        tuple(passage for passage in passages if passage.id in drawn),
    )


def _with_parts_together(
    passages: Sequence[Passage], numbers: Sequence[int]
) -> list[list[Passage]]:
    """Near-duplicate groups, joined where they hold parts (``<id>#1``, …) of one passage."""
    group_of: dict[str, int] = {}  # near-duplicate groups and whole passages, by name
    groups: dict[int, list[Passage]] = {}
    for number, passage in zip(numbers, passages, strict=True):
        parent, mark, part = passage.id.rpartition("#")
        whole = parent if mark and part.isdecimal() else passage.id
        known = {group_of[k] for k in (f"group {number}", f"id {whole}") if k in group_of}
        home = min(known, default=len(group_of))
        for other in known - {home}:
            groups[home] += groups.pop(other)
            group_of.update({k: home for k, v in group_of.items() if v == other})
        groups.setdefault(home, []).append(passage)
        group_of[f"group {number}"] = group_of[f"id {whole}"] = home
    return list(groups.values())


QuestionsByPassage = dict[str, tuple[Question, ...]]


def split_questions(
    passages: Sequence[Passage], fraction: float, seed: int
) -> tuple[QuestionsByPassage, QuestionsByPassage]:
    """Splits each passage's questions into a selection and a report side.

    Args:
        passages: Passages with unique ids, with or without questions.
        fraction: Share of all questions for selection, in [0, 1). Rounding is carried from
            passage to passage, so the total is close to it.
        seed: The run's seed.

    Returns:
        Selection and report: the questions by passage id, in their given order, without passages
        that have none on that side. A passage with at least two different questions keeps at
        least one for the report. The same question asked twice stays on one side.

    Raises:
        UsageError: The fraction is out of range.
    """
    _check_fraction(fraction)
    chosen: dict[str, set[str]] = {}
    carry = 0.0
    for passage in sorted(passages, key=lambda p: derive(seed, "questions", p.id)):
        keys = list(dict.fromkeys(_key(question) for question in passage.questions))
        wanted = fraction * len(keys) + carry
        most = min(len(keys), max(1, len(keys) - 1))
        count = max(0, min(most, int(wanted + 0.5)))
        carry = wanted - count
        keys.sort(key=lambda key: derive(seed, "question", passage.id, key))
        chosen[passage.id] = set(keys[:count])
    selection: QuestionsByPassage = {}
    report: QuestionsByPassage = {}
    for passage in passages:
        for side, is_selection in ((selection, True), (report, False)):
            questions = tuple(
                q for q in passage.questions if (_key(q) in chosen[passage.id]) is is_selection
            )
            if questions:
                side[passage.id] = questions
    return selection, report


def _key(question: Question) -> str:
    return " ".join(words(question.question)) or question.question


def check_leakage(
    train_texts: Iterable[str], validation_texts: Iterable[str], threshold: float = 0.8
) -> list[str]:
    """Finds validation texts that training would show to the model.

    Three kinds: the same text, a near-duplicate, and a validation text that appears word for word
    (case and punctuation aside) inside a training text. The last is looked for where the
    validation text is a question or has at least four words, so that a bare name is no leak.

    Args:
        train_texts: All texts that are trained on.
        validation_texts: Validation passages and questions.
        threshold: Jaccard similarity from which two texts are near-duplicates.

    Returns:
        One line for each leaking validation text, in order; empty if there is none.

    Raises:
        UsageError: The threshold is out of range.
    """
    train, validation = list(train_texts), list(validation_texts)
    same: dict[str, int] = {}
    for number, text in enumerate(train, start=1):
        same.setdefault(" ".join(words(text)) or text.strip(), number)
    near = nearest(validation, train, threshold)
    inside = _containing(validation, train)
    leaks: list[str] = []
    for index, text in enumerate(validation):
        key = " ".join(words(text)) or text.strip()
        match = near[index]
        if not key:
            continue
        if key in same:
            found = f"equals training text {same[key]}"
        elif index in inside:
            found = f"appears in training text {inside[index] + 1}"
        elif match is not None:
            found = f"is a near-duplicate ({match[1]:.2f}) of training text {match[0] + 1}"
        else:
            continue
        leaks.append(f"validation text {index + 1} ({one_line(text, 60)!r}) {found}")
    return leaks


def _containing(needles: Sequence[str], texts: Sequence[str]) -> dict[int, int]:
    """For each needle that is a run of words in a text, the first such text.

    Needles are looked up by their first words, then by their length, then whole, so that the
    work grows with the texts and hardly with the number of needles.
    """
    by_start: dict[tuple[str, ...], dict[int, dict[tuple[str, ...], list[int]]]] = {}
    for index, needle in enumerate(needles):
        run = tuple(words(needle))
        is_question = needle.rstrip().endswith(("?", "\uff1f"))
        if len(run) >= (2 if is_question else _LEAST_CONTAINED_WORDS):
            by_length = by_start.setdefault(run[:_KEY_WORDS], {})
            by_length.setdefault(len(run), {}).setdefault(run, []).append(index)
    holders: dict[int, int] = {}
    for number, text in enumerate(texts):
        run = tuple(words(text))
        for start in range(len(run)):
            for size in (2, _KEY_WORDS):
                for length, by_run in by_start.get(run[start : start + size], {}).items():
                    for index in by_run.get(run[start : start + length], ()):
                        holders.setdefault(index, number)
    return holders
