"""Files that are whole or absent: atomic writes, appended lines, locks, safe paths.

Everything that AI-OS keeps on disk goes through here, so that a killed process, a full disk or a
second process leaves the old file or the new one and never something between. Takes paths and
bytes, gives files; every `OSError` becomes a `StorageError` that says what to do.

While a file ``name`` is written there is a ``.name.<hex>.tmp`` beside it. Locks are advisory
`flock` locks: the kernel drops them when their holder dies, so a kill leaves none behind.
Whole folders are published by `aios.core.folders`.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import secrets
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from aios.core.errors import StorageError, UsageError

MAX_JSON_BYTES = 64 * 2**20

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")
_RESERVED = {"con", "prn", "aux", "nul"} | {f"{n}{i}" for n in ("com", "lpt") for i in range(1, 10)}
_MISSING = object()


def storage_error(error: OSError, action: str, path: Path) -> StorageError:
    """The `StorageError` for an `OSError`: ``cannot <action> <path>: <reason>`` and a remedy."""
    if error.errno in _FULL:
        reason = "disk full, or over the quota or the largest file size allowed"
        remedy = (
            f"Free some space on the disk of {path.parent} or choose another folder, "
            "then run the same command again."
        )
    elif error.errno in _DENIED:
        reason = f"no access ({error.strerror})"
        if action != "read":
            reason = "read-only disk" if error.errno == errno.EROFS else "no write access"
        remedy = f"Change the permissions of {path.parent} or choose another folder."
    elif error.errno in {errno.ENOTDIR, errno.EEXIST, errno.EISDIR}:
        reason = f"a file is where a folder should be, or the reverse ({error.strerror})"
        remedy = f"Move what is in the way at {path} or choose another path."
    else:
        reason = error.strerror or str(error)
        remedy = f"Check the disk and the path {path}, then run the same command again."
    return StorageError(f"cannot {action} {path}: {reason}", remedy)


@contextmanager
def guarded(action: str, path: Path) -> Iterator[None]:
    """Turns an `OSError` of the body into a `StorageError` about `path`."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, action, path) from error


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable (fsync); a no-op where folders cannot be synced."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(fd)


def _writable_target(path: Path) -> Path:
    """Follows a symlink, and refuses to replace what is no regular file (a device, a folder)."""
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        return target
    if not stat.S_ISREG(mode):
        raise StorageError(
            f"cannot write {path}: it exists and is not a regular file", "Choose another path."
        )
    return target


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file beside `path` that replaces it when the block ends without an error.

    Missing parent folders are made. If the block raises, `path` is as it was and the temporary
    file is gone.

    Raises:
        StorageError: The disk is full or not writable, or `path` is not a regular file.
    """
    temporary: Path | None = None
    try:
        target = _writable_target(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f".{target.name[:128]}.{secrets.token_hex(8)}.tmp"
        with open(temporary, "xb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, target)
        sync_folder(target.parent)
    except OSError as error:
        if error.filename is not None and temporary is not None:
            ours = {os.fspath(temporary), os.fspath(temporary.parent)}
            if os.fspath(error.filename) not in ours:  # the block's own error, on another file
                raise
        raise storage_error(error, "write", path) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Replaces a file's content, or leaves it as it was. See `atomic_writer` for the errors."""
    with atomic_writer(path) as handle:
        handle.write(data)


def atomic_write_text(path: Path, text: str) -> None:
    """Replaces a file's content with UTF-8 text. See `atomic_writer` for the errors."""
    atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write_json(path: Path, value: object, *, indent: int | None = 2) -> None:
    """Replaces a file's content with JSON (UTF-8, ending in a newline).

    Raises:
        StorageError: As `atomic_writer`, or the value holds NaN or an infinite number.
    """
    atomic_write_bytes(path, encode_json(value, indent=indent) + b"\n")


def remove_stale_temporaries(folder: Path, *, older_than_seconds: float = 3600.0) -> int:
    """Removes temporary files that a killed `atomic_writer` left; returns how many."""
    removed = 0
    limit = time.time() - older_than_seconds
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not _TEMPORARY.fullmatch(entry.name):
                continue
            with suppress(OSError):  # another process may have removed it
                if entry.is_file(follow_symlinks=False) and entry.stat().st_mtime < limit:
                    os.unlink(entry.path)
                    removed += 1
    return removed


def encode_json(value: object, *, indent: int | None = None) -> bytes:
    """JSON as UTF-8 bytes without a final newline; compact unless `indent` is given.

    Raises:
        StorageError: The value holds NaN or an infinite number.
    """
    separators = (",", ": ") if indent is not None else (",", ":")
    options: dict[str, Any] = {"indent": indent, "separators": separators, "allow_nan": False}
    try:
        return json.dumps(value, ensure_ascii=False, **options).encode("utf-8")
    except UnicodeEncodeError:  # lone surrogates, which UTF-8 cannot hold: \\u escapes can
        return json.dumps(value, ensure_ascii=True, **options).encode("ascii")
    except ValueError as error:
        raise StorageError(f"cannot save a value as JSON: {error}") from error


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def parse_json(data: bytes) -> Any:
    """Parses UTF-8 JSON, refusing NaN and infinite numbers.

    Raises:
        ValueError: It is not such JSON; the message says why in one line.
    """
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_finite, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES, *, default: object = _MISSING) -> Any:
    """Reads a JSON file of bounded size.

    Args:
        path: The file.
        max_bytes: Largest size that is read.
        default: Returned where there is no such file; without it that is an error.

    Raises:
        StorageError: It cannot be read, is too large, is not valid JSON, or holds NaN.
    """
    if default is _MISSING:
        data: bytes | None = read_bytes(path, max_bytes)
    else:
        data = read_bytes_if_there(path, max_bytes)
    if data is None:
        return default
    try:
        return parse_json(data)
    except ValueError as error:
        raise StorageError(
            f"{path} is corrupt: {error}", "Restore it from a copy, or move it away to start over."
        ) from error


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """Reads a regular file of bounded size.

    Raises:
        StorageError: It is missing, not a regular file, too large, or cannot be read.
    """
    data = read_bytes_if_there(path, max_bytes)
    if data is None:
        raise StorageError(f"cannot read {path}: no such file", "Check the path.")
    return data


