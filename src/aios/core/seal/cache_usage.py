"""How much the cache was of use: a line a run in ``{cache_dir}/usage.jsonl``.

Takes the hits and misses of a run; gives those of the last runs. The file is bounded, a torn line
is skipped, and several processes may append.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from aios.core.errors import StorageError
from aios.core.files import append_jsonl, atomic_write_bytes, guarded, locked, parse_json

KEPT_RUNS = 20

_FILE = "usage.jsonl"
_LOCK = ".usage.lock"
_MAX_BYTES = 64 * 2**10


@dataclass(frozen=True, slots=True)
class RunUsage:
    """What the cache did for a run.

    Attributes:
        time: When the run ended, ISO 8601 in UTC.
        hits: Lookups answered.
        misses: Lookups not answered.
    """

    time: str
    hits: int
    misses: int

    @property
    def hit_rate(self) -> float | None:
        """Share of lookups answered, in [0, 1]; None without lookups."""
        return hit_rate(self.hits, self.misses)


def hit_rate(hits: int, misses: int) -> float | None:
    """Share of lookups answered, in [0, 1]; None without lookups."""
    return hits / (hits + misses) if hits + misses else None


def now() -> str:
    """The time, ISO 8601 in UTC to the millisecond."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def record_usage(folder: Path, hits: int, misses: int) -> None:
    """Adds a run, and shortens the file to the last `KEPT_RUNS` where it has grown long.

    Raises:
        StorageError: It cannot be written.
    """
    path = folder / _FILE
    if path.is_symlink():
        raise StorageError(f"cannot write {path}: it is a symlink", "Remove it.")
    with guarded("write", path), locked(folder / _LOCK, timeout=5.0):
        append_jsonl(path, [asdict(RunUsage(now(), hits, misses))], sync=False)
        if os.path.getsize(path) > _MAX_BYTES:
            last = path.read_bytes().splitlines(keepends=True)[-KEPT_RUNS:]
            atomic_write_bytes(path, b"".join(last))


def past_usage(folder: Path) -> list[RunUsage]:
    """The last `KEPT_RUNS` runs, oldest first; lines that do not parse are left out."""
    try:
        with open(folder / _FILE, "rb") as handle:
            handle.seek(max(0, os.fstat(handle.fileno()).st_size - 2 * _MAX_BYTES))
            lines = handle.read(4 * _MAX_BYTES).splitlines()
    except OSError:
        return []
    runs = []
    for line in lines:
        with suppress(ValueError, KeyError, TypeError):
            record = parse_json(line)
            hits, misses = int(record["hits"]), int(record["misses"])
            run = RunUsage(str(record.get("time", "")), hits, misses)
            if min(run.hits, run.misses) >= 0:
                runs.append(run)
    return runs[-KEPT_RUNS:]
