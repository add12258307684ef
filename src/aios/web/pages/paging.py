"""Pages of long lists: which part is shown, and where the others are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar
from urllib.parse import urlencode

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Paged(Generic[Item]):
    """A part of a list.

    Attributes:
        items: What is shown.
        number: Which page, from 1.
        pages: How many there are, 1 or more.
        total: Items on all pages.
    """

    items: Sequence[Item]
    number: int
    pages: int
    total: int

    def address(self, path: str, query: Mapping[str, str], number: int) -> str:
        """The address of a page of the list."""
        wanted = {**query, "page": "" if number <= 1 else str(number)}
        text = urlencode({key: value for key, value in wanted.items() if value})
        return f"{path}?{text}" if text else path

    def links(self, path: str, query: Mapping[str, str]) -> tuple[str, str]:
        """The addresses of the pages before and after."""
        return (
            self.address(path, query, self.number - 1),
            self.address(path, query, self.number + 1),
        )

    def query(self, query: Mapping[str, str]) -> str:
        """The query of this page, with its question mark; empty for none."""
        return self.address("", query, self.number)


def part_of(items: Sequence[Item], number: int, size: int) -> Paged[Item]:
    """The part of a list that a page shows; a page after the last is the last."""
    pages = max(1, -(-len(items) // size))
    number = min(max(1, number), pages)
    return Paged(items[(number - 1) * size : number * size], number, pages, len(items))
