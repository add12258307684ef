"""Which passages of a generation are shown, chosen while their records go by.

Takes kept edits, then drops, one at a time; keeps those of the chosen passages alone, cut to the
limits below, so that memory is bounded by what is shown.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count

from aios.app.edits.inspection import Selection, ShownDrop, ShownEdit, ShownPassage, shown_name
from aios.core.types import Drop, SelfEdit

MOST_EDITS = 40  # kept edits, and drops, of one passage
MOST_ITEMS = 40  # items of one edit
MOST_SCORES = 40  # scores of one edit
MOST_CHARACTERS = 2_000  # of one item
MOST_PASSAGE_CHARACTERS = 40_000  # of a passage's edits and drops; then there is no further one
MOST_SOURCE_CHARACTERS = 8_000  # of the passage's own text


def hash8(*parts: object) -> int:
    """64 bits that depend on the parts."""
    text = "\0".join(map(str, parts))
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def cut(text: str, limit: int) -> str:
    """A text that can be written as UTF-8, of at most so many characters and a note of the rest."""
    more = len(text) - limit
    text = text[:limit].encode("utf-8", "replace").decode()
    return text if more <= 0 else f"{text} … [{more:,} more characters]"


@dataclass(slots=True)
class _Group:
    """What is shown of a passage; its ranks are its places in the two files."""

    id: str
    edits: list[ShownEdit] = field(default_factory=list)
    drops: list[ShownDrop] = field(default_factory=list)
    more_edits: int = 0
    more_drops: int = 0
    characters: int = 0
    edit_rank: int | None = None
    drop_rank: int | None = None

    def has_room(self, shown: int) -> bool:
        return shown < MOST_EDITS and self.characters < MOST_PASSAGE_CHARACTERS


class Choice:
    """Keeps what is shown.

    The first so many passages are those of the edits, and of the drops as many again; where the
    files have passages in common, the others stand between them. A sample is the passages with
    the least hashes of seed and id: one that is among the least in the end always was, so none
    of its records was missed.

    Args:
        selection: What is shown.
    """

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._groups: dict[str, _Group] = {}
        self._sample: list[tuple[int, str]] = []  # a heap: the largest hash, negated, comes first
        self._rank = count()
        self._room = selection.limit

    def edit(self, edit: SelfEdit) -> None:
        """Adds a kept edit that the selection wants."""
        group = self._group(edit.passage_id)
        if group is None:
            return
        if group.edit_rank is None:
            group.edit_rank = next(self._rank)
        if not group.has_room(len(group.edits)):
            group.more_edits += 1
            return
        items = tuple(cut(item, MOST_CHARACTERS) for item in edit.items[:MOST_ITEMS])
        group.characters += sum(map(len, items))
        shown = ShownEdit(
            strategy=shown_name(edit.strategy),
            index=edit.index,
            items=items,
            more=len(edit.items) - len(items),
            model=shown_name(edit.model),
            seed=edit.seed,
            tokens=edit.tokens,
            scores={shown_name(k): v for k, v in list(edit.scores.items())[:MOST_SCORES]},
        )
        group.edits.append(shown)

    def edits_end(self) -> None:
        """Says that drops come now."""
        self._room = self._selection.limit

    def drop(self, drop: Drop, *, whole: bool, is_new: bool) -> None:
        """Adds a drop that the selection wants.

        Args:
            drop: The drop.
            whole: Whether it is a whole candidate.
            is_new: Whether this is the first record of its passage that the selection wants.
        """
        group = self._group(drop.passage_id) if is_new else self._groups.get(drop.passage_id)
        if group is None:
            return
        if group.drop_rank is None:
            group.drop_rank = next(self._rank)
        if not group.has_room(len(group.drops)):
            group.more_drops += 1
            return
        text = cut(drop.text, MOST_CHARACTERS)
        group.characters += len(text)
        reason, detail = shown_name(drop.reason), cut(drop.detail, MOST_CHARACTERS // 4)
        strategy = shown_name(drop.strategy)
        group.drops.append(ShownDrop(strategy, drop.index, text, reason, detail, whole))

    def passages(self, is_bad: Mapping[str, Callable[[float], bool]]) -> tuple[ShownPassage, ...]:
        """The chosen passages, in the files' order.

        Args:
            is_bad: By score, whether a value is a bad one.
        """
        groups = _in_order(list(self._groups.values()))
        if not self._selection.passages:
            groups = groups[: self._selection.limit]
        return tuple(
            ShownPassage(
                id=cut(group.id, MOST_CHARACTERS),
                title="",
                text="",
                edits=tuple(_marked(edit, is_bad) for edit in group.edits),
                drops=tuple(group.drops),
                more_edits=group.more_edits,
                more_drops=group.more_drops,
            )
            for group in groups
        )

    def _group(self, passage_id: str) -> _Group | None:
        """Where a passage's records go; None if it is not chosen."""
        known = self._groups.get(passage_id)
        if known is not None or not self._admits(passage_id):
            return known
        group = self._groups[passage_id] = _Group(passage_id)
        return group

    def _admits(self, passage_id: str) -> bool:
        if self._selection.passages:
            return True
        if not self._selection.sample:
            self._room -= 1
            return self._room >= 0
        entry = (-hash8(self._selection.seed, passage_id), passage_id)
        if len(self._sample) < self._selection.limit:
            heapq.heappush(self._sample, entry)
            return True
        if not self._sample or entry <= self._sample[0]:
            return False
        _, removed = heapq.heapreplace(self._sample, entry)
        del self._groups[removed]
        return True


def _in_order(groups: list[_Group]) -> list[_Group]:
    """Passages in the order of the edits; those with drops alone where the drops have them."""

    def place(rank: int | None) -> int:
        return -1 if rank is None else rank

    with_edits = sorted(
        (g for g in groups if g.edit_rank is not None), key=lambda g: place(g.edit_rank)
    )
    others = sorted((g for g in groups if g.edit_rank is None), key=lambda g: place(g.drop_rank))
    others.reverse()
    ordered: list[_Group] = []
    for group in with_edits:
        while others and place(others[-1].drop_rank) < place(group.drop_rank):
            ordered.append(others.pop())
        ordered.append(group)
    return ordered + others[::-1]


def _marked(edit: ShownEdit, is_bad: Mapping[str, Callable[[float], bool]]) -> ShownEdit:
    bad = (name for name, value in edit.scores.items() if name in is_bad and is_bad[name](value))
    return replace(edit, bad=tuple(bad))
