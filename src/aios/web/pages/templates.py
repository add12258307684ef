"""How pages are filled in: every text is escaped, control characters are replaced.

What a model wrote is hostile until shown otherwise: a self-edit that holds HTML or a script shows
as text, kept apart in its writing direction (class ``text``).
"""

from __future__ import annotations

import math
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from aios.app.charts.report_page import bytes_words, printable, seconds_words

FOLDER = Path(__file__).parents[1] / "templates"


@cache
def environment() -> Environment:
    """The templates, with filters for times, durations, sizes, shares and numbers."""
    made = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "when": when,
        "duration": duration,
        "size": size,
        "percent": percent,
        "number": number,
        "shorten": shorten,
    }
    return made


def when(time: datetime | float | str | None) -> Markup:
    """A point in time: UTC in the page, the reader's own time zone once the script has run."""
    if time is None or time == "":
        return Markup("–")
    try:
        if isinstance(time, str):
            time = datetime.fromisoformat(time)
        elif not isinstance(time, datetime):
            time = datetime.fromtimestamp(time, timezone.utc)
        utc = time.astimezone(timezone.utc)
    except (ValueError, OverflowError, OSError):
        return Markup("–")
    return Markup('<time datetime="{}">{}</time>').format(
        utc.isoformat(timespec="seconds"), f"{utc:%Y-%m-%d %H:%M} UTC"
    )


def duration(seconds: float | None) -> str:
    """A length of time in words; a dash where it is not known."""
    return "–" if seconds is None or not math.isfinite(seconds) else seconds_words(seconds)


def size(count: int | float | None) -> str:
    """A number of bytes in words; a dash where it is not known."""
    if count is None:
        return "–"
    if count < 2**20:
        return f"{count / 2**10:.0f} KiB" if count >= 2**10 else f"{int(count)} bytes"
    return bytes_words(int(count))


def percent(share: float | None, decimals: int = 0) -> str:
    """A share of one in per cent; a dash where it is not known."""
    if share is None or not math.isfinite(share):
        return "–"
    return f"{100 * share:.{decimals}f}\N{NO-BREAK SPACE}%"


def number(value: float | None, decimals: int | None = None) -> str:
    """A number with separators of thousands; a dash where it is not known."""
    if value is None or not math.isfinite(value):
        return "–"
    if decimals is None:
        decimals = 0 if float(value).is_integer() else 3
    text = f"{value:,.{decimals}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def shorten(text: Any, limit: int = 160) -> str:
    """The beginning of a text, cut with an ellipsis."""
    found = str(text)
    return found if len(found) <= limit else found[: limit - 1].rstrip() + "…"
