"""Pieces of Markdown that read the same on the site and in a repository's browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

NOTICE = "<!-- Written by `make reference` from the program itself; do not edit. -->"
NOTHING = "–"

_CODE = re.compile(r"(`+[^`]+`+)")
# What is code in a help text without being marked as such: options, paths, addresses.
_LITERAL = re.compile(
    r"(?<![\w/-])(?:--set [\w.=-]*[\w-]|--[a-z][a-z-]+|\w+(?:/\w+)+\.(?:md|py|yaml|jsonl?)"
    r"|https?://(?:[^\s,;()|]*[\w/])?)"
)
_SPECIAL = re.compile(r"([\\*_<\[\]|])")
_DOUBLE = re.compile(r"``([^`]+)``")


def code(text: str) -> str:
    """Inline code that may stand in a table."""
    if "`" in text or "|" in text:
        raise ValueError(f"{text!r} cannot be inline code in a table")
    return f"`{text}`"


def prose(text: str) -> str:
    """Words of a help text or docstring, what is special in Markdown escaped outside of code."""
    parts = _CODE.split(_DOUBLE.sub(r"`\1`", " ".join(text.split())))
    return "".join(part if part.startswith("`") else _outside_code(part) for part in parts)


def _outside_code(text: str) -> str:
    pieces, end = [], 0
    for literal in _LITERAL.finditer(text):
        pieces += [_SPECIAL.sub(r"\\\1", text[end : literal.start()]), code(literal[0])]
        end = literal.end()
    return "".join([*pieces, _SPECIAL.sub(r"\\\1", text[end:])])


def sentence(text: str) -> str:
    """`prose` that ends as a sentence does."""
    return prose(text if text.rstrip().endswith((".", "?", "!")) else f"{text.rstrip()}.")


def value(plain: Any) -> str:
    """A setting's value as it is written in YAML, on one line, as code."""
    if plain in ("", (), [], {}):
        return "empty"
    if isinstance(plain, (list, tuple)):
        return ", ".join(code(str(item)) for item in plain)
    if isinstance(plain, str):
        return code(json.dumps(plain) if "\n" in plain else plain)
    return code(json.dumps(plain))


def anchor(name: str) -> str:
    """A place that links may lead to."""
    return f'<a id="{name}"></a>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells are Markdown already; empty if there are no rows."""
    lines = [_row(row) for row in rows]
    return "\n".join([_row(head), "|" + "---|" * len(head), *lines]) if lines else ""


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def page(*parts: str) -> str:
    """A page of paragraphs, tables and headings; empty ones are left out."""
    return "\n\n".join(part for part in parts if part) + "\n"
