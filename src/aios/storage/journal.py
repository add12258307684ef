"""The journal of a long job: finished units of work, so that a killed job can go on.

Takes a key and a JSON value for each finished unit and appends them as one checksummed line; gives
them back when the journal is opened again. Only the unit in flight is lost by a kill. The first
line holds a fingerprint of what determines the results (input, config, model, …): a journal of
other work is refused, with the difference named. Values stay on disk; only their places are in
memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO

from aios.core.errors import StorageError, UsageError
from aios.core.files import (
    LineAppender,
    atomic_write_bytes,
    encode_json,
    guarded,
    locked,
    parse_json,
)

VERSION = 1


def _checksum(key: str, value: object) -> str:
    return hashlib.sha256(encode_json([key, value])).hexdigest()[:16]


def _record(line: bytes) -> tuple[str, Any]:
    """Key and value of a line.

    Raises:
        ValueError: It is not a line that `Journal.append` wrote.
    """
    record = parse_json(line)
    if not isinstance(record, dict) or not {"key", "sum", "value"} <= record.keys():
        raise ValueError("not a journal line")
    if record["sum"] != _checksum(record["key"], record["value"]):
        raise ValueError("checksum does not match")
    return str(record["key"]), record["value"]


class Journal:
    """Finished units of work by key, on disk.

    One process at a time may have it open.

    Attributes:
        path: The file.
        skipped: Lines that a crash or a fault of the disk has spoiled; their units are done again.
    """

    def __init__(
        self,
        path: Path,
        fingerprint: Mapping[str, object],
        *,
        start_over: bool = False,
        lock_timeout: float = 1.0,
    ) -> None:
        """Opens a journal, or begins one.

        Args:
            path: The file; beside it is a hidden lock file while it is in use.
            fingerprint: What determines the results, as JSON values by a name for people.
            start_over: Forget what an existing journal holds.
            lock_timeout: Seconds to wait for another process.

        Raises:
            UsageError: It is the journal of other work; the message lists what differs.
            StorageError: Another process has it open, it is corrupt, or it cannot be written.
        """
        self.path = path
        self.skipped = 0
        self._lock_file = path.parent / f".{path.name}.lock"
        self._places: dict[str, tuple[int, int]] = {}  # key -> offset and length of its line
        with ExitStack() as stack:
            stack.enter_context(locked(self._lock_file, timeout=lock_timeout))
            if start_over or not self._index(fingerprint):
                header = {"journal": VERSION, "fingerprint": dict(fingerprint)}
                atomic_write_bytes(path, encode_json(header) + b"\n")
            self._lines = LineAppender(path)
            stack.callback(self._lines.close)
            with guarded("read", path):
                self._reader: BinaryIO = stack.enter_context(open(path, "rb"))
            self._open = stack.pop_all()

    def _index(self, fingerprint: Mapping[str, object]) -> bool:
        """Finds the places of all units; False if there is no journal yet.

        Raises:
            UsageError, StorageError: As `__init__`.
        """
        with guarded("read", self.path):
            try:
                handle = open(self.path, "rb")  # noqa: SIM115 - closed by the `with` below
            except FileNotFoundError:
                return False
            with handle:
                header = handle.readline()
                if not header:
                    return False
                self._check_header(header, fingerprint)
                offset = len(header)
                for line in handle:
                    if line.strip():
                        try:
                            key, _ = _record(line)
                        except ValueError:
                            self.skipped += 1
                        else:
                            self._places.pop(key, None)
                            self._places[key] = offset, len(line)
                    offset += len(line)
        return True

    def _check_header(self, line: bytes, fingerprint: Mapping[str, object]) -> None:
        fresh = "Start over without resuming, or move that file away."
        try:
            header = parse_json(line)
            version, before = header["journal"], dict(header["fingerprint"])
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{self.path} is not a journal, or is corrupt", fresh) from error
        if version != VERSION:
            raise StorageError(f"{self.path} was written by another version of aios", fresh)
        now = parse_json(encode_json(dict(fingerprint)))
        changes = [
            f"{name}: {_short(before.get(name))} then, {_short(now.get(name))} now"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
        ]
        if changes:
            raise UsageError(
                f"{self.path} belongs to other work ({'; '.join(changes)})",
                "Use the same settings and input to resume, or start over without resuming.",
            )

    def __len__(self) -> int:
        """Number of finished units."""
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        """Whether a unit is finished."""
        return key in self._places

    def get(self, key: str) -> Any:
        """The value of a finished unit; None if it is not finished.

        Raises:
            StorageError: The file changed or cannot be read.
        """
        place = self._places.get(key)
        if place is None:
            return None
        with guarded("read", self.path):
            self._reader.seek(place[0])
            line = self._reader.read(place[1])
        try:
            found, value = _record(line)
        except ValueError as error:
            raise StorageError(
                f"{self.path} changed while it was in use: {error}", "Run the command again."
            ) from error
        if found != key:
            raise StorageError(f"{self.path} changed while it was in use", "Run it again.")
        return value

    def items(self) -> Iterator[tuple[str, Any]]:
        """Keys and values of the finished units, read one at a time, in the order they were made.

        Raises:
            StorageError: As `get`.
        """
        for key in list(self._places):
            yield key, self.get(key)

    @property
    def done(self) -> dict[str, Any]:
        """All finished units, in memory."""
        return dict(self.items())

    def append(self, key: str, value: object, *, sync: bool = True) -> None:
        """Adds a finished unit; one with the same key replaces it.

        Args:
            key: Its name.
            value: A JSON value.
            sync: Wait until it survives a power cut (a kill it survives in any case).

        Raises:
            StorageError: The disk is full or not writable, or the value holds NaN.
        """
        record = {"key": key, "sum": _checksum(key, value), "value": value}
        line = encode_json(record)
        start = self._lines.append(line, sync=sync)
        self._places.pop(key, None)
        self._places[key] = start, len(line) + 1

    def sync(self) -> None:
        """Makes all units survive a power cut, after appends with ``sync=False``."""
        self._lines.sync()

    def close(self) -> None:
        """Closes the file and lets other processes open it."""
        self._open.close()

    def discard(self) -> None:
        """Closes the journal and removes it: the work is done and saved elsewhere."""
        with guarded("remove", self.path):
            self.path.unlink(missing_ok=True)
        with suppress(OSError):
            self._lock_file.unlink()
        self.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"
