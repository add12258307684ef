"""Reading a file's lines with bounded memory, so that one bad line costs only itself.

Takes a path and gives numbered lines as text; a line that is not UTF-8, or is larger than
`MAX_RECORD_BYTES`, comes as a `Reject` in its place. A byte-order mark is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from aios.core.data.rejects import Reject
from aios.core.errors import DataError

MAX_RECORD_BYTES = 8 * 2**20
"""Largest record (a line, a block, a table row, a passage) in bytes; larger ones are rejects."""

_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def unreadable(path: Path, error: OSError) -> DataError:
    """The error for a file that the system will not let us read."""
    return DataError(
        f"{path} cannot be read: {error.strerror or error}", "Check the path and its permissions."
    )


def too_long(path: Path, line: int) -> Reject:
    """The reject of a record larger than `MAX_RECORD_BYTES`."""
    return Reject(str(path), line, "too_long", f"larger than {MAX_RECORD_BYTES:,} bytes")


def read_lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines as bytes with their line ends; None for a line over the limit.

    Raises:
        DataError: The file cannot be read, or is UTF-16.
    """
    try:
        with path.open("rb") as handle:
            for number, line in enumerate(_bounded_lines(handle), start=1):
                if number == 1 and line is not None:
                    if line.startswith(_UTF16):
                        raise DataError(f"{path} is UTF-16 text", "Save the file as UTF-8.")
                    line = line.removeprefix(_BOM)
                yield number, line
    except OSError as error:
        raise unreadable(path, error) from error


def _bounded_lines(handle: BinaryIO) -> Iterator[bytes | None]:
    while line := handle.readline(MAX_RECORD_BYTES + 1):
        if len(line) <= MAX_RECORD_BYTES:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = handle.readline(2**20)
        yield None


def decoded_lines(path: Path) -> Iterator[tuple[int, str | Reject]]:
    """Numbered lines as text without their line ends; a `Reject` for each unusable one.

    Raises:
        DataError: The file cannot be read, or is UTF-16.
    """
    for number, raw in read_lines(path):
        if raw is None:
            yield number, too_long(path, number)
            continue
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            detail = f"not UTF-8: byte 0x{raw[error.start]:02x} at position {error.start + 1}"
            yield number, Reject(str(path), number, "bad_encoding", detail)
            continue
        if "\x00" in text:
            detail = f"NUL byte at position {text.index(chr(0)) + 1}"
            yield number, Reject(str(path), number, "bad_encoding", detail)
            continue
        yield number, text.rstrip("\r\n")


def is_encodable(text: str) -> bool:
    """Whether a text can be written as UTF-8 (it holds no lone surrogate)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
