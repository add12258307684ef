"""What an inspection of self-edits says: its records, and how values are counted.

`inspect_edits` fills them in; the command line and the page show them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from aios.core.data.edit_files import BrokenLine, EditFiles
from aios.core.data.rejects import one_line
from aios.core.types import Drop, SelfEdit

BINS = 16
MOST_NAMES = 100  # reasons, strategies, models and scores that are told apart; the rest is one
OTHERS = "(others)"
WORSE_HIGH = frozenset({"repetition", "non_words", "closeness", "similarity", "loss"})
WORSE_LOW = frozenset({"entropy", "overlap", "grounded"})

_LARGEST = 1e12  # larger values of a score are counted as this
_SMALLEST = 1e-6  # smaller ones as 0


@dataclass(frozen=True, slots=True)
class Selection:
    """Which passages are shown, and which of their edits and drops.

    Attributes:
        passages: Ids; empty for any.
        reasons: Only drops with one of these reasons, and no kept edits; empty for any.
        strategies: Only edits and drops of one of these; empty for any.
        kept: Show kept edits.
        dropped: Show drops.
        limit: Most passages. With ids, all of these are shown.
        sample: Choose at random instead of the first; the choice depends on `seed` and ids alone.
        seed: Seed of that choice.
    """

    passages: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    strategies: tuple[str, ...] = ()
    kept: bool = True
    dropped: bool = True
    limit: int = 10
    sample: bool = False
    seed: int = 0

    def wants(self, record: SelfEdit | Drop) -> bool:
        """Whether an edit or a drop is among what is to be shown."""
        if isinstance(record, SelfEdit):
            fits = self.kept and not self.reasons
        else:
            fits = self.dropped and (not self.reasons or record.reason in self.reasons)
        return (
            fits
            and (not self.strategies or record.strategy in self.strategies)
            and (not self.passages or record.passage_id in self.passages)
        )


@dataclass(frozen=True, slots=True)
class ScoreSummary:
    """How the values of a score are spread over the kept edits.

    Attributes:
        name: The score's name.
        n: Edits that have it.
        mean: Mean; all values are taken to four digits.
        low: Least value.
        p10: A tenth of the values are at or below it (nearest rank), likewise `median`, `p90`.
        median: See `p10`.
        p90: See `p10`.
        high: Greatest value.
        bins: Edits in each of `BINS` equal ranges from `low` to `high`; one bin if these are equal.
        worse: ``high`` or ``low``: where the bad values are; empty where neither is bad.
    """

    name: str
    n: int
    mean: float
    low: float
    p10: float
    median: float
    p90: float
    high: float
    bins: tuple[int, ...]
    worse: str = ""

    def is_bad(self, value: float) -> bool:
        """Whether a value is in the worst tenth, and worse than the median."""
        value = four_digits(value)
        if self.worse == "high":
            return value >= self.p90 and value > self.median
        return self.worse == "low" and value <= self.p10 and value < self.median


@dataclass(frozen=True, slots=True)
class ReasonCount:
    """Drops for a reason: whole candidates, and items of candidates that were kept."""

    reason: str
    edits: int
    items: int


@dataclass(frozen=True, slots=True)
class StrategyCount:
    """Candidates of a strategy; `share_dropped` is None without any."""

    strategy: str
    kept: int
    dropped: int
    share_dropped: float | None


@dataclass(frozen=True, slots=True)
class WithoutEdits:
    """A passage of which nothing was kept, with its drops by reason."""

    passage_id: str
    reasons: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ShownEdit:
    """A kept edit; `more` items are left out, `bad` are its scores in the worst tenth."""

    strategy: str
    index: int
    items: tuple[str, ...]
    more: int
    model: str
    seed: int
    tokens: int
    scores: Mapping[str, float]
    bad: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ShownDrop:
    """A drop; `whole` tells a whole candidate from an item of one that was kept."""

    strategy: str
    index: int
    text: str
    reason: str
    detail: str
    whole: bool


@dataclass(frozen=True, slots=True)
class ShownPassage:
    """A passage with the edits and drops that were asked for.

    Attributes:
        id: Its id.
        title: Its title, if the passages were given.
        text: Its text, likewise.
        edits: Kept edits.
        drops: Drops.
        more_edits: Kept edits left out for their number or size.
        more_drops: Drops left out, likewise.
    """

    id: str
    title: str
    text: str
    edits: tuple[ShownEdit, ...]
    drops: tuple[ShownDrop, ...]
    more_edits: int
    more_drops: int

    def rows(self) -> list[ShownEdit | ShownDrop]:
        """Edits, each with the items dropped from it, then all other drops."""
        items: defaultdict[tuple[str, int], list[ShownDrop]] = defaultdict(list)
        for drop in self.drops:
            if not drop.whole:
                items[drop.strategy, drop.index].append(drop)
        rows: list[ShownEdit | ShownDrop] = []
        for edit in self.edits:
            rows += [edit, *items.pop((edit.strategy, edit.index), ())]
        rows += (drop for group in items.values() for drop in group)  # their edit is not shown
        rows += (drop for drop in self.drops if drop.whole)
        return rows


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a generation gave.

    Attributes:
        files: What was read. Without a list of drops, all that is said of drops is empty.
        passages: Passages with a kept edit or a drop.
        kept: Kept edits.
        dropped: Candidates dropped whole.
        items_dropped: Items dropped from edits that were kept.
        share_dropped: Of the candidates; None without any.
        reasons: Drops by reason, the most frequent first.
        strategies: Candidates by strategy.
        models: Kept edits by the model that wrote them.
        tokens_generated: Tokens generated for kept edits, of those that took any.
        scores: Distributions of the kept edits' scores.
        without_edits: How many passages have nothing left.
        without_edits_listed: The first of them.
        input_passages: Passages of the input, if it was given.
        untouched: How many of them have neither an edit nor a drop.
        rejects: Input records that could not be used, by reason.
        broken: Lines of these files that could not be read.
        broken_listed: The first of them.
        matching: Passages with something that was asked for.
        shown: Those that are shown.
    """

    files: EditFiles
    passages: int
    kept: int
    dropped: int
    items_dropped: int
    share_dropped: float | None
    reasons: tuple[ReasonCount, ...]
    strategies: tuple[StrategyCount, ...]
    models: Mapping[str, int]
    tokens_generated: ScoreSummary | None
    scores: tuple[ScoreSummary, ...]
    without_edits: int
    without_edits_listed: tuple[WithoutEdits, ...]
    input_passages: int | None
    untouched: int | None
    rejects: Mapping[str, int]
    broken: int
    broken_listed: tuple[BrokenLine, ...]
    matching: int
    shown: tuple[ShownPassage, ...]


