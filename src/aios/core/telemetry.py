"""What a generation cost, gathered from its events: time, tokens, hits, drops, memory, stalls.

Takes events, live or from a record; gives a `TelemetrySummary`. It only listens: it changes
nothing, writes nothing and sends nothing. Its memory does not grow with the number of passages:
counts are numbers, and quantiles come from a histogram of fixed size.

The histogram has logarithmic buckets, as in DDSketch (Masson et al. 2019, arXiv 1908.10693): a
quantile is off by at most `QUANTILE_ERROR` of its value; unlike there, the range is fixed.
"""

from __future__ import annotations

import math
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime

from aios.core.events import (
    Dropped,
    Event,
    GenerationMeasured,
    Heartbeat,
    PassageGenerated,
    StageFinished,
    StageStarted,
    Stalled,
    WorkFailed,
)

STAGES = ("generate", "self-edits")  # the stages in which self-edits are written
MOST_REASONS = 64  # reasons counted by name; more are counted together
OTHER_REASONS = "other"

_GROWTH = 1.04  # each bucket's upper end, as a multiple of its lower end
_LOWEST, _HIGHEST = 1e-4, 1e8
_BUCKETS = math.ceil(math.log(_HIGHEST / _LOWEST) / math.log(_GROWTH)) + 2
QUANTILE_ERROR = (_GROWTH - 1) / (_GROWTH + 1)  # relative, for values from 1e-4 to 1e8


@dataclass(frozen=True, slots=True)
class Spread:
    """How a quantity is spread.

    Attributes:
        mean: Arithmetic mean, exact.
        median: Within `QUANTILE_ERROR` of it.
        p90: Nine of ten values are at most this; within `QUANTILE_ERROR`.
        maximum: The largest value, exact.
    """

    mean: float
    median: float
    p90: float
    maximum: float


class LogHistogram:
    """Counts of non-negative numbers in buckets that grow by 4 %, in a fixed 5.6 kB.

    Values below 1e-4 are one bucket, values above 1e8 another; count, sum, least and largest are
    exact.
    """

    def __init__(self) -> None:
        self._counts = array("q", [0]) * _BUCKETS
        self.count = 0
        self.total = 0.0
        self.minimum = math.inf
        self.maximum = -math.inf

    def add(self, value: float, times: int = 1) -> None:
        """Counts a value `times` times; what is negative or not finite counts as 0."""
        if times < 1:
            return
        value = value if 0 <= value < math.inf else 0.0
        self._counts[_bucket(value)] += times
        self.count += times
        self.total += value * times
        self.minimum = min(self.minimum, value)
        self.maximum = max(self.maximum, value)

    def quantile(self, share: float) -> float | None:
        """The value that `share` of all values do not exceed; None without values.

        Args:
            share: In [0, 1]; 0.5 for the median.
        """
        rank = max(1, math.ceil(share * self.count))
        seen = 0
        for index, count in enumerate(self._counts):
            seen += count
            if seen >= rank:
                return min(max(_middle(index), self.minimum), self.maximum)
        return None

    def spread(self) -> Spread | None:
        """Mean, median, 90th percentile and maximum; None without values."""
        median, p90 = self.quantile(0.5), self.quantile(0.9)
        if median is None or p90 is None:
            return None
        return Spread(self.total / self.count, median, p90, self.maximum)


def _bucket(value: float) -> int:
    if value < _LOWEST:
        return 0
    index = 1 + math.floor(math.log(value / _LOWEST) / math.log(_GROWTH))
    return min(index, _BUCKETS - 1)


def _middle(index: int) -> float:
    """The value whose relative distance to both ends of a bucket is the same."""
    if index == 0:
        return 0.0
    lower: float = _LOWEST * _GROWTH ** (index - 1)
    return 2 * lower * _GROWTH / (1 + _GROWTH)


@dataclass(frozen=True, slots=True)
class TelemetrySummary:
    """What a generation cost; JSON-able by `dataclasses.asdict`.

    Passages that an earlier, interrupted run had made are not in it: they cost nothing now.

    Attributes:
        passages: Passages whose self-edits are done.
        kept: Self-edits kept.
        dropped: Texts that the quality filter left out (items, and edits as a whole).
        dropped_by_reason: The same by reason, most frequent first.
        cached: Candidates that came from the cache.
        generated: Candidates that were made now.
        tokens: Tokens generated now.
        retries: How often generation was tried again.
        failures: Passages for which it failed for good.
        seconds: From the start of the stage to its end or its last passage.
        tokens_per_second: `tokens` over `seconds`; None without either.
        hit_rate: Share of the candidates that came from the cache; None without candidates.
        drop_rate: Share of the candidates of which nothing was kept; None without candidates.
        passage_seconds: Time for a passage that something was generated for.
        edit_seconds: Time for a candidate: its passage's, shared equally by those made for it.
        edit_tokens: Tokens of a candidate; None where the events do not tell.
        peak_rss_bytes: Most resident memory of the process; None without a heartbeat.
        stalls: How often nothing was finished for too long.
        longest_idle_seconds: The longest time without a finished passage that was noticed.
    """

    passages: int = 0
    kept: int = 0
    dropped: int = 0
    dropped_by_reason: Mapping[str, int] = field(default_factory=dict)
    cached: int = 0
    generated: int = 0
    tokens: int = 0
    retries: int = 0
    failures: int = 0
    seconds: float = 0.0
    tokens_per_second: float | None = None
    hit_rate: float | None = None
    drop_rate: float | None = None
    passage_seconds: Spread | None = None
    edit_seconds: Spread | None = None
    edit_tokens: Spread | None = None
    peak_rss_bytes: int | None = None
    stalls: int = 0
    longest_idle_seconds: float = 0.0

    def event(self, stage: str = STAGES[0]) -> GenerationMeasured:
        """The summary as an event of the record; what has no value is left out.

        A spread becomes four figures, such as ``passage_seconds_median``.
        """
        figures: dict[str, float] = {}
        for name, value in asdict(self).items():
            if name == "dropped_by_reason" or value is None:
                continue
            if isinstance(value, dict):
                figures |= {f"{name}_{part}": number for part, number in value.items()}
            else:
                figures[name] = value
        return GenerationMeasured(stage, figures, dict(self.dropped_by_reason))


