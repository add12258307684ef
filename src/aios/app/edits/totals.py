"""What self-edits come to: counts, reasons, and how strategies and their scores compare.

Takes the columns of an index (`aios.app.edits.index`); gives counts and distributions over all of
it, and for each strategy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from aios.app.edits.inspection import ReasonCount, ScoreSummary, Values
from aios.core.data.edit_files import BrokenLine

LENGTHS = ("items", "words", "tokens", "tokens generated")
"""Of what is noted of an edit: how long it is, rather than how good."""


@dataclass(frozen=True)
class StrategyTotals:
    """What a strategy gave.

    Attributes:
        strategy: Its name.
        kept: Candidates kept.
        dropped: Candidates dropped whole.
        items_dropped: Items dropped from those that were kept.
        share_kept: Of the candidates; None without any.
        reasons: Drops by reason, the most frequent first.
        scores: Distributions over its kept edits, by name; lengths among them.
    """

    strategy: str
    kept: int
    dropped: int
    items_dropped: int
    share_kept: float | None
    reasons: tuple[ReasonCount, ...]
    scores: Mapping[str, ScoreSummary]


@dataclass(frozen=True)
class EditTotals:
    """What a generation gave, as far as it is written.

    Attributes:
        passages: Passages with a kept edit or a drop.
        without_edits: How many of them have no kept edit.
        all: Everything together.
        strategies: Each strategy, the one with the most candidates first.
        models: Kept edits by the model that wrote them.
        failed: Passages whose generation failed, as far as that is on record.
        broken: Lines that could not be read.
        broken_listed: The first of them.
        left_out: Lines that were not looked at, as there are too many.
    """

    passages: int
    without_edits: int
    all: StrategyTotals
    strategies: tuple[StrategyTotals, ...]
    models: Mapping[str, int]
    failed: int
    broken: int
    broken_listed: tuple[BrokenLine, ...]
    left_out: int

    @property
    def scores(self) -> tuple[ScoreSummary, ...]:
        """Distributions over all kept edits."""
        return tuple(self.all.scores.values())


@dataclass(eq=False)
class Columns:
    """What is noted of each edit and drop: numbers of names, and whether it counts.

    Attributes:
        passage: Number of its passage.
        strategy: Number of its strategy.
        reason: Number of the reason that it was dropped for; 0 for a kept edit.
        model: Number of the model; only of kept edits.
        whole: Whether it is a whole candidate, not an item of one that was kept.
        alive: False where it was replaced by a later try.
        scores: By name, which records have a value, and the values.
        strategies: Their names.
        reasons: Their names; the first is that of kept edits.
        models: Their names.
        failed: Passages that failed.
        broken: Lines that could not be read.
        broken_listed: The first of them.
        too_long: Lines that are too long to be read.
        left_out: Lines that were not looked at.
    """

    passage: NDArray[np.int64]
    strategy: NDArray[np.int64]
    reason: NDArray[np.int64]
    model: NDArray[np.int64]
    whole: NDArray[np.bool_]
    alive: NDArray[np.bool_]
    scores: Mapping[str, tuple[NDArray[np.int64], NDArray[np.float64]]]
    strategies: tuple[str, ...]
    reasons: tuple[str, ...]
    models: tuple[str, ...]
    failed: int
    broken: int
    broken_listed: tuple[BrokenLine, ...]
    too_long: int
    left_out: int
    totals: EditTotals | None = field(default=None)


def totals_of(columns: Columns) -> EditTotals:
    """Counts and distributions; worked out once."""
    if columns.totals is None:
        alive = columns.alive
        kept = alive & (columns.reason == 0)
        strategies = [
            _of(columns, name, alive & (columns.strategy == number))
            for number, name in enumerate(columns.strategies)
        ]
        strategies.sort(key=lambda one: (-(one.kept + one.dropped), one.strategy))
        models = np.bincount(columns.model[kept], minlength=len(columns.models))
        passages = len(np.unique(columns.passage[alive]))
        columns.totals = EditTotals(
            passages=passages,
            without_edits=passages - len(np.unique(columns.passage[kept])),
            all=_of(columns, "", alive),
            strategies=tuple(one for one in strategies if one.kept + one.dropped),
            models={
                columns.models[n]: int(models[n]) for n in np.argsort(-models) if models[n] > 0
            },
            failed=columns.failed,
            broken=columns.broken + columns.too_long,
            broken_listed=columns.broken_listed,
            left_out=columns.left_out,
        )
    return columns.totals


def _of(columns: Columns, name: str, chosen: NDArray[np.bool_]) -> StrategyTotals:
    kept = chosen & (columns.reason == 0)
    dropped = chosen & (columns.reason > 0)
    size = len(columns.reasons)
    whole = np.bincount(columns.reason[dropped & columns.whole], minlength=size)
    items = np.bincount(columns.reason[dropped & ~columns.whole], minlength=size)
    n_kept, n_dropped = int(kept.sum()), int(whole.sum())
    reasons = [
        ReasonCount(columns.reasons[n], int(whole[n]), int(items[n]))
        for n in np.argsort(-(whole + items), kind="stable")
        if whole[n] + items[n] > 0
    ]
    return StrategyTotals(
        strategy=name,
        kept=n_kept,
        dropped=n_dropped,
        items_dropped=int(items.sum()),
        share_kept=n_kept / (n_kept + n_dropped) if n_kept + n_dropped else None,
        reasons=tuple(reasons),
        scores=_scores(columns, kept),
    )


def _scores(columns: Columns, kept: NDArray[np.bool_]) -> dict[str, ScoreSummary]:
    found = {}
    names = sorted(columns.scores, key=lambda name: (name not in LENGTHS, name))
    for name in names:
        records, values = columns.scores[name]
        different, counts = np.unique(values[kept[records]], return_counts=True)
        counted = Values(name)
        for value, times in zip(different.tolist(), counts.tolist(), strict=True):
            counted.add(value, times)
        summary = counted.summary()
        if summary is not None:
            found[name] = summary
    return found
