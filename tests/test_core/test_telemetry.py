"""What a generation cost: totals, rates and quantiles, in memory that does not grow."""

from __future__ import annotations

import json
import random
import statistics
import sys
from dataclasses import asdict
from datetime import datetime, timedelta, timezone

import pytest

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
    decode,
    encode,
)
from aios.core.telemetry import (
    MOST_REASONS,
    OTHER_REASONS,
    QUANTILE_ERROR,
    GenerationTelemetry,
    LogHistogram,
    TelemetrySummary,
    summarise,
)


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def passage(
    number: int = 0,
    *,
    kept: int = 4,
    dropped: int = 1,
    cached: int = 0,
    generated: int = 5,
    tokens: int = 100,
    seconds: float = 2.0,
    retries: int = 0,
    edit_tokens: tuple[int, ...] = (),
) -> PassageGenerated:
    return PassageGenerated(
        f"p{number}", kept, dropped, cached, generated, tokens, seconds, retries, edit_tokens
    )


def gathered(*events: Event) -> TelemetrySummary:
    telemetry = GenerationTelemetry(Clock())
    for event in events:
        telemetry(event)
    return telemetry.summary()


def test_nothing_gathered_is_all_zero_and_has_no_rates() -> None:
    summary = gathered()
    assert (summary.passages, summary.tokens, summary.seconds) == (0, 0, 0.0)
    assert summary.tokens_per_second is None
    assert summary.hit_rate is None
    assert summary.passage_seconds is None


def test_counts_are_added_up() -> None:
    summary = gathered(
        passage(1, cached=2, generated=3, retries=1), passage(2, kept=5, dropped=0, tokens=50)
    )
    assert (summary.passages, summary.kept, summary.dropped) == (2, 9, 1)
    assert (summary.cached, summary.generated, summary.tokens, summary.retries) == (2, 8, 150, 1)
    assert summary.hit_rate == pytest.approx(0.2)
    assert summary.drop_rate == pytest.approx(0.1)


def test_drops_are_counted_by_reason_the_most_frequent_first() -> None:
    drops = [Dropped("p", "rewrite", 0, reason) for reason in ("a", "b", "b")]
    assert list(gathered(*drops).dropped_by_reason.items()) == [("b", 2), ("a", 1)]


def test_reasons_without_end_are_counted_together() -> None:
    drops = [Dropped("p", "rewrite", 0, f"reason {n}") for n in range(1000)]
    reasons = gathered(*drops).dropped_by_reason
    assert len(reasons) == MOST_REASONS + 1
    assert reasons[OTHER_REASONS] == 1000 - MOST_REASONS


def test_only_failures_of_generation_count() -> None:
    summary = gathered(WorkFailed("generate", "p1", "no"), WorkFailed("train", "x", "no"))
    assert summary.failures == 1


def test_time_runs_from_the_start_of_the_stage_to_its_end() -> None:
    clock = Clock()
    telemetry = GenerationTelemetry(clock)
    telemetry(StageStarted("load", 1))
    clock.now += 100
    telemetry(StageStarted("generate", 2, "passages"))
    clock.now += 4
    telemetry(passage(tokens=80))
    assert telemetry.summary().seconds == pytest.approx(4)
    assert telemetry.summary().tokens_per_second == pytest.approx(20)
    clock.now += 1
    telemetry(StageFinished("generate", 105.0))
    clock.now += 60
    telemetry(StageFinished("something else", 60.0))
    assert telemetry.summary().seconds == pytest.approx(5)


def test_without_a_stage_the_first_passage_began_it() -> None:
    assert gathered(passage(seconds=3.0)).seconds == pytest.approx(3.0)


def test_passages_from_the_cache_do_not_pull_the_median_down() -> None:
    from_cache = [passage(n, cached=5, generated=0, tokens=0, seconds=0.001) for n in range(9)]
    spread = gathered(*from_cache, passage(9, seconds=4.0)).passage_seconds
    assert spread is not None
    assert spread.median == pytest.approx(4.0)


def test_an_edit_s_time_is_its_share_of_the_passage_s() -> None:
    spread = gathered(passage(generated=5, seconds=2.0)).edit_seconds
    assert spread is not None
    assert spread.mean == pytest.approx(0.4)