class Values:
    """Counts the values of a score to four digits, so that memory does not grow with their number.

    Args:
        name: The score's name.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._counts: Counter[float] = Counter()
        self._sum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Counts a finite value."""
        value = four_digits(value)
        self._sum += value * times
        self._counts[value] += times

    def summary(self) -> ScoreSummary | None:
        """The distribution; None without values."""
        if not self._counts:
            return None
        ordered = sorted(self._counts.items())
        low, high, n = ordered[0][0], ordered[-1][0], self._counts.total()
        p10, median, p90 = (_nearest_rank(ordered, n * share) for share in (0.1, 0.5, 0.9))
        bins = [0] * (BINS if high > low else 1)
        for value, count in ordered:
            place = int((value - low) / (high - low) * BINS) if high > low else 0
            bins[min(place, len(bins) - 1)] += count
        return ScoreSummary(
            name=self._name,
            n=n,
            mean=self._sum / n,
            low=low,
            p10=p10,
            median=median,
            p90=p90,
            high=high,
            bins=tuple(bins),
            worse=_WORSE.get(self._name, ""),
        )


_WORSE = {**dict.fromkeys(WORSE_HIGH, "high"), **dict.fromkeys(WORSE_LOW, "low")}


def four_digits(value: float) -> float:
    """A finite value to four digits; tiny ones become 0, and huge ones are cut."""
    if abs(value) < _SMALLEST:
        return 0.0
    return float(f"{max(-_LARGEST, min(_LARGEST, value)):.4g}")


def _nearest_rank(ordered: list[tuple[float, int]], rank: float) -> float:
    seen = 0
    for value, count in ordered:
        seen += count
        if seen >= rank:
            return value
    return ordered[-1][0]


def count_name(counts: Counter[str], name: str) -> None:
    """Counts a name that may come from anywhere: made one short line, at most `MOST_NAMES`."""
    name = shown_name(name)
    counts[name if name in counts or len(counts) < MOST_NAMES else OTHERS] += 1


def shown_name(name: str) -> str:
    """A name as one short printable line."""
    return one_line(name, 60) or "(none)"
