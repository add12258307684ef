"""Self-edits and rejects to files, atomically.

The format follows from the file's ending, or is named: ``.txt`` (an edit's text a block, blank
line between), ``.jsonl`` and ``.parquet`` (one row an edit, see `edit_rows`), and JSON lines for
training tools (``messages``, ``prompt-completion``, ``alpaca``, ``sharegpt``). The file appears
whole when the writer closes without an error; otherwise what was there before stays.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from aios.core.data.edit_rows import CHAT_FORMATS, Row, conversations, read_edits, to_row
from aios.core.data.rejects import Reject
from aios.core.data.structured_records import import_parquet
from aios.core.errors import UsageError
from aios.core.files import atomic_writer, encode_json
from aios.core.types import Passage, SelfEdit

__all__ = ["FORMATS", "EditWriter", "open_writer", "read_edits", "write_rejects"]

_BLANK_LINES = re.compile(r"\n\s*\n")
_ROW_GROUP = 512


class EditWriter(Protocol):
    """Where self-edits are written while the file is open."""

    def write(self, edit: SelfEdit, passage: Passage) -> None:
        """Adds an edit of a passage.

        Raises:
            StorageError: The disk is full or not writable.
        """
        ...


def open_writer(path: Path, format: str | None = None) -> AbstractContextManager[EditWriter]:
    """Opens a file for self-edits; it replaces `path` when the block ends without an error.

    Args:
        path: The file; its ending gives the format.
        format: A name in `FORMATS`, where the ending alone is not meant.

    Returns:
        A context manager that gives the writer.

    Raises:
        UsageError: The ending or format is unknown, the two do not fit, or pyarrow is not
            installed (at once); see `aios.core.files.atomic_writer` for the errors of writing.
    """
    ending = path.suffix.lower()
    known = f"Known endings: {', '.join(dict.fromkeys(e for e, _ in FORMATS.values()))}; "
    known += f"formats: {', '.join(FORMATS)}."
    if format is None:
        format = ending.removeprefix(".")
        if format not in FORMATS or FORMATS[format][0] != ending:
            raise UsageError(f"{path}: unknown ending {ending!r} for self-edits", known)
    elif format not in FORMATS:
        raise UsageError(f"unknown format {format!r} for self-edits", known)
    needed, opener = FORMATS[format]
    if ending != needed:
        raise UsageError(
            f"{path}: format {format!r} is written to a {needed} file, not {ending or 'this'!r}",
            f"Name the output with the ending {needed}. {known}",
        )
    if needed == ".parquet":
        import_parquet(path)
    return _open(path, opener)


@contextmanager
def _open(
    path: Path, opener: Callable[[BinaryIO], AbstractContextManager[EditWriter]]
) -> Iterator[EditWriter]:
    with atomic_writer(path) as handle, opener(handle) as writer:
        yield writer


class _TextWriter:
    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle
        self._any = False

    def write(self, edit: SelfEdit, passage: Passage) -> None:
        text = _BLANK_LINES.sub("\n", edit.text.strip())
        if text:
            gap = "\n" if self._any else ""
            self._handle.write(f"{gap}{text}\n".encode("utf-8", "replace"))
            self._any = True


class _RowWriter:
    """JSON lines: the rows that a function makes of an edit."""

    def __init__(
        self, handle: BinaryIO, rows: Callable[[SelfEdit, Passage], Iterable[Row]]
    ) -> None:
        self._handle = handle
        self._rows = rows

    def write(self, edit: SelfEdit, passage: Passage) -> None:
        for row in self._rows(edit, passage):
            self._handle.write(encode_json(row) + b"\n")


class _ParquetWriter:
    """Row groups of `_ROW_GROUP` edits."""

    def __init__(self, handle: BinaryIO) -> None:
        self._arrow: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
        arrow = self._arrow
        score = arrow.struct([("name", arrow.string()), ("value", arrow.float64())])
        types = {
            "text": arrow.string(),
            "items": arrow.list_(arrow.string()),
            "passage_id": arrow.string(),
            "strategy": arrow.string(),
            "edit": arrow.int64(),
            "model": arrow.string(),
            "seed": arrow.int64(),
            "tokens": arrow.int64(),
            "quality": arrow.list_(score),
            "completion": arrow.string(),
        }
        self._schema = arrow.schema(list(types.items()))
        self._file = parquet.ParquetWriter(handle, self._schema, compression="zstd")
        self._rows: list[Row] = []

    def write(self, edit: SelfEdit, passage: Passage) -> None:
        row = {key: _encodable(value) for key, value in to_row(edit).items()}
        quality = row["quality"]
        if isinstance(quality, dict):
            row["quality"] = [{"name": name, "value": score} for name, score in quality.items()]
        self._rows.append(row)
        if len(self._rows) >= _ROW_GROUP:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            self._file.write_table(self._arrow.Table.from_pylist(self._rows, schema=self._schema))
            self._rows = []

    def close(self) -> None:
        self._file.close()


def _encodable(value: object) -> object:
    """A value whose texts can be written as UTF-8; lone surrogates become question marks."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, list):
        return [_encodable(entry) for entry in value]
    if isinstance(value, dict):
        return {_encodable(key): entry for key, entry in value.items()}
    return value


@contextmanager
def _text_writer(handle: BinaryIO) -> Iterator[EditWriter]:
    yield _TextWriter(handle)


@contextmanager
def _jsonl_writer(handle: BinaryIO) -> Iterator[EditWriter]:
    yield _RowWriter(handle, lambda edit, _: [to_row(edit)])


@contextmanager
def _parquet_writer(handle: BinaryIO) -> Iterator[EditWriter]:
    writer = _ParquetWriter(handle)
    try:
        yield writer
        writer.flush()
    finally:
        writer.close()


def _chat_opener(name: str) -> Callable[[BinaryIO], AbstractContextManager[EditWriter]]:
    make_row = CHAT_FORMATS[name]

    @contextmanager
    def chat_writer(handle: BinaryIO) -> Iterator[EditWriter]:
        yield _RowWriter(
            handle, lambda edit, passage: [make_row(*c) for c in conversations(edit, passage)]
        )

    return chat_writer


FORMATS: dict[str, tuple[str, Callable[[BinaryIO], AbstractContextManager[EditWriter]]]] = {
    "txt": (".txt", _text_writer),
    "jsonl": (".jsonl", _jsonl_writer),
    "parquet": (".parquet", _parquet_writer),
    **{name: (".jsonl", _chat_opener(name)) for name in CHAT_FORMATS},
}
"""The known formats: the file's ending and what opens it."""


def write_rejects(path: Path, rejects: Iterable[Reject]) -> None:
    """Writes rejects as JSON lines with file, line, reason and detail, atomically.

    Raises:
        StorageError: The disk is full or not writable; an old file stays as it was.
    """
    with atomic_writer(path) as handle:
        for reject in rejects:
            handle.write(encode_json(asdict(reject)) + b"\n")
