"""What an index notes of self-edits on disk, and how a line of their files is read.

Takes lines of a file of self-edits, of a list of drops, or of a journal; gives edits and drops.
`Records` holds numbers alone, a column each, so that millions take little memory.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import Any, Literal, TypeAlias

from aios.app.edits.inspect_choice import MOST_SCORES
from aios.app.edits.inspection import MOST_NAMES, OTHERS, four_digits, shown_name
from aios.core.data.edit_files import parse_drop
from aios.core.data.edit_rows import from_row
from aios.core.files import parse_json
from aios.core.types import Drop, SelfEdit

Kind: TypeAlias = Literal["edits", "drops", "journal"]

FAULTS = (ValueError, OverflowError, KeyError, TypeError, AttributeError)
"""What a line of another form raises."""


class Names:
    """Names by number, at most so many; what is more has one number together."""

    def __init__(self, *first: str) -> None:
        self.names = list(first)
        self._numbers = {name: number for number, name in enumerate(first)}

    def number(self, name: str) -> int:
        """The number of a name, which may come from anywhere; a new one gets the next."""
        name = shown_name(name)
        if name not in self._numbers and len(self.names) >= MOST_NAMES:
            name = OTHERS
        if name not in self._numbers:
            self._numbers[name] = len(self.names)
            self.names.append(name)
        return self._numbers[name]

    def find(self, names: Iterable[str]) -> list[int]:
        """The numbers of those names that are known."""
        return [self._numbers[name] for name in names if name in self._numbers]


class Records:
    """What is noted of each edit and drop, a column each."""

    def __init__(self) -> None:
        self.passage = array("I")
        self.file = array("B")
        self.offset = array("Q")
        self.length = array("I")
        self.place = array("I")  # among the edits and drops of its line
        self.strategy = array("B")
        self.reason = array("B")
        self.index = array("I")
        self.scores: dict[str, tuple[array[int], array[float]]] = {}  # records and values

    def __len__(self) -> int:
        return len(self.passage)

    def score(self, name: str, value: float) -> None:
        """Notes a score of the last record."""
        if name not in self.scores:
            if len(self.scores) >= MOST_SCORES:
                return
            self.scores[name] = (array("I"), array("d"))
        records, values = self.scores[name]
        records.append(len(self) - 1)
        values.append(four_digits(value))


def parsed_line(kind: Kind, line: bytes, needle: str) -> list[SelfEdit | Drop]:
    """The edits and drops of a line; none where it cannot hold the text, or was changed."""
    if needle and b"\\u" not in line and needle not in line.decode("utf-8", "replace").lower():
        return []
    try:
        row = parse_json(line)
        if kind == "edits":
            return [from_row(row)]
        return [parse_drop(row)] if kind == "drops" else list(journalled(row["value"]))
    except FAULTS:
        return []


def journalled(value: Any) -> Iterator[SelfEdit | Drop]:
    """A passage's edits, then its drops, as a journal keeps them."""
    for row in value["kept"]:
        yield from_row(row)
    for row in value["drops"]:
        yield parse_drop(row)
