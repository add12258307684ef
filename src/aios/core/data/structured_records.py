"""JSON, JSON-lines, CSV and Parquet files as raw records.

``.jsonl`` and ``.csv`` are read line by line, ``.parquet`` in small batches. A ``.json`` file is
parsed whole, so its size is limited to `MAX_JSON_BYTES`. A JSON file may be a list of records
(the SEAL release), one record, ``{"data": [records]}``, or SQuAD v1/v2.
"""

from __future__ import annotations

import csv
import importlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from aios.core.data import lines
from aios.core.data.rejects import Reject, one_line
from aios.core.data.text_records import RawRecord
from aios.core.errors import DataError, UsageError

MAX_JSON_BYTES = 512 * 2**20
"""Largest ``.json`` file in bytes: it is parsed whole. JSON lines have no such limit."""

TEXT_KEYS = ("text", "context", "passage")
COLUMNS = (*TEXT_KEYS, "title", "id", "questions", "completions")
_BATCH_ROWS = 64
_SURROGATE = re.compile("[\ud800-\udfff]")


def import_parquet(path: Path) -> ModuleType:
    """The module ``pyarrow.parquet``, imported only when a Parquet file is met.

    Raises:
        UsageError: pyarrow is not installed.
    """
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise UsageError(
            f"{path} is a Parquet file and pyarrow is not installed",
            'Install it with: pip install "aios[parquet]"',
        ) from error


def parse_json(text: str) -> object:
    """Parses JSON; every way in which that can fail is a ValueError with a one-line message."""
    try:
        value: object = json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise ValueError(f"{error.msg} at {where}") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return value


def jsonl_values(path: Path) -> Iterator[tuple[int, Mapping[str, object]] | Reject]:
    """The objects of a JSON-lines file with their lines; blank lines are no records."""
    for number, line in lines.decoded_lines(path):
        if isinstance(line, Reject):
            yield line
            continue
        if not line.strip():
            continue
        try:
            value = parse_json(line)
        except ValueError as error:
            yield Reject(str(path), number, "bad_json", one_line(error, 120))
            continue
        if isinstance(value, dict):
            yield number, value
        else:
            yield _not_an_object(path, number, value)


def jsonl_records(path: Path) -> Iterator[RawRecord | Reject]:
    """One record a line."""
    for item in jsonl_values(path):
        yield item if isinstance(item, Reject) else RawRecord(*item)


