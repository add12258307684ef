"""Writes results to stdout: short tables for people, one JSON document for programs.

Nothing else in the command line writes results to stdout. Every writer flushes, so that a reader
that has closed the pipe shows at once, as `BrokenPipeError`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from aios.cli.text import clean

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH_WITHOUT_TERMINAL = 120


def to_json(value: object) -> Any:
    """The value as JSON types.

    Dataclasses and mappings become objects, paths texts, and numbers that are not finite null
    (JSON has none).

    Raises:
        TypeError: A value has no JSON form.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, PurePath):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: to_json(getattr(value, field.name)) for field in fields}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(to_json(item) for item in value)
    if isinstance(value, Iterable):
        return [to_json(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no JSON form")


def write_json(value: object) -> None:
    """Writes one JSON document to stdout."""
    ascii_only = "utf" not in (sys.stdout.encoding or "").lower()
    text = json.dumps(to_json(value), ensure_ascii=ascii_only, indent=2)
    _write(text + "\n")


def write_line(text: str = "") -> None:
    """Writes a line to stdout; it is never wrapped, so that paths can be copied."""
    _write(clean(text) + "\n")


def write_text(text: str) -> None:
    """Writes a text of several lines to stdout as it is."""
    _write(text if text.endswith("\n") else text + "\n")


def write_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    title: str = "",
    numeric: Sequence[int] = (),
) -> None:
    """Writes a table to stdout.

    Args:
        columns: Headings.
        rows: Cells; long ones are folded, never cut.
        title: A line above it.
        numeric: Indices of the columns that are aligned to the right.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for index, heading in enumerate(columns):
        right = index in numeric
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(clean(cell) for cell in row))
    console = _console()
    with console.capture() as captured:
        if title:
            console.print(clean(title), style="bold")
        console.print(table)
    _write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def write_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Writes ``name  value`` lines to stdout, values aligned and never cut."""
    shown = [(name, value) for name, value in facts if value]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        write_line(f"{name:<{width}}  {value}")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _console() -> Console:
    from rich.console import Console

    terminal = sys.stdout.isatty()
    return Console(
        file=sys.stdout,
        width=None if terminal else _WIDTH_WITHOUT_TERMINAL,
        markup=False,
        emoji=False,
        highlight=False,
    )


def error_lines(message: str, remedy: str = "") -> str:
    """An error as people see it: what and where, then what to do."""
    first, *rest = clean(message).splitlines() or ["unknown error"]
    lines = [f"error: {first}", *(f"  {line.strip()}" for line in rest)]
    lines += [f"  → {line}" for line in clean(remedy).splitlines()]
    return "\n".join(lines)


def error_document(kind: str, message: str, remedy: str = "") -> dict[str, dict[str, str]]:
    """An error as programs see it."""
    return {"error": {"type": kind, "message": message, "remedy": remedy}}
