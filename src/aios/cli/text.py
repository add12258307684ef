"""Numbers and texts as people read them: durations, counts, sizes, and safe terminal text."""

from __future__ import annotations

import math
import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
NOTHING = "-"


def clean(text: str) -> str:
    """The text without control characters, so that no file or model can steer the terminal."""
    return _CONTROL.sub("�", text)


def format_count(value: float) -> str:
    """A count with thousands separators; a fraction keeps one digit."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def format_number(value: object, digits: int = 3) -> str:
    """A measured number with fixed digits; a dash where there is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return NOTHING
    return f"{value:,.{digits}f}"


def format_percent(value: object, digits: int = 1, *, sign: bool = False) -> str:
    """A share (1.0 is 100 %) as percent; a dash where there is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return NOTHING
    return f"{100 * value:{'+' if sign else ''}.{digits}f} %"


def format_duration(seconds: float) -> str:
    """For example ``0.4 s``, ``12 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if not math.isfinite(seconds):
        return NOTHING
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def format_bytes(size: float | None) -> str:
    """For example ``512 B``, ``1.5 MB``, ``10.0 GB`` (powers of 1000)."""
    if size is None or not math.isfinite(size):
        return NOTHING
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 999.95 or (unit == "B" and abs(size) < 1000):
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
