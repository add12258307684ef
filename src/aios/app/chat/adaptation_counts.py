"""How the adaptations of sessions have ended, counted since the start, for who watches a server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class AdaptationCounts:
    """Totals of all sessions, those that are forgotten too; none of them ever goes down.

    An adaptation that is no longer wanted before it has ended is not counted.

    Attributes:
        kept: Adapters that came into use.
        dropped: Adapters that were trained, and not used: a loss had become worse.
        undone: Adapters that came into use, and were taken back.
        failed: Adaptations that came to nothing by an error.
    """

    kept: int = 0
    dropped: int = 0
    undone: int = 0
    failed: int = 0
