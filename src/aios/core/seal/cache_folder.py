"""The files of a cache folder: listing, reading and removing them, and nothing else that is there.

Takes a folder; gives its entries with size and time of last use, their heads, and what was
removed. Only regular files with an entry's name count; symlinks are never followed, and what
another process removes meanwhile is simply gone.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from aios.core.files import guarded, storage_error
from aios.core.seal.cache_format import HEAD_BYTES, MAX_ENTRY_BYTES, decode_head

SET_ASIDE = "corrupt"  # where corrupt files are moved to

_is_entry = re.compile(r"[0-9a-f]{64}\.json").fullmatch
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe must not block
# With 100,000 entries on two cores, one thread was measured to take 1.0 s from memory and 7.2 s
# from disk, four 1.9 s and 3.8 s, and more were no better at either.
_READERS = 4
_CHUNK = 500


class Entry(NamedTuple):
    """A cache file; entries sort by their last use.

    Attributes:
        used: When it was last used, ns since the epoch.
        size: Its bytes.
        name: Its name in the folder.
    """

    used: int
    size: int
    name: str


@dataclass(slots=True)
class Share:
    """A part of the cache: files and their bytes."""

    entries: int = 0
    bytes: int = 0

    def add(self, entries: int, size: int) -> None:
        """Counts more of it."""
        self.entries += entries
        self.bytes += size


@dataclass(slots=True)
class Contents:
    """What the heads of entries say.

    Attributes:
        by_strategy: Entries and bytes by strategy.
        by_model: The same by model name.
        oldest: When the oldest was made, or None.
        newest: When the newest was made, or None.
        unreadable: Entries whose head could not be read.
        vanished: Entries and bytes that were removed before they were read.
    """

    by_strategy: dict[str, Share] = field(default_factory=dict)
    by_model: dict[str, Share] = field(default_factory=dict)
    oldest: str | None = None
    newest: str | None = None
    unreadable: int = 0
    vanished: Share = field(default_factory=Share)

    def include(self, other: Contents) -> None:
        """Adds what was found among other entries."""
        for mine, theirs in (
            (self.by_strategy, other.by_strategy),
            (self.by_model, other.by_model),
        ):
            for name, share in theirs.items():
                mine.setdefault(name, Share()).add(share.entries, share.bytes)
        dates = [d for d in (self.oldest, self.newest, other.oldest, other.newest) if d is not None]
        self.oldest, self.newest = min(dates, default=None), max(dates, default=None)
        self.unreadable += other.unreadable
        self.vanished.add(other.vanished.entries, other.vanished.bytes)


def list_entries(folder: Path) -> Iterator[Entry]:
    """The entries of a folder, in no order; none if there is no such folder.

    Raises:
        StorageError: The folder cannot be listed.
    """
    for item in _listing(folder):
        if _is_entry(item.name):
            info = _regular(item)
            if info is not None:
                yield Entry(info.st_mtime_ns, info.st_size, item.name)


def unfinished(folder: Path) -> Share:
    """Temporary files, of writers at work or killed.

    Raises:
        StorageError: The folder cannot be listed.
    """
    share = Share()
    for item in _listing(folder):
        if item.name.startswith(".") and item.name.endswith(".tmp"):
            info = _regular(item)
            if info is not None:
                share.add(1, info.st_size)
    return share


def _listing(folder: Path) -> Iterator[os.DirEntry[str]]:
    with guarded("list", folder):
        try:
            listing = os.scandir(folder)
        except FileNotFoundError:
            return
        with listing:
            yield from listing


def _regular(item: os.DirEntry[str]) -> os.stat_result | None:
    """Facts about a regular file; None for anything else, or if it was removed meanwhile."""
    try:
        info = item.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    return info if stat.S_ISREG(info.st_mode) else None


def read_entry(path: Path) -> bytes | None:
    """The bytes of an entry's file, cut off behind `MAX_ENTRY_BYTES`; None if there is none.

    Raises:
        OSError: It cannot be read.
    """
    try:
        fd = os.open(path, _READ)
    except FileNotFoundError:
        return None
    except OSError:
        if path.is_symlink():
            return None
        raise
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise IsADirectoryError(errno.EISDIR, "not a regular file", str(path))
        return os.read(fd, min(info.st_size, MAX_ENTRY_BYTES) + 1)
    finally:
        os.close(fd)


def read_contents(folder: Path, entries: Sequence[Entry]) -> Contents:
    """Reads the heads of entries, with a few threads, as it is the disk that takes the time."""
    contents = Contents()
    if entries:
        chunks = [entries[start : start + _CHUNK] for start in range(0, len(entries), _CHUNK)]
        with ThreadPoolExecutor(min(_READERS, len(chunks)), "cache-stats") as pool:
            for found in pool.map(lambda chunk: _read_heads(folder, chunk), chunks):
                contents.include(found)
    return contents


def _read_heads(folder: Path, entries: Sequence[Entry]) -> Contents:
    contents = Contents()
    dates: list[str] = []
    prefix = os.fspath(folder)
    for entry in entries:
        try:
            fd = os.open(f"{prefix}/{entry.name}", _READ)
            try:
                head = decode_head(os.read(fd, HEAD_BYTES))
            finally:
                os.close(fd)
        except FileNotFoundError:
            contents.vanished.add(1, entry.size)
        except (OSError, ValueError):
            contents.unreadable += 1
        else:
            contents.by_strategy.setdefault(head.strategy, Share()).add(1, entry.size)
            contents.by_model.setdefault(head.model, Share()).add(1, entry.size)
            dates.append(head.created)
    contents.oldest, contents.newest = min(dates, default=None), max(dates, default=None)
    return contents


def remove_entries(folder: Path, entries: Iterable[Entry]) -> Share:
    """Removes entries; those that another process removed first are not counted.

    Raises:
        StorageError: One cannot be removed.
    """
    removed = Share()
    prefix = os.fspath(folder)
    for entry in entries:
        try:
            os.unlink(f"{prefix}/{entry.name}")
        except FileNotFoundError:
            continue
        except OSError as error:
            raise storage_error(error, "remove", folder / entry.name) from error
        removed.add(1, entry.size)
    return removed


def set_aside(path: Path) -> Path | None:
    """Moves a corrupt entry out of the way.

    Returns:
        Where it is now: in `SET_ASIDE`, or where it was if it cannot be moved. None if another
        process has moved or removed it.
    """
    target = path.parent / SET_ASIDE / path.name
    try:
        target.parent.mkdir(exist_ok=True)
        os.replace(path, target)
    except FileNotFoundError:
        return None
    except OSError:
        return path
    return target


def remove_set_aside(folder: Path) -> Share:
    """Removes the corrupt files that were set aside.

    Raises:
        StorageError: One cannot be removed.
    """
    aside = folder / SET_ASIDE
    removed = remove_entries(aside, list(list_entries(aside)))
    with suppress(OSError):  # not there, or somebody's own files are in it
        aside.rmdir()
    return removed
