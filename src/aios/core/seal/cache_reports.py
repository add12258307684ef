"""What the self-edit cache tells of itself: what is in it, and what a pruning removed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aios.core.seal.cache_folder import Share
from aios.core.seal.cache_usage import RunUsage, hit_rate


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What a pruning removed, or would remove.

    Attributes:
        removed: Entries removed.
        bytes_freed: Their size together.
        left: Entries that stay.
        bytes_left: Their size together.
        temporaries: Files removed that killed writers had left unfinished.
        set_aside: Corrupt files removed from ``corrupt/``.
        set_aside_left: Corrupt files that stay there.
    """

    removed: int
    bytes_freed: int
    left: int = 0
    bytes_left: int = 0
    temporaries: int = 0
    set_aside: int = 0
    set_aside_left: int = 0


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What is in the cache and how much it helped.

    Attributes:
        entries: Files.
        bytes: Their size together.
        limit_bytes: The size above which the least recently used go.
        oldest: When the oldest entry was made (ISO 8601 UTC), or None.
        newest: When the newest was made, or None.
        by_strategy: Entries and bytes by strategy, most bytes first.
        by_model: The same by model name.
        unreadable: Entries whose head could not be read; the next `get` sets them aside.
        set_aside: Corrupt files in ``corrupt/``.
        unfinished: Temporary files, of writers at work or killed.
        hits: Lookups answered, in the last `KEPT_RUNS` runs and this one.
        misses: Lookups not answered, likewise.
        runs: Those of the last runs one by one, oldest first.
    """

    entries: int
    bytes: int
    limit_bytes: int
    oldest: str | None
    newest: str | None
    by_strategy: Mapping[str, Share]
    by_model: Mapping[str, Share]
    unreadable: int
    set_aside: Share
    unfinished: Share
    hits: int
    misses: int
    runs: tuple[RunUsage, ...]

    @property
    def hit_rate(self) -> float | None:
        """Share of lookups answered, in [0, 1]; None without lookups."""
        return hit_rate(self.hits, self.misses)