class GenerationTelemetry:
    """A subscriber of the event stream that adds up what a generation costs.

    Args:
        clock: Seconds on a monotonic clock; the record's own times where a record is read.
        stages: Names of the stages that count as generation.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, *, stages: Iterable[str] = STAGES
    ) -> None:
        self._clock = clock
        self._stages = frozenset(stages)
        self._began: float | None = None
        self._latest = 0.0
        self._totals: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._passage_seconds = LogHistogram()
        self._edit_seconds = LogHistogram()
        self._edit_tokens = LogHistogram()
        self._peak_rss = 0
        self._longest_idle = 0.0

    def __call__(self, event: Event) -> None:
        """Takes note of one event; those that say nothing of cost are passed over."""
        if isinstance(event, PassageGenerated):
            self._passage(event)
        elif isinstance(event, Dropped):
            known = event.reason in self._reasons or len(self._reasons) < MOST_REASONS
            self._reasons[event.reason if known else OTHER_REASONS] += 1
        elif isinstance(event, WorkFailed):
            self._totals["failures"] += event.boundary == "generate"
        elif isinstance(event, Heartbeat):
            self._peak_rss = max(self._peak_rss, event.peak_rss_bytes, event.rss_bytes)
            self._longest_idle = max(self._longest_idle, event.idle_seconds)
        elif isinstance(event, Stalled):
            self._totals["stalls"] += 1
            self._longest_idle = max(self._longest_idle, event.idle_seconds)
        elif isinstance(event, StageStarted) and event.stage in self._stages:
            self._latest = self._clock()
            self._began = self._latest if self._began is None else self._began
        elif isinstance(event, StageFinished) and event.stage in self._stages:
            self._latest = self._clock()

    def _passage(self, event: PassageGenerated) -> None:
        self._latest = self._clock()
        if self._began is None:  # no stage was announced: its first passage began it
            self._began = self._latest - event.seconds
        totals = self._totals
        totals["passages"] += 1
        for name in ("kept", "dropped", "cached", "generated", "tokens", "retries"):
            totals[name] += getattr(event, name)
        if event.generated or event.retries:
            self._passage_seconds.add(event.seconds)
        if event.generated:
            self._edit_seconds.add(event.seconds / event.generated, event.generated)
        for tokens in event.edit_tokens:
            self._edit_tokens.add(tokens)

    def summary(self) -> TelemetrySummary:
        """What was gathered so far."""
        totals = self._totals
        seconds = 0.0 if self._began is None else max(0.0, self._latest - self._began)
        candidates = totals["cached"] + totals["generated"]
        return TelemetrySummary(
            passages=totals["passages"],
            kept=totals["kept"],
            dropped=totals["dropped"],
            dropped_by_reason=dict(self._reasons.most_common()),
            cached=totals["cached"],
            generated=totals["generated"],
            tokens=totals["tokens"],
            retries=totals["retries"],
            failures=totals["failures"],
            seconds=seconds,
            tokens_per_second=_share(totals["tokens"], seconds) if totals["tokens"] else None,
            hit_rate=_share(totals["cached"], candidates),
            drop_rate=_share(max(0, candidates - totals["kept"]), candidates),
            passage_seconds=self._passage_seconds.spread(),
            edit_seconds=self._edit_seconds.spread(),
            edit_tokens=self._edit_tokens.spread(),
            peak_rss_bytes=self._peak_rss or None,
            stalls=totals["stalls"],
            longest_idle_seconds=self._longest_idle,
        )


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def summarise(records: Iterable[tuple[datetime, Event]]) -> TelemetrySummary:
    """The summary of a record, by the times that stand in it (`storage.event_log.read_events`)."""
    now = 0.0
    telemetry = GenerationTelemetry(lambda: now)
    for when, event in records:
        now = when.timestamp()
        telemetry(event)
    return telemetry.summary()