def read_bytes_if_there(path: Path, max_bytes: int) -> bytes | None:
    """As `read_bytes`, but None where there is no such file."""
    with guarded("read", path):
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise StorageError(f"cannot read {path}: not a regular file", "Check the path.")
            with open(path, "rb") as handle:
                size = os.fstat(handle.fileno()).st_size
                data = handle.read(min(size, max_bytes) + 1)
        except FileNotFoundError:
            return None
    if len(data) > max_bytes:
        raise StorageError(
            f"cannot read {path}: larger than the {max_bytes} bytes allowed",
            "Check that it is the file you mean.",
        )
    return data


class LineAppender:
    """A file of lines that only grows; a line is written with a single call, or marked as torn.

    A line cut short by a crash or a full disk is closed with a newline before the next one is
    written, so that it spoils no other line. Readers skip lines that do not parse.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file, making it and its parent folders if missing.

        Raises:
            StorageError: It cannot be opened.
        """
        self.path = path
        with guarded("open", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            size = os.fstat(self._fd).st_size
            self._torn = size > 0 and os.pread(self._fd, 1, size - 1) != b"\n"

    def append(self, *lines: bytes, sync: bool = False) -> int:
        """Appends lines (without their newline); `sync` makes them survive a power cut.

        Returns:
            The offset in bytes at which the first of them starts.

        Raises:
            StorageError: The disk is full or not writable; what was written before is intact.
        """
        body = b"".join(b"%b\n" % line for line in lines)
        data = memoryview(b"\n" + body if self._torn else body)
        with guarded("append to", self.path):
            self._torn = True
            while data:
                data = data[os.write(self._fd, data) :]
            self._torn = False
            end = os.lseek(self._fd, 0, os.SEEK_CUR)
            if sync:
                os.fsync(self._fd)
        return end - len(body)

    def sync(self) -> None:
        """Makes all lines survive a power cut."""
        with guarded("append to", self.path):
            os.fsync(self._fd)

    def close(self) -> None:
        """Closes the file; calling it again does nothing."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


def append_jsonl(path: Path, records: Iterable[object], *, sync: bool = True) -> None:
    """Appends records as JSON lines in one write.

    Raises:
        StorageError: The disk is full or not writable, or a record holds NaN.
    """
    lines = [encode_json(record) for record in records]
    appender = LineAppender(path)
    try:
        appender.append(*lines, sync=sync)
    finally:
        appender.close()


@contextmanager
def locked(lock_file: Path, *, timeout: float = 30.0) -> Iterator[None]:
    """Holds an exclusive lock between processes (and threads) while the block runs.

    Args:
        lock_file: The lock's own file, made if missing and left in place.
        timeout: Seconds to wait for another holder.

    Raises:
        StorageError: Another process holds it for longer, or the file cannot be opened.
    """
    lock = FileLock(lock_file, timeout=timeout)
    try:
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(poll_interval=0.01)
    except Timeout:
        raise StorageError(
            f"{lock_file} is held by another process (waited {timeout:g} s)",
            "Wait until that process ends, or stop it, then run the same command again.",
        ) from None
    except OSError as error:
        raise storage_error(error, "lock", lock_file) from error
    try:
        yield
    finally:
        lock.release()


def valid_id(text: str) -> bool:
    """Whether a text can be an expert or run id: letters, digits, ``. _ -``, at most 128."""
    return (
        _ID.fullmatch(text) is not None
        and ".." not in text
        and not text.endswith(".")
        and text.split(".")[0].lower() not in _RESERVED
    )


def require_id(text: str, what: str = "id") -> str:
    """Returns a valid id unchanged.

    Raises:
        UsageError: It is not valid; `what` names it in the message.
    """
    if not valid_id(text):
        raise UsageError(
            f"{text!r} is not a valid {what}",
            "Use letters, digits, '-', '_' and '.' (not '..'), starting with a letter or digit; "
            "at most 128 characters.",
        )
    return text


def confined(root: Path, *parts: str) -> Path:
    """Joins relative parts to a folder, and refuses a result outside it.

    Raises:
        UsageError: A part is empty, absolute, holds ``..``, a control character or a name that
            some system reserves, or a symlink leads out of `root`.
    """
    names: list[str] = []
    for part in parts:
        pieces = part.split("/")
        for name in pieces:
            bad = name in {"", ".", ".."} or "\\" in name or ":" in name or not name.isprintable()
            if bad or name.endswith((".", " ")) or name.split(".")[0].lower() in _RESERVED:
                raise UsageError(f"{part!r} is not a safe path inside {root}")
        names += pieces
    path = root.joinpath(*names)
    real_root = os.path.realpath(root)
    if os.path.commonpath([real_root, os.path.realpath(path)]) != real_root:
        raise UsageError(f"{path} leads out of {root}", "Remove the symlink that leads there.")
    return path
