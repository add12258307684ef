"""Plain-text and Markdown files as raw records.

``.txt``: passages are separated by blank lines. ``.md``: each heading starts a passage and is its
title; text before the first heading has none. Fenced code is never taken for a heading, and YAML
front matter at the top is left out. A record is rejected as a whole where one line of it is bad.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from aios.core.data import lines
from aios.core.data.rejects import Reject

_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*))?$")
_CLOSING_HASHES = re.compile(r"(?:^|[ \t])#+[ \t]*$")
_UNDERLINE = re.compile(r" {0,3}(=+|-{2,})[ \t]*$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_FRONT_MATTER_LINE = re.compile(r"[\w-]+[ \t]*:|[ \t]|-[ \t]|#|$")
_MAX_FRONT_MATTER_LINES = 200

Line = tuple[int, "str | Reject"]


@dataclass(frozen=True, slots=True)
class RawRecord:
    """A record as it stands in the file, with the keys of the JSON formats.

    Attributes:
        line: Its first line, or its number where records are not lines; from 1.
        fields: Its values by key, not yet checked.
    """

    line: int
    fields: Mapping[str, object]


@dataclass(slots=True)
class _Block:
    """Lines of one record, with the first problem met in them."""

    path: Path
    first: int = 0
    size: int = 0
    kept: list[str] = field(default_factory=list)
    problem: Reject | None = None

    def add(self, number: int, line: str | Reject) -> None:
        if self.problem is not None:
            return
        if not self.first:
            self.first = number
        if isinstance(line, Reject):
            self.problem = line
            return
        self.size += len(line.encode()) + 1
        if self.size > lines.MAX_RECORD_BYTES:
            self.problem = lines.too_long(self.path, self.first)
            self.kept.clear()
        else:
            self.kept.append(line)

    @property
    def text(self) -> str:
        return "\n".join(self.kept).strip()

    @property
    def is_blank(self) -> bool:
        return self.problem is None and not self.text


def txt_records(path: Path) -> Iterator[RawRecord | Reject]:
    """Blocks of lines between blank lines."""
    block = _Block(path)
    for number, line in lines.decoded_lines(path):
        if isinstance(line, Reject) or line.strip():
            block.add(number, line)
            continue
        yield from _finish(block)
        block = _Block(path)
    yield from _finish(block)


def _finish(block: _Block) -> Iterator[RawRecord | Reject]:
    if block.problem is not None:
        yield block.problem
    elif block.kept:
        yield RawRecord(block.first, {"text": block.text})


def md_records(path: Path) -> Iterator[RawRecord | Reject]:
    """Sections of a Markdown file, each with its heading as title."""
    section = _Section(path)
    for number, line in _without_front_matter(lines.decoded_lines(path)):
        heading = None if isinstance(line, Reject) else section.heading(line)
        if heading is None:
            section.block.add(number, line)
            continue
        level, title = heading
        yield from section.finish(next_level=level)
        section = _Section(path, level, title, number)
    yield from section.finish(next_level=0)


@dataclass(slots=True)
class _Section:
    """What stands under one heading (level 0: before the first)."""

    path: Path
    level: int = 0
    title: str = ""
    line: int = 0
    block: _Block = field(init=False)
    fence: str = ""

    def __post_init__(self) -> None:
        self.block = _Block(self.path)

    def heading(self, line: str) -> tuple[int, str] | None:
        """Level and title if this line is, or ends, a heading."""
        if fence := _FENCE.match(line):
            mark = fence.group(1)
            if not self.fence:
                self.fence = mark
            elif mark.startswith(self.fence) and not line.strip(" \t" + mark[0]):
                self.fence = ""
            return None
        if self.fence:
            return None
        if atx := _ATX.match(line):
            return len(atx.group(1)), _CLOSING_HASHES.sub("", atx.group(2) or "").strip()
        if underline := _UNDERLINE.match(line):
            return self._underlined(1 if underline.group(1)[0] == "=" else 2)
        return None

    def _underlined(self, level: int) -> tuple[int, str] | None:
        """The last line as a heading, if it is a paragraph of its own."""
        kept = self.block.kept
        if not kept or not kept[-1].strip() or (len(kept) > 1 and kept[-2].strip()):
            return None
        return level, kept.pop().strip()

    def finish(self, *, next_level: int) -> Iterator[RawRecord | Reject]:
        """The record; nothing for a bare heading over subsections, or blank text before all."""
        if self.block.problem is not None:
            yield self.block.problem
        elif not self.block.is_blank:
            line = self.line or self.block.first
            yield RawRecord(line, {"text": self.block.text, "title": self.title})
        elif self.level and next_level <= self.level:
            detail = f"no text under the heading {self.title!r}"
            yield Reject(str(self.path), self.line, "empty_text", detail)


def _without_front_matter(source: Iterator[Line]) -> Iterator[Line]:
    """Drops a leading ``---`` … ``---`` block of ``key: value`` lines; gives all else as it is."""
    held: list[Line] = []
    for number, line in source:
        held.append((number, line))
        if isinstance(line, Reject) or len(held) > _MAX_FRONT_MATTER_LINES:
            break
        if number == 1:
            if line.rstrip() != "---":
                break
        elif line.rstrip() in ("---", "..."):
            held.clear()
            break
        elif not _FRONT_MATTER_LINE.match(line):
            break
    yield from held
    yield from source