def read_json(path: Path) -> object:
    """Parses a whole ``.json`` file.

    Raises:
        DataError: It is too large, unreadable, not UTF-8 or not JSON.
    """
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise DataError(
                f"{path} has {size:,} bytes; a .json file may have {MAX_JSON_BYTES:,}",
                "Write one object a line and name the file .jsonl: that is read line by line.",
            )
        raw = path.read_bytes()
    except OSError as error:
        raise lines.unreadable(path, error) from error
    try:
        return parse_json(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8 text", "Save the file as UTF-8.") from error
    except ValueError as error:
        raise DataError(
            f"{path} is not valid JSON: {one_line(error, 120)}",
            "Correct it there; one object a line belongs in a .jsonl file.",
        ) from error


def json_records(path: Path) -> Iterator[RawRecord | Reject]:
    """The records of a JSON file, numbered from 1; SQuAD articles give one a paragraph."""
    value = read_json(path)
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        entries: list[object] = value["data"]
    elif isinstance(value, dict) and ("paragraphs" in value or any(k in value for k in TEXT_KEYS)):
        entries = [value]
    elif isinstance(value, list):
        entries = value
    else:
        raise DataError(
            f"{path} holds neither a list of records nor SQuAD data",
            'Known: [{"text": …}, …], SEAL-release JSON, {"data": […]} (SQuAD).',
        )
    number = 0
    for entry in entries:
        for fields in _paragraphs(entry):
            number += 1
            if isinstance(fields, dict):
                yield RawRecord(number, fields)
            else:
                yield _not_an_object(path, number, fields)


def _paragraphs(entry: object) -> Iterator[object]:
    """The records of a list entry: itself, or the paragraphs of a SQuAD article."""
    if not isinstance(entry, dict) or "paragraphs" not in entry:
        yield entry
        return
    paragraphs = entry["paragraphs"]
    for paragraph in paragraphs if isinstance(paragraphs, list) else [paragraphs]:
        if isinstance(paragraph, dict):
            record = {"title": entry.get("title"), **paragraph}
            if "qas" in record:
                record["questions"] = record.pop("qas")
            yield record
        else:
            yield paragraph


def _not_an_object(path: Path, line: int, value: object) -> Reject:
    names = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    name = names.get(type(value), "a number")
    return Reject(str(path), line, "not_an_object", f"expected an object, found {name}")


class _RecordTooLong(Exception):
    """A CSV record grew past the limit."""


class _CsvLines:
    """Feeds a CSV reader, and stops a record that grows past the limit.

    Not a generator, because it must go on after it has raised. Bytes that are not UTF-8 come as
    lone surrogates, so that only their record is rejected.
    """

    def __init__(self, path: Path) -> None:
        self._lines = lines.read_lines(path)
        self._size = 0
        self.number = 0

    def new_record(self) -> None:
        self._size = 0

    def __iter__(self) -> _CsvLines:
        return self

    def __next__(self) -> str:
        self.number, raw = next(self._lines)
        self._size += lines.MAX_RECORD_BYTES + 1 if raw is None else len(raw)
        if raw is None or self._size > lines.MAX_RECORD_BYTES:
            raise _RecordTooLong
        return raw.decode("utf-8", "surrogateescape")


def csv_records(path: Path) -> Iterator[RawRecord | Reject]:
    """Rows of a table whose header names the keys; comma, semicolon or tab between cells.

    Raises:
        DataError: The header has no text column.
    """
    csv.field_size_limit(max(csv.field_size_limit(), lines.MAX_RECORD_BYTES))
    source = _CsvLines(path)
    columns, delimiter = _csv_header(path, source)
    reader = csv.reader(source, strict=True, delimiter=delimiter)
    while True:
        source.new_record()
        line = source.number + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except _RecordTooLong:
            yield lines.too_long(path, line)
            continue
        except csv.Error as error:
            yield Reject(str(path), line, "bad_csv", one_line(error, 120))
            continue
        if any(cell.strip() for cell in cells):
            yield _csv_record(path, line, columns, cells)


def _csv_header(path: Path, source: _CsvLines) -> tuple[list[str], str]:
    """Column names and delimiter: the first of comma, semicolon, tab that gives a text column."""
    try:
        header = next(source)
    except (_RecordTooLong, StopIteration):
        header = ""
    for delimiter in (",", ";", "\t"):
        names = next(csv.reader([header], delimiter=delimiter), [])
        columns = [name.strip().casefold() for name in names]
        if any(key in columns for key in TEXT_KEYS):
            return columns, delimiter
    raise DataError(
        f"{path}:1: no column is named text, context or passage ({one_line(header)!r})",
        "Name the columns in the first line, e.g. text,title,id,questions.",
    )


def _csv_record(path: Path, line: int, columns: list[str], cells: list[str]) -> RawRecord | Reject:
    if any(_SURROGATE.search(cell) or "\x00" in cell for cell in cells):
        return Reject(str(path), line, "bad_encoding", "not UTF-8")
    if any(cell.strip() for cell in cells[len(columns) :]):
        detail = f"{len(cells)} cells, {len(columns)} columns"
        return Reject(str(path), line, "bad_columns", detail)
    fields = {name: cell for name, cell in zip(columns, cells, strict=False) if cell.strip()}
    for key in TEXT_KEYS:
        if key in columns:
            fields.setdefault(key, "")
            break
    return RawRecord(line, fields)


def parquet_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, object]]]:
    """Numbered rows of a Parquet file, of those columns that it has.

    Raises:
        DataError: The file is damaged or unreadable.
        UsageError: pyarrow is not installed.
    """
    parquet: Any = import_parquet(path)
    arrow: Any = importlib.import_module("pyarrow")
    number = 0
    try:
        with parquet.ParquetFile(path) as table:
            present = [name for name in columns if name in table.schema_arrow.names]
            for batch in table.iter_batches(batch_size=_BATCH_ROWS, columns=present):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read as Parquet after row {number}: {one_line(error, 120)}",
            "Check that the file is whole and was written as Parquet.",
        ) from error


def parquet_records(path: Path) -> Iterator[RawRecord | Reject]:
    """Rows of a Parquet file as records; keys with no value are left out."""
    for number, row in parquet_rows(path, COLUMNS):
        yield RawRecord(number, {key: value for key, value in row.items() if value is not None})
