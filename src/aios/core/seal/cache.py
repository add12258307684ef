"""The self-edit cache: one JSON file a completion, at ``{cache_dir}/{key}.json``.

Takes what determines a completion (model, adapter, prompt, sampling, seed, candidate, parser) as
a key and gives back the completion that was generated for it before. Only finished completions
are kept: what a deadline cut off is not. Files are written atomically and carry a checksum; a
corrupt one is moved to ``{cache_dir}/corrupt/``, reported, and generated again. The least recently
used files go when the cache outgrows its limit. Several processes may share a folder: no reader
ever sees half a file, and files that another process removes are simply gone.

A cache that cannot be written never stops generation: the problem is reported once.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType

from aios.core.errors import StorageError
from aios.core.files import (
    append_jsonl,
    atomic_write_bytes,
    guarded,
    locked,
    parse_json,
    remove_stale_temporaries,
    storage_error,
)
from aios.core.seal.cache_format import (
    KEY,
    MAX_ENTRY_BYTES,
    CachedCompletion,
    cache_key,
    decode_entry,
    encode_entry,
)
from aios.core.types import Completion

__all__ = ["CacheStats", "CachedCompletion", "PruneReport", "SelfEditCache", "cache_key"]

KEPT_RUNS = 20  # runs whose hits and misses stats() reports
_MAX_USAGE_BYTES = 64 * 2**10
_ENTRY = re.compile(r"[0-9a-f]{64}\.json")


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What a pruning removed: files and their bytes."""

    removed: int
    bytes_freed: int


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What is in the cache and how much it helped.

    Attributes:
        entries: Files.
        bytes: Their size together.
        oldest: When the oldest entry was made (ISO 8601 UTC), or None.
        newest: When the newest was made, or None.
        by_strategy: Entries by strategy.
        by_model: Entries by model name.
        unreadable: Entries that could not be parsed; the next `get` sets them aside.
        set_aside: Corrupt files in ``corrupt/``.
        hits: Lookups answered, in the last `KEPT_RUNS` runs and this one.
        misses: Lookups not answered, likewise.
    """

    entries: int
    bytes: int
    oldest: str | None
    newest: str | None
    by_strategy: Mapping[str, int]
    by_model: Mapping[str, int]
    unreadable: int
    set_aside: int
    hits: int
    misses: int

    @property
    def hit_rate(self) -> float | None:
        """Share of lookups answered, in [0, 1]; None without lookups."""
        lookups = self.hits + self.misses
        return self.hits / lookups if lookups else None


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def _drop_report(path: Path, reason: str) -> None:
    """An `on_corrupt` that tells nobody."""


def _drop_message(message: str) -> None:
    """An `on_problem` that tells nobody."""


class SelfEditCache:
    """Completions on disk, by key.

    Use it as a context manager, or call `close`, so that its hits and misses are recorded for
    `stats`.
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
        self._on_corrupt = on_corrupt
        self._on_problem = on_problem
        self._problem_told = False
        self._bytes: int | None = None  # estimated size of the folder; None: not yet scanned
        self._written = 0  # bytes put since the folder was last scanned

    def __enter__(self) -> SelfEditCache:
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Calls `close`."""
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
            with open(path, "rb") as handle:
                size = os.fstat(handle.fileno()).st_size
                data = handle.read(min(size, MAX_ENTRY_BYTES) + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._tell(storage_error(error, "read", path))
            return None
        try:
            return decode_entry(data, key)
        except ValueError as error:
            self._set_aside(path, str(error))
            return None

    def _set_aside(self, path: Path, reason: str) -> None:
        target = self.folder / "corrupt" / path.name
        try:
            target.parent.mkdir(exist_ok=True)
            os.replace(path, target)
        except FileNotFoundError:  # another process has set it aside and reported it
            return
        except OSError:  # left in place, so the report names where it is
            target = path
        self._on_corrupt(target, reason)

    def put(self, key: str, completion: Completion, *, strategy: str, model: str) -> bool:
        """Caches a finished completion, and prunes if the cache has outgrown its limit.

        Returns:
            Whether it was cached. False for a completion that a deadline cut off, one larger than
            the whole limit, and where the folder cannot be written (told to `on_problem` once).
        """
        path = self.path(key)
        if completion.finish_reason not in ("stop", "length"):
            return False
        data = encode_entry(key, CachedCompletion(completion, strategy, model, _now()))
        if len(data) > min(self.max_bytes, MAX_ENTRY_BYTES):
            return False
        written = False
        try:
            atomic_write_bytes(path, data)
            written = True
            self._account(len(data))
        except StorageError as error:
            self._tell(error)
        return written

    def _account(self, size: int) -> None:
        """Keeps the estimated size, and prunes when it passes the limit.

        The folder is listed at the first put, and again each time that a twentieth of the limit
        has been written, which sees what other processes have put.
        """
        self._written += size
        if self._bytes is None or self._written > self.max_bytes // 20:
            remove_stale_temporaries(self.folder)
            self._bytes = sum(entry.size for entry in self._entries())
            self._written = 0
        else:
            self._bytes += size
        if self._bytes > self.max_bytes:
            self.prune(self.max_bytes - self.max_bytes // 10)  # some room, not to prune each time

    def _tell(self, error: StorageError) -> None:
        if not self._problem_told:
            self._problem_told = True
            self._on_problem(f"Self-edit cache: {error.message}. {error.remedy}")

    # ------------------------------------------------------------ prune, clear, stats

    def prune(self, max_bytes: int) -> PruneReport:
        """Removes the least recently used entries until at most `max_bytes` are left.

        Raises:
            StorageError: The folder cannot be listed, or an entry cannot be removed.
        """
        entries = sorted(self._entries(), key=lambda entry: entry.used)
        total = sum(entry.size for entry in entries)
        removed = freed = 0
        for entry in entries:
            if total <= max_bytes:
                break
            with guarded("remove", entry.path):
                try:
                    os.unlink(entry.path)
                except FileNotFoundError:  # another process was faster
                    pass
                else:
                    removed += 1
                    freed += entry.size
            total -= entry.size
        self._bytes, self._written = total, 0
        return PruneReport(removed, freed)

    def clear(self) -> PruneReport:
        """Removes all entries, and nothing else that may be in the folder.

        Raises:
            StorageError: As `prune`.
        """
        return self.prune(-1)

    def stats(self) -> CacheStats:
        """Counts what is in the cache; reads every entry.

        Raises:
            StorageError: The folder cannot be listed.
        """
        strategies: Counter[str] = Counter()
        models: Counter[str] = Counter()
        oldest: str | None = None
        newest: str | None = None
        entries = size = unreadable = 0
        for entry in self._entries():
            try:
                record = parse_json(entry.path.read_bytes())
                facts = str(record["strategy"]), str(record["model"]), str(record["created"])
            except FileNotFoundError:
                continue
            except (OSError, ValueError, KeyError, TypeError):
                unreadable += 1
            else:
                strategies[facts[0]] += 1
                models[facts[1]] += 1
                oldest = min(oldest or facts[2], facts[2])
                newest = max(newest or facts[2], facts[2])
            entries += 1
            size += entry.size
        hits, misses = self._past_usage()
        return CacheStats(
            entries=entries,
            bytes=size,
            oldest=oldest,
            newest=newest,
            by_strategy=dict(strategies.most_common()),
            by_model=dict(models.most_common()),
            unreadable=unreadable,
            set_aside=_count_files(self.folder / "corrupt"),
            hits=hits + self.hits,
            misses=misses + self.misses,
        )

    def _entries(self) -> Iterator[_Entry]:
        """The cache's own files; whatever else is in the folder is left alone."""
        with guarded("list", self.folder):
            try:
                listing = os.scandir(self.folder)
            except FileNotFoundError:
                return
            with listing:
                for item in listing:
                    if not _ENTRY.fullmatch(item.name) or not item.is_file(follow_symlinks=False):
                        continue
                    try:
                        info = item.stat(follow_symlinks=False)
                    except FileNotFoundError:  # removed since it was listed
                        continue
                    yield _Entry(Path(item.path), info.st_size, info.st_mtime_ns)

    # ------------------------------------------------------------ usage

    def close(self) -> None:
        """Records the hits and misses since the last `close` in ``usage.jsonl``."""
        if not self.hits + self.misses or not self.folder.is_dir():
            return
        path = self.folder / "usage.jsonl"
        record = {"time": _now(), "hits": self.hits, "misses": self.misses}
        try:
            with locked(self.folder / ".usage.lock", timeout=5.0):
                append_jsonl(path, [record], sync=False)
                if os.path.getsize(path) > _MAX_USAGE_BYTES:
                    last = path.read_bytes().splitlines(keepends=True)[-KEPT_RUNS:]
                    atomic_write_bytes(path, b"".join(last))
        except OSError as error:
            self._tell(storage_error(error, "write", path))
        except StorageError as error:
            self._tell(error)
        self.hits = self.misses = 0

    def _past_usage(self) -> tuple[int, int]:
        """Hits and misses of the last runs; lines that do not parse are not counted."""
        try:
            lines = (self.folder / "usage.jsonl").read_bytes().splitlines()[-KEPT_RUNS:]
        except OSError:
            return 0, 0
        hits = misses = 0
        for line in lines:
            with suppress(ValueError, KeyError, TypeError):
                record = parse_json(line)
                run = int(record["hits"]), int(record["misses"])
                hits, misses = hits + run[0], misses + run[1]
        return hits, misses


@dataclass(frozen=True, slots=True)
class _Entry:
    """A cache file: where, how large, and when last used (ns)."""

    path: Path
    size: int
    used: int


def _count_files(folder: Path) -> int:
    try:
        return len(os.listdir(folder))
    except OSError:
        return 0
