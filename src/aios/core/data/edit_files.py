"""What a generation left on disk: self-edits, and beside them what was dropped and rejected.

Takes the path of the self-edits, ``NAME.jsonl`` or ``NAME.parquet``; gives their records one at a
time, and those of ``NAME.dropped.jsonl`` (a `Drop` a line) and ``NAME.rejects.jsonl`` (a `Reject` a
line). A line that cannot be used is no error: a `BrokenLine` comes in its place, so that the rest
of a damaged file can still be looked at. Memory is bounded by one record (`lines.MAX_RECORD_BYTES`;
a Parquet file by one row group).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from aios.core.data import lines
from aios.core.data.edit_rows import EDIT_COLUMNS, from_row
from aios.core.data.rejects import Reject, one_line
from aios.core.data.structured_records import import_parquet, jsonl_values, parquet_rows
from aios.core.errors import DataError
from aios.core.types import Drop, SelfEdit

DROPPED_ENDING = ".dropped.jsonl"
REJECTS_ENDING = ".rejects.jsonl"

_T = TypeVar("_T")
_GIVE = "Give the .jsonl or .parquet file that 'aios seal generate' wrote without --format."
_SHAPES = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "prompt-completion": ("prompt", "completion"),
}


@dataclass(frozen=True, slots=True)
class BrokenLine:
    """A line, or a row of a table, that cannot be used.

    Attributes:
        file: The file's path.
        line: Its number, from 1.
        problem: What is wrong with it, in one line.
    """

    file: Path
    line: int
    problem: str


@dataclass(frozen=True, slots=True)
class EditFiles:
    """The files of one generation; a list that is not there is None."""

    edits: Path
    dropped: Path | None
    rejects: Path | None


def files_of(path: Path, dropped: Path | None = None) -> EditFiles:
    """The file of self-edits and the lists beside it, as far as they are there.

    Args:
        path: The self-edits.
        dropped: The list of drops, where it is not beside `path` under its name.

    Raises:
        DataError: `path` cannot hold self-edits with the ids of their passages, or it or
            `dropped` cannot be read.
        UsageError: A Parquet file, and pyarrow is not installed.
    """
    _check_file(path)
    _check_ending(path)
    if dropped is not None:
        _check_file(dropped)
    found = dropped or path.with_name(path.stem + DROPPED_ENDING)
    rejects = path.with_name(path.stem + REJECTS_ENDING)
    return EditFiles(
        path, found if found.is_file() else None, rejects if rejects.is_file() else None
    )


def read_edit_rows(path: Path) -> Iterator[SelfEdit | BrokenLine]:
    """Reads self-edits one at a time.

    Raises:
        DataError: The file cannot be read, is damaged as a whole, holds other records than
            self-edits, or has lines of which none is a self-edit.
        UsageError: A Parquet file, and pyarrow is not installed.
    """
    _check_ending(path)
    first_problem: BrokenLine | None = None
    broken = edits = 0
    for found in _rows(path):
        if not isinstance(found, BrokenLine):
            line, row = found
            if not edits:
                _refuse_other_records(path, row)
            made = _parsed(path, line, row, from_row)
            if isinstance(made, SelfEdit):
                edits += 1
                yield made
                continue
            found = made
        broken += 1
        first_problem = first_problem or found
        yield found
    if first_problem is not None and not edits:
        raise DataError(
            f"{path} holds no self-edits: {broken:,} broken lines, the first is "
            f"{first_problem.line}: {first_problem.problem}",
            _GIVE,
        )


def read_drops(path: Path) -> Iterator[Drop | BrokenLine]:
    """Reads a list of drops (one JSON object a line), one at a time.

    Raises:
        DataError: The file cannot be read.
    """
    return _records(path, parse_drop)


def read_rejects(path: Path) -> Iterator[Reject | BrokenLine]:
    """Reads a list of rejects (one JSON object a line), one at a time.

    Raises:
        DataError: The file cannot be read.
    """
    return _records(path, _reject)


def _check_file(path: Path) -> None:
    try:
        if path.is_dir():
            raise DataError(f"{path} is a folder", f"Give one file. {_GIVE}")
        path.stat()
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist", f"Check the path. {_GIVE}") from error
    except (OSError, ValueError) as error:
        reason = error if isinstance(error, OSError) else OSError(str(error))
        raise lines.unreadable(path, reason) from error


def _check_ending(path: Path) -> None:
    ending = path.suffix.lower()
    name = path.name.lower()
    for other, what in ((DROPPED_ENDING, "drops"), (REJECTS_ENDING, "rejects")):
        if name.endswith(other):
            edits = path.name[: -len(other)]
            raise DataError(
                f"{path} lists {what}, not self-edits",
                f"Give the file of self-edits, {edits}.jsonl or {edits}.parquet; what was "
                "dropped is read with it.",
            )
    if ending == ".txt":
        raise DataError(
            f"{path}: a .txt file holds texts alone and does not say which passage is whose",
            f"{_GIVE} Made again with another --output, the self-edits come from the cache.",
        )
    if ending not in (".jsonl", ".parquet"):
        raise DataError(f"{path}: unknown ending {ending!r} for self-edits", _GIVE)
    if ending == ".parquet":
        import_parquet(path)


def _refuse_other_records(path: Path, row: Mapping[str, object]) -> None:
    """Says what a file holds whose first records are of another known kind."""
    if "items" in row or ("passage_id" in row and "reason" not in row):
        return
    for name, keys in _SHAPES.items():
        if all(key in row for key in keys):
            raise DataError(
                f"{path} holds rows of --format {name}, which do not say which passage is whose",
                f"{_GIVE} Made again with another --output, the self-edits come from the cache.",
            )
    if "reason" in row:
        what = "drops" if "passage_id" in row else "rejects"
        raise DataError(f"{path} lists {what}, not self-edits", _GIVE)


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, object]] | BrokenLine]:
    if path.suffix.lower() == ".parquet":
        yield from parquet_rows(path, EDIT_COLUMNS)
        return
    for item in jsonl_values(path):
        if isinstance(item, Reject):
            yield BrokenLine(path, item.line, f"{item.reason}: {item.detail}")
        else:
            yield item


def _records(path: Path, parse: Callable[[Mapping[str, object]], _T]) -> Iterator[_T | BrokenLine]:
    for item in jsonl_values(path):
        if isinstance(item, Reject):
            yield BrokenLine(path, item.line, f"{item.reason}: {item.detail}")
        else:
            yield _parsed(path, *item, parse)


def _parsed(
    path: Path,
    line: int,
    row: Mapping[str, object],
    parse: Callable[[Mapping[str, object]], _T],
) -> _T | BrokenLine:
    try:
        return parse(row)
    except (ValueError, OverflowError) as error:
        return BrokenLine(path, line, one_line(error, 120))


def parse_drop(row: Mapping[str, object]) -> Drop:
    """The drop of a row that may come from anywhere.

    Raises:
        ValueError: A value is missing or of the wrong type; the message names its key.
    """
    return Drop(
        passage_id=_text(row, "passage_id"),
        strategy=_text(row, "strategy"),
        index=_count(row, "index"),
        text=_text(row, "text"),
        reason=_text(row, "reason"),
        detail=_text(row, "detail", ""),
    )


def _reject(row: Mapping[str, object]) -> Reject:
    return Reject(
        file=_text(row, "file"),
        line=_count(row, "line"),
        reason=_text(row, "reason"),
        detail=_text(row, "detail", ""),
    )


def _text(row: Mapping[str, object], key: str, default: str | None = None) -> str:
    value = row.get(key, default)
    if not isinstance(value, str):
        raise ValueError(f"{key!r} is {one_line(repr(value), 40)}, not a text")
    return value


def _count(row: Mapping[str, object], key: str) -> int:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"{key!r} is {one_line(repr(value), 40)}, not a number of 0 or more")
    return value