def test_tokens_of_edits_are_known_only_where_events_tell() -> None:
    assert gathered(passage()).edit_tokens is None
    spread = gathered(passage(edit_tokens=(10, 20, 90))).edit_tokens
    assert spread is not None
    assert (spread.mean, spread.maximum) == (40, 90)
    assert spread.median == pytest.approx(20, rel=QUANTILE_ERROR)


def test_memory_and_stalls_come_from_the_watchdog_s_events() -> None:
    summary = gathered(
        Heartbeat("generate", 1, 5.0, 200, 300),
        Heartbeat("generate", 2, 1.0, 250, 280),
        Stalled("generate", 130.0, "passage p1"),
        Stalled("generate", 240.0, "passage p1"),
    )
    assert summary.peak_rss_bytes == 300
    assert (summary.stalls, summary.longest_idle_seconds) == (2, 240.0)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.99])
def test_quantiles_are_within_the_stated_error(share: float) -> None:
    source = random.Random(1)
    values = sorted(source.lognormvariate(0, 2) for _ in range(5000))
    histogram = LogHistogram()
    for value in values:
        histogram.add(value)
    exact = values[max(0, -(-int(share * 100) * 5000 // 100) - 1)]
    assert histogram.quantile(share) == pytest.approx(exact, rel=QUANTILE_ERROR)
    assert histogram.total == pytest.approx(sum(values))


def test_equal_values_have_that_value_as_every_quantile() -> None:
    histogram = LogHistogram()
    histogram.add(0.37, times=3)
    spread = histogram.spread()
    assert spread is not None
    assert (spread.median, spread.p90, spread.maximum) == (0.37, 0.37, 0.37)


@pytest.mark.parametrize("value", [0.0, 1e-9, 1e12, -1.0, float("nan"), float("inf")])
def test_numbers_beyond_the_range_are_counted_too(value: float) -> None:
    histogram = LogHistogram()
    histogram.add(value)
    assert histogram.count == 1
    assert histogram.quantile(0.5) == (value if 0 < value < float("inf") else 0.0)


def test_memory_does_not_grow_with_the_number_of_passages() -> None:
    telemetry = GenerationTelemetry(Clock())

    def size() -> int:
        histogram = telemetry._passage_seconds
        return sys.getsizeof(histogram._counts) + sys.getsizeof(telemetry._totals)

    telemetry(passage(0))
    before = size()
    for number in range(20_000):
        telemetry(passage(number, seconds=0.01 * (number % 977)))
    assert size() == before
    exact = statistics.median(0.01 * (number % 977) for number in range(20_000))
    spread = telemetry.summary().passage_seconds
    assert spread is not None
    assert spread.median == pytest.approx(exact, rel=2 * QUANTILE_ERROR)


def test_the_summary_is_json_and_its_event_comes_back_from_the_record() -> None:
    summary = gathered(
        StageStarted("generate", 1), passage(edit_tokens=(7,)), Dropped("p", "rewrite", 0, "short")
    )
    assert json.loads(json.dumps(asdict(summary)))["passage_seconds"]["median"] == 2.0
    event = summary.event()
    assert event.figures["passage_seconds_p90"] == 2.0
    assert event.figures["edit_tokens_maximum"] == 7
    assert "peak_rss_bytes" not in event.figures
    assert event.dropped_by_reason == {"short": 1}
    again = decode(json.loads(json.dumps(encode(event))))
    assert isinstance(again, GenerationMeasured)
    assert again == event


def test_the_new_fields_come_back_from_the_record_and_old_records_still_read() -> None:
    event = passage(edit_tokens=(1, 2))
    record = json.loads(json.dumps(encode(event)))
    assert decode(record) == event
    del record["edit_tokens"]
    assert decode(record) == passage()


def test_a_record_is_summarised_by_its_own_times() -> None:
    start = datetime(2030, 1, 1, tzinfo=timezone.utc)
    events: list[Event] = [StageStarted("generate", 2), passage(1), passage(2)]
    times = [start + timedelta(seconds=10 * n) for n in range(3)]
    summary = summarise(zip(times, events, strict=True))
    assert summary.seconds == pytest.approx(20)
    assert summary.tokens_per_second == pytest.approx(10)
