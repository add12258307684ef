"""What the HTML reports share: how a page is rendered, and how numbers are written in it.

The pages are self-contained: their style and charts (inline SVG) stand in them, they run no
script and ask nothing of the network (a content security policy in the page forbids both). The
frame of a page is the template ``report_base.html.j2`` with the style sheet ``report.css``.

What a model wrote is hostile until shown otherwise: every text is escaped, control characters,
lone surrogates and marks that override the writing direction are replaced, and texts are kept
apart in their writing direction.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from aios.app.charts.svg import format_signed

NO_BREAK = "\N{NO-BREAK SPACE}"
LONGEST_TEXT = 700

_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


@dataclass(frozen=True, slots=True)
class SetupRow:
    """A line of the set-up; `kind` is ``text``, ``pairs`` or ``command``."""

    name: str
    kind: str
    value: Any


Cell: TypeAlias = "str | tuple[str, str]"


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text; the first cell of a row names it, numbers are right-aligned.

    Attributes:
        label: What it is, for screen readers.
        columns: Their names.
        rows: As many cells as columns; of a pair the second is set small below the first.
        words: Numbers of the columns that hold words, not numbers; the first does anyway.
        marked: Numbers of the rows that stand out.
    """

    label: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    words: frozenset[int] = frozenset()
    marked: frozenset[int] = frozenset()


@cache
def environment() -> Environment:
    """The templates, with escaping on and the filters ``shorten`` and ``signed``.

    Always the same object, since it keeps the templates that it has compiled.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parents[1] / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shorten"] = shorten
    environment.filters["signed"] = signed
    return environment


def printable(value: Any) -> Any:
    """Replaces what is not to be shown in plain text, each character by U+FFFD.

    These are control characters, lone surrogates, and the marks that embed, override or isolate a
    writing direction: with them a text can look like another one (Boucher and Anderson 2021,
    "Trojan Source", arXiv 2111.00169). The direction marks of ordinary Arabic and Hebrew texts
    (U+061C, U+200E, U+200F) turn no letters around, and stay.
    """
    if isinstance(value, str) and not isinstance(value, Markup):
        return _UNPRINTABLE.sub("\ufffd", value)
    return value


def shorten(text: str) -> str:
    """Cuts a text to `LONGEST_TEXT` characters."""
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT].rstrip() + " …"


def check_log_link(link: str | None) -> None:
    """Refuses a link to a run's log that leads out of the page's folder.

    Raises:
        ValueError: The link is not relative.
    """
    if link is not None and (re.match(r"[a-zA-Z][\w+.-]*:", link) or link[:1] in "/\\"):
        raise ValueError(f"the link to the log is not relative: {link!r}")


def percent(value: float) -> str:
    """``−16.2 %``: a signed share with a true minus."""
    return f"{format_signed(100 * value, 1)}{NO_BREAK}%"


def points(value: float) -> str:
    """``+4.2 pp``: a difference of shares in percentage points."""
    return f"{format_signed(100 * value, 1)}{NO_BREAK}pp"


def signed(value: float) -> str:
    """``−0.42``: a signed number with a true minus."""
    return format_signed(value, 2)


def tone_of(comparison: Mapping[str, Any] | None) -> str:
    """``good``, ``bad`` or ``even``: the colour of a comparison."""
    verdict = comparison["verdict"] if comparison else ""
    return {"better": "good", "worse": "bad"}.get(verdict, "even")


def interval_words(ends: Sequence[float], number: Callable[[float], str]) -> str:
    """``−17.7 to −9.5 %``: the unit once."""
    low, high = (number(end) for end in ends)
    return f"{low.split(NO_BREAK)[0]} to {high}"


def setup_row(name: str, value: Any) -> SetupRow:
    """A line of the set-up: text, numbers, sequences of them, or one more level of mapping."""
    label = name.replace("_", " ")
    label = label[:1].upper() + label[1:]
    if name == "command":
        return SetupRow(label, "command", _flat(value))
    if isinstance(value, Mapping):
        pairs = [(str(key).replace("_", " "), _flat(one)) for key, one in value.items()]
        return SetupRow(label, "pairs", pairs)
    return SetupRow(label, "text", _flat(value))


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_flat(one)}" for key, one in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_flat(one) for one in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None else str(value)


def seconds_words(seconds: float) -> str:
    """``12.3 s``, ``4 min 05 s`` or ``2 h 07 min``; a dash for nothing."""
    if seconds <= 0:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def bytes_words(size: int) -> str:
    """``512 MiB`` or ``2.00 GiB``; a dash for nothing."""
    if size <= 0:
        return "–"
    if size < 2**20:
        return f"{size / 1024:.0f} KiB" if size >= 1024 else f"{size} bytes"
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
