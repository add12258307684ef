"""An SQLite file that any number of threads and processes write: connection, errors, copies.

Every error of SQLite that a user can act on becomes a `StorageError` that says what to do.
"""

from __future__ import annotations

import errno
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from aios.core.errors import StorageError, UsageError
from aios.core.files import guarded, locked, storage_error, sync_folder
from aios.storage.activity_schema import migrate

_BUSY_SECONDS = 10.0
_HEADER = b"SQLite format 3\0"


class Database:
    """One connection, used by one thread at a time; the file and its folder are made if missing.

    Args:
        path: The file.

    Raises:
        StorageError: The file is corrupt, of a later version, of another program, or cannot be
            opened. All methods raise it where the disk is full or the file turns out damaged, and
            once the database is closed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        with guarded("open", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):  # one that is there is not opened here: closing it
                _make(path)  # again would drop the locks that this process has on it
        with locked(path.with_name(f".{path.name}.open.lock")), reported(path):
            connection = _connect(path)
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                migrate(connection, path)
            except BaseException:
                connection.close()
                raise
        self._connection = connection

    def all(self, query: str, values: Mapping[str, object] | None = None) -> list[Any]:
        """All rows of a query; its parameters are named."""
        with self._lock, reported(self.path):
            return self._open().execute(query, values or {}).fetchall()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of the block or nothing. Other writers wait, up to 10 s."""
        with self._lock, reported(self.path):
            connection = self._open()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    if connection.in_transaction:  # after some errors SQLite rolls back itself
                        connection.execute("ROLLBACK")
                raise

    def copy(self, target: Path) -> None:
        """Writes a copy as of now, whole or not at all, while others go on writing.

        Args:
            target: The copy; an earlier copy there is replaced.

        Raises:
            UsageError: There is another kind of file, or it is the database itself.
            StorageError: See the class, or the copy cannot be written.
        """
        with guarded("write", target):
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                _require_replaceable(self.path, target)
        temporary = target.with_name(f".{target.name[:128]}.{secrets.token_hex(8)}.tmp")
        try:
            with guarded("write", target):
                _make(temporary)
            _copy(self.path, temporary, target)
            with guarded("write", target):
                with open(temporary, "rb+") as handle:
                    os.fsync(handle.fileno())
                os.replace(temporary, target)
                sync_folder(target.parent)
        finally:
            for end in ("", "-wal", "-shm", "-journal"):
                with suppress(OSError):
                    os.unlink(f"{temporary}{end}")

    def close(self) -> None:
        """Closes the file; calling it again does nothing."""
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                with suppress(sqlite3.Error):
                    connection.close()

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StorageError(f"{self.path} is closed already")
        return self._connection


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """Turns SQLite's errors into a `StorageError` about the file."""
    try:
        yield
    except sqlite3.Error as error:
        raise _storage_error(error, path) from error


def _storage_error(error: sqlite3.Error, path: Path) -> BaseException:
    said = str(error)
    if "is full" in said:
        return storage_error(OSError(errno.ENOSPC, said), "write", path)
    if "locked" in said or "busy" in said:
        return StorageError(
            f"{path} is held by another process (waited {_BUSY_SECONDS:g} s)",
            "Wait until that process ends, or stop it, then try again.",
        )
    if "not a database" in said or "malformed" in said or "corrupt" in said:
        return StorageError(
            f"{path} is corrupt: {said}",
            "Move it away and put a backup of it in its place, or begin without.",
        )
    if type(error) in (sqlite3.OperationalError, sqlite3.DatabaseError):
        return StorageError(
            f"cannot use {path}: {said}",
            f"Check the disk, its free space and the permissions of {path.parent}.",
        )
    return error  # a bug


def _make(path: Path) -> None:
    """Makes an empty file that is nobody else's to read."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA trusted_schema = OFF")  # the file may come from elsewhere
    return connection


def _copy(source: Path, temporary: Path, target: Path) -> None:
    """Copies by SQLite's online backup, and checks the copy."""
    with reported(target):
        original, copy = _connect(source), _connect(temporary)
        try:
            original.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")  # a single file, nothing beside it
            (verdict,) = copy.execute("PRAGMA quick_check(1)").fetchone()
        finally:
            original.close()
            copy.close()
    if verdict != "ok":
        raise StorageError(
            f"{source} is damaged, and was not copied: {verdict}",
            "Move it away and put an earlier copy in its place.",
        )


def _require_replaceable(source: Path, target: Path) -> None:
    """Refuses to overwrite what is no database, or the one that is copied."""
    if os.path.samefile(source, target):
        raise UsageError(f"{target} is the database itself", "Choose another path for the copy.")
    if not target.is_file():
        raise UsageError(f"{target} is not a regular file", "Choose another path for the copy.")
    with open(target, "rb") as handle:
        if handle.read(len(_HEADER)) not in (_HEADER, b""):
            raise UsageError(
                f"{target} is there, and is no copy of a database", "Choose another path."
            )
