"""The self-edit cache: one JSON file a completion, at ``{cache_dir}/{key}.json``.

Takes what determines a completion (model, adapter, prompt, sampling, seed, candidate, parser) as
a key and gives back the completion that was generated for it before. Only finished completions
are kept: what a deadline cut off is not. Files are written atomically and carry a checksum; a
corrupt one is moved to ``{cache_dir}/corrupt/``, reported, and generated again. The least recently
used files go when the cache outgrows its limit. Several processes may share a folder: no reader
ever sees half a file, and files that another process removes are simply gone.

A cache that cannot be written never stops generation: the problem is reported once.

The folder is the only truth, there is no index: a lookup is one file, the size is known from the
folder's listing, which is read once a process and then once for each twentieth of the limit that
is written, and only `SelfEditCache.stats` opens every file.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from aios.core.errors import StorageError
from aios.core.files import atomic_write_bytes, remove_stale_temporaries, storage_error
from aios.core.seal.cache_folder import (
    SET_ASIDE,
    Entry,
    Share,
    list_entries,
    read_contents,
    read_entry,
    remove_entries,
    remove_set_aside,
    set_aside,
    unfinished,
)
from aios.core.seal.cache_format import (
    KEY,
    MAX_ENTRY_BYTES,
    CachedCompletion,
    cache_key,
    decode_entry,
    encode_entry,
)
from aios.core.seal.cache_reports import CacheStats, PruneReport
from aios.core.seal.cache_usage import KEPT_RUNS, RunUsage, now, past_usage, record_usage
from aios.core.types import Completion

__all__ = [
    "KEPT_RUNS",
    "CacheStats",
    "CachedCompletion",
    "PruneReport",
    "RunUsage",
    "SelfEditCache",
    "Share",
    "cache_key",
]


def _drop_report(path: Path, reason: str) -> None:
    """An `on_corrupt` that tells nobody."""


def _drop_message(message: str) -> None:
    """An `on_problem` that tells nobody."""


class SelfEditCache:
    """Completions on disk, by key.

    Use it as a context manager, or call `close`, so that its hits and misses are recorded for
    `stats`.

    Attributes:
        folder: Where the files are.
        max_bytes: Size above which the least recently used entries go.
        hits: Lookups answered since the last `close`.
        misses: Lookups not answered since then.
        stored: Completions that `put` has cached.
    """

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        *,
        on_corrupt: Callable[[Path, str], None] = _drop_report,
        on_problem: Callable[[str], None] = _drop_message,
    ) -> None:
        """Names the folder; nothing is made or read until the first `get` or `put`.

        Args:
            folder: Where the files are; made by the first `put`.
            max_bytes: Size (sum of file sizes) above which the least recently used entries go.
            on_corrupt: Called with the new place of each corrupt file and what is wrong with it.
            on_problem: Called once, with a message, if the cache cannot be read or written.
        """
        self.folder = folder
        self.max_bytes = max_bytes
        self.hits = 0
        self.misses = 0
        self.stored = 0
        self._on_corrupt = on_corrupt
        self._on_problem = on_problem
        self._problem_told = False
        self._room = -1  # bytes that may be put before the folder is listed again

    def __enter__(self) -> SelfEditCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def path(self, key: str) -> Path:
        """The file of a key.

        Raises:
            ValueError: It is not 64 lowercase hex digits.
        """
        if not KEY.fullmatch(key):
            raise ValueError(f"not a cache key: {key!r}")
        return self.folder / f"{key}.json"

    # ------------------------------------------------------------ get and put

    def get(self, key: str) -> CachedCompletion | None:
        """The completion cached under a key, marked as just used; None if there is none.

        A corrupt file is moved to ``corrupt/``, reported to `on_corrupt`, and counts as a miss.
        """
        path = self.path(key)
        found = self._read(path, key)
        if found is None:
            self.misses += 1
            return None
        with suppress(OSError):  # removed meanwhile, or a read-only folder: still a hit
            os.utime(path)
        self.hits += 1
        return found

    def _read(self, path: Path, key: str) -> CachedCompletion | None:
        try:
            data = read_entry(path)
        except OSError as error:
            self._tell(storage_error(error, "read", path))
            return None
        if data is None:
            return None
        try:
            return decode_entry(data, key)
        except ValueError as error:
            place = set_aside(path)
            if place is not None:  # else another process has set it aside, and reported it
                self._on_corrupt(place, str(error))
            return None

    def put(self, key: str, completion: Completion, *, strategy: str, model: str) -> bool:
        """Caches a finished completion, and prunes if the cache has outgrown its limit.

        Returns:
            Whether it was cached. False for a completion that a deadline cut off, one larger than
            the whole limit, and where it cannot be written (told to `on_problem` once).
        """
        path = self.path(key)
        if completion.finish_reason not in ("stop", "length"):
            return False
        written = False
        try:
            data = encode_entry(key, CachedCompletion(completion, strategy, model, now()))
            if len(data) > min(self.max_bytes, MAX_ENTRY_BYTES):
                return False
            if path.is_symlink():  # not ours: replaced, not written through
                path.unlink(missing_ok=True)
            atomic_write_bytes(path, data)
            written = True
            self.stored += 1
            self._make_room(len(data))
        except StorageError as error:
            self._tell(error)
        except OSError as error:
            self._tell(storage_error(error, "write", path))
        return written

    def _make_room(self, size: int) -> None:
        """Accounts for bytes just put, and prunes where the limit is passed.

        The folder is listed at the first put, when the limit is reached by what is known to be
        there, and each time that a twentieth of the limit has been written, which sees what other
        processes have put. A pruning leaves a tenth of the limit free. So listing takes a part of
        each put that does not grow with the number of entries.
        """
        self._room -= size
        if self._room >= 0:
            return
        a_while = self.max_bytes // 20
        self._room = a_while  # also if what follows fails, so that it is not tried at each put
        remove_stale_temporaries(self.folder)
        entries = list(list_entries(self.folder))
        total = sum(entry.size for entry in entries)
        if total > self.max_bytes:
            goal = self.max_bytes - self.max_bytes // 10
            going = _beyond(entries, goal)
            remove_entries(self.folder, going)
            total -= sum(entry.size for entry in going)
        self._room = min(a_while, self.max_bytes - total)

    def _tell(self, error: StorageError) -> None:
        if not self._problem_told:
            self._problem_told = True
            self._on_problem(f"Self-edit cache: {error.message}. {error.remedy}".rstrip())

    # ------------------------------------------------------------ prune, clear, stats

    def prune(
        self,
        max_bytes: int | None = None,
        *,
        older_than: float | None = None,
        dry_run: bool = False,
    ) -> PruneReport:
        """Removes entries by least recent use, and what killed writers left unfinished.

        Args:
            max_bytes: How much may stay; None for any size.
            older_than: Entries not used for more than so many seconds go, too.
            dry_run: Only say what would go.

        Raises:
            StorageError: The folder cannot be listed, or an entry cannot be removed.
        """
        entries = list(list_entries(self.folder))
        going: list[Entry] = []
        if older_than is not None:
            since = time.time_ns() - round(older_than * 10**9)
            going = [entry for entry in entries if entry.used < since]
        if max_bytes is not None:
            by_size = _beyond(entries, max_bytes)
            going = max(going, by_size, key=len)  # both are the least recently used
        removed, temporaries = _share(going), 0
        left = len(entries) - removed.entries
        bytes_left = sum(entry.size for entry in entries) - removed.bytes
        if not dry_run:
            temporaries = remove_stale_temporaries(self.folder)
            removed = remove_entries(self.folder, going)
        return PruneReport(
            removed=removed.entries,
            bytes_freed=removed.bytes,
            left=left,
            bytes_left=bytes_left,
            temporaries=temporaries,
            set_aside_left=_share(list_entries(self.folder / SET_ASIDE)).entries,
        )

    def clear(self, *, set_aside: bool = False, dry_run: bool = False) -> PruneReport:
        """Removes all entries, and nothing else that may be in the folder.

        Args:
            set_aside: Remove the corrupt files in ``corrupt/`` as well.
            dry_run: Only say what would go.

        Raises:
            StorageError: As `prune`.
        """
        report = self.prune(-1, dry_run=dry_run)
        if not set_aside:
            return report
        aside = _share(list_entries(self.folder / SET_ASIDE))
        if not dry_run:
            aside = remove_set_aside(self.folder)
        return replace(
            report,
            bytes_freed=report.bytes_freed + aside.bytes,
            set_aside=aside.entries,
            set_aside_left=0,
        )

    def stats(self) -> CacheStats:
        """Counts what is in the cache; reads the head of every entry.

        Raises:
            StorageError: The folder cannot be listed.
        """
        entries = list(list_entries(self.folder))
        contents = read_contents(self.folder, entries)
        whole = _share(entries)
        runs = past_usage(self.folder)
        return CacheStats(
            entries=whole.entries - contents.vanished.entries,
            bytes=whole.bytes - contents.vanished.bytes,
            limit_bytes=self.max_bytes,
            oldest=contents.oldest,
            newest=contents.newest,
            by_strategy=_largest_first(contents.by_strategy),
            by_model=_largest_first(contents.by_model),
            unreadable=contents.unreadable,
            set_aside=_share(list_entries(self.folder / SET_ASIDE)),
            unfinished=unfinished(self.folder),
            hits=sum(run.hits for run in runs) + self.hits,
            misses=sum(run.misses for run in runs) + self.misses,
            runs=tuple(runs),
        )

    # ------------------------------------------------------------ usage

    def close(self) -> None:
        """Records the hits and misses since the last `close` in ``usage.jsonl``."""
        if not self.hits + self.misses or not self.folder.is_dir():
            return
        try:
            record_usage(self.folder, self.hits, self.misses)
        except StorageError as error:
            self._tell(error)
        self.hits = self.misses = 0


def _beyond(entries: list[Entry], max_bytes: int) -> list[Entry]:
    """The least recently used entries, without which at most `max_bytes` are left."""
    over = sum(entry.size for entry in entries) - max_bytes
    going = []
    for entry in sorted(entries):
        if over <= 0:
            break
        going.append(entry)
        over -= entry.size
    return going


def _share(entries: Iterable[Entry]) -> Share:
    share = Share()
    for entry in entries:
        share.add(1, entry.size)
    return share


def _largest_first(shares: Mapping[str, Share]) -> dict[str, Share]:
    return dict(sorted(shares.items(), key=lambda item: (-item[1].bytes, item[0])))
