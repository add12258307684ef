"""Sizes as people write them, such as ``5GB``."""

from __future__ import annotations

import re

_UNITS: dict[str, int] = {"": 1, "b": 1} | {
    spelling: base**power
    for power, letter in enumerate("kmgt", start=1)
    for spelling, base in ((letter, 1000), (f"{letter}b", 1000), (f"{letter}ib", 1024))
}
_SIZE = re.compile(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of a size such as ``5GB`` (10⁹), ``1.5GiB`` (2³⁰), ``500MB`` or ``1024``.

    Raises:
        ValueError: It is not a size.
    """
    match = _SIZE.fullmatch(text)
    if match is None or match[2].lower() not in _UNITS:
        raise ValueError(f"{text!r} is not a size; write it like 500MB, 5GB or 1.5GiB")
    return round(float(match[1]) * _UNITS[match[2].lower()])
