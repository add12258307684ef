"""The watchdog: heartbeats, warnings, a stop that can be resumed, and a process that hangs."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from aios.app.runs.watchdog import STACKS_FILE, Watch, process_memory, watching
from aios.core.errors import StorageError
from aios.core.events import (
    Event,
    Heartbeat,
    Notice,
    PassageGenerated,
    StageProgress,
    StageStarted,
    Stalled,
    WorkFailed,
)
from aios.storage.event_log import EventLog, fan_out, read_events

LONG = 10_000.0


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def done(passage: str) -> PassageGenerated:
    return PassageGenerated(passage, 1, 0, 0, 1, 10, 0.1)


@contextmanager
def watched(
    events: list[Event], clock: Clock, *, stall: float = 10.0, heartbeat: float = LONG, **more: Any
) -> Iterator[Watch]:
    with watching(
        events.append,
        stage="generate",
        stall_seconds=stall,
        heartbeat_seconds=heartbeat,
        clock=clock,
        **more,
    ) as watch:
        yield watch


def of(kind: type[Any], events: list[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def test_events_pass_through_in_order() -> None:
    events: list[Event] = []
    with watched(events, Clock()) as watch:
        watch.emit(Notice("one"))
        watch.emit(done("p1"))
    assert [event for event in events if not isinstance(event, Heartbeat)] == [
        Notice("one"),
        done("p1"),
    ]


def test_there_is_a_heartbeat_at_the_start_one_at_the_end_and_when_it_is_due() -> None:
    events: list[Event] = []
    clock = Clock()
    with watched(events, clock, stall=LONG, heartbeat=30.0) as watch:
        watch.emit(done("p1"))
        clock.now += 29
        watch.tick()
        assert len(of(Heartbeat, events)) == 1
        clock.now += 2
        watch.tick()
    beats = of(Heartbeat, events)
    assert len(beats) == 3
    assert (beats[1].stage, beats[1].done, beats[1].idle_seconds) == ("generate", 1, 31)
    assert beats[1].peak_rss_bytes >= beats[1].rss_bytes > 10**6


def test_progress_of_the_stage_counts_what_an_earlier_run_had_done() -> None:
    events: list[Event] = []
    with watched(events, Clock()) as watch:
        watch.emit(StageProgress("another", 7))
        watch.emit(StageProgress("generate", 412))
        watch.emit(done("p413"))
        watch.beat()
    assert of(Heartbeat, events)[1].done == 412


def test_a_stall_warns_once_and_again_at_twice_the_time() -> None:
    events: list[Event] = []
    clock = Clock()
    with watched(events, clock, stall=10.0) as watch:
        watch.emit(done("p7"))
        for _ in range(45):
            clock.now += 1
            watch.tick()
    assert [stall.idle_seconds for stall in of(Stalled, events)] == [10, 20, 40]
    assert of(Stalled, events)[0] == Stalled("generate", 10, "passage p7", 1)
    notice = of(Notice, events)[0]
    assert notice.level == "warning"
    assert "passage p7" in notice.message
    assert "type the same line again" in notice.message


def test_a_long_gap_between_two_looks_warns_once() -> None:
    events: list[Event] = []
    clock = Clock()
    with watched(events, clock, stall=10.0) as watch:
        clock.now += 1000
        watch.tick()
        watch.tick()
    assert len(of(Stalled, events)) == 1


@pytest.mark.parametrize(
    "sign", [done("p"), StageProgress("x", 1), WorkFailed("generate", "p", "no"), StageStarted("x")]
)
def test_a_sign_of_work_starts_the_clock_anew(sign: Event) -> None:
    events: list[Event] = []
    clock = Clock()
    with watched(events, clock, stall=10.0) as watch:
        for _ in range(5):
            clock.now += 9
            watch.emit(sign)
            watch.tick()
        assert of(Stalled, events) == []
        clock.now += 10
        watch.tick()
    assert len(of(Stalled, events)) == 1


def test_a_notice_is_no_sign_of_work() -> None:
    events: list[Event] = []
    clock = Clock()
    with watched(events, clock, stall=10.0) as watch:
        clock.now += 9
        watch.emit(Notice("waiting"))
        clock.now += 1
        watch.tick()
    assert len(of(Stalled, events)) == 1


def test_without_a_limit_it_never_stops_the_job() -> None:
    clock = Clock()
    with watched([], clock) as watch:
        clock.now += 10**6
        watch.tick()
        assert not watch.should_stop()


def test_it_asks_the_job_to_stop_and_says_where_each_thread_stands(tmp_path: Path) -> None:
    events: list[Event] = []
    clock = Clock()
    with watched(events, clock, abort_after_seconds=60.0, dump_to=tmp_path) as watch:
        watch.emit(done("p3"))
        clock.now += 59
        watch.tick()
        assert not watch.should_stop()
        clock.now += 1
        watch.tick()
        assert watch.should_stop()
        watch.tick()
        notices = [notice for notice in of(Notice, events) if "Stopping" in notice.message]
        assert len(notices) == 1
        assert STACKS_FILE in notices[0].message
    assert "test_watchdog" in (tmp_path / STACKS_FILE).read_text(encoding="utf-8")


def test_no_empty_file_of_stacks_is_left(tmp_path: Path) -> None:
    with watched([], Clock(), abort_after_seconds=60.0, dump_to=tmp_path) as watch:
        watch.emit(done("p1"))
    assert list(tmp_path.iterdir()) == []


def test_a_run_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageError, match="stacks"),
        watched([], Clock(), abort_after_seconds=60.0, dump_to=tmp_path / "gone"),
    ):
        pass


def test_the_job_s_own_wish_to_stop_is_passed_on() -> None:
    with watched([], Clock(), should_stop=lambda: True) as watch:
        assert watch.should_stop()


class FullDisk:
    """A record on which heartbeats fail once it is full."""

    def __init__(self) -> None:
        self.full = False
        self.failed = threading.Event()

    def __call__(self, event: Event) -> None:
        if self.full and isinstance(event, Heartbeat):
            self.failed.set()
            raise StorageError("disk full")


def fast(record: FullDisk) -> Any:
    return watching(record, stage="generate", stall_seconds=LONG, heartbeat_seconds=0.05)


def test_an_error_of_the_record_in_the_thread_reaches_the_job() -> None:
    record = FullDisk()
    with fast(record) as watch:
        record.full = True
        assert record.failed.wait(10)
        deadline = time.monotonic() + 10
        with pytest.raises(StorageError, match="disk full"):
            while time.monotonic() < deadline:
                watch.should_stop()
                time.sleep(0.005)
        record.full = False


def test_an_error_of_the_record_in_the_thread_is_raised_at_the_end() -> None:
    record = FullDisk()
    with pytest.raises(StorageError, match="disk full"), fast(record):
        record.full = True
        assert record.failed.wait(10)


def test_the_job_s_own_error_is_the_one_that_is_seen() -> None:
    record = FullDisk()
    with pytest.raises(ZeroDivisionError), fast(record):
        record.full = True
        assert record.failed.wait(10)
        raise ZeroDivisionError


def test_the_thread_ends_with_the_block() -> None:
    before = threading.active_count()
    with watched([], Clock()):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_events_of_several_threads_are_whole_and_in_one_order(tmp_path: Path) -> None:
    shown: list[Event] = []
    with EventLog(tmp_path / "events.jsonl") as log:
        emit = fan_out(log.emit, shown.append)

        def work(number: int) -> None:
            for item in range(200):
                emit(Notice(f"{number}:{item}"))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    recorded = [event for _, event in read_events(tmp_path / "events.jsonl")]
    assert len(recorded) == 800
    assert recorded == shown


def test_a_display_that_emits_does_not_lock_itself_out() -> None:
    recorded: list[Event] = []

    def display(event: Event) -> None:
        if event == Notice("one"):
            emit(Notice("two"))

    emit = fan_out(recorded.append, display)
    emit(Notice("one"))
    assert recorded == [Notice("one"), Notice("two")]


HANGS = """
import sys, time
from pathlib import Path
from aios.app.runs.watchdog import watching

def a_call_that_never_comes_back():
    time.sleep(60)

with watching(
    lambda event: None, stage="generate", stall_seconds=0.1, heartbeat_seconds=9,
    abort_after_seconds=0.2, grace_seconds=0.3, dump_to=Path(sys.argv[1]),
):
    a_call_that_never_comes_back()
"""


def test_a_process_that_hangs_is_ended_and_its_stack_is_kept(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", HANGS, str(tmp_path)], capture_output=True, timeout=30, check=False
    )
    assert result.returncode == 1
    assert "a_call_that_never_comes_back" in (tmp_path / STACKS_FILE).read_text(encoding="utf-8")


def test_memory_is_that_of_this_process() -> None:
    rss, peak = process_memory()
    assert 10**6 < rss <= peak * 1.01
