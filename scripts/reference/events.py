"""The page of all events, from the typed union and its docstrings."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any, get_args

from scripts.reference.markdown import NOTHING, NOTICE, code, page, prose, table, value

from aios.core.events import Event

_ATTRIBUTE = re.compile(r"^    (\w+): (.*(?:\n {6,}.*)*)", re.MULTILINE)
_WORDS = {
    "str": "text",
    "bool": "true or false",
    "int": "integer",
    "float": "number",
    "float | None": "number or null",
    "tuple[int, ...]": "list of integers",
    "Mapping[str, float]": "numbers by name",
    "Mapping[str, int]": "integers by name",
    "Mapping[str, Any]": "object",
}


def kinds() -> tuple[type[Any], ...]:
    """The classes of all events."""
    return get_args(Event)


def described(kind: type[Any]) -> dict[str, str]:
    """Field → what a docstring says of it."""
    _, _, listed = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
    return {match[1]: " ".join(match[2].split()) for match in _ATTRIBUTE.finditer(listed)}


def write() -> str:
    """The page."""
    return page(
        "# Events",
        NOTICE,
        "Every run directory has an `events.jsonl`: one JSON object a line, appended as things "
        "happen. Each has `time` (ISO 8601, UTC), `type`, and the fields below. Progress bars, the "
        "pages in the browser and trackers show nothing that is not in it. Readers should ignore "
        "types and fields that they do not know, and a last line without an end.",
        table(
            ("type", "when"),
            (
                (f"[`{kind.__name__}`](#{kind.__name__.lower()})", _summary(kind))
                for kind in kinds()
            ),
        ),
        *(_section(kind) for kind in kinds()),
    )


def _summary(kind: type[Any]) -> str:
    return prose(inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0])


def _section(kind: type[Any]) -> str:
    words = described(kind)
    rows = [
        (code(each.name), _WORDS[str(each.type)], _default(each), prose(words.get(each.name, "")))
        for each in dataclasses.fields(kind)
    ]
    head = ("field", "is", "if it is left out", "what it says")
    return page(f"## {kind.__name__}", _summary(kind), table(head, rows)).rstrip()


def _default(each: dataclasses.Field[Any]) -> str:
    if each.default_factory is not dataclasses.MISSING:
        return "empty"
    if each.default is dataclasses.MISSING:
        return NOTHING
    return value(each.default)
