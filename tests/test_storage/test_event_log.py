from __future__ import annotations

import errno
import json
import logging
import os
import random
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from aios.core.errors import StorageError
from aios.core.events import Evaluated, Event, Notice, RunFinished, StageProgress
from aios.storage.event_log import EventLog, fan_out, read_events, tail


def events(path: Path) -> list[Event]:
    return [event for _, event in read_events(path)]


def test_events_come_back_with_their_time(tmp_path: Path) -> None:
    path = tmp_path / "run" / "events.jsonl"
    sent: list[Event] = [Notice("Zoë\nsays"), Evaluated("t", 1, 0.5, 10, None, 2.5, 0.1)]
    with EventLog(path) as log:
        for event in sent:
            log.emit(event)
    found = list(read_events(path))
    assert [event for _, event in found] == sent
    now = datetime.now(timezone.utc)
    assert all(now - timedelta(minutes=1) < when <= now for when, _ in found)


def test_a_line_is_a_json_object_with_time_and_type(tmp_path: Path) -> None:
    with EventLog(tmp_path / "e") as log:
        log.emit(Notice("hello"))
    (line,) = (tmp_path / "e").read_text().splitlines()
    record = json.loads(line)
    assert list(record)[:2] == ["time", "type"]
    assert record["type"] == "Notice"
    assert record["time"].endswith("+00:00")
    assert len(record["time"]) == len("2026-01-01T00:00:00.000+00:00")


def test_an_event_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[bytes] = []
    write = os.write

    def counting(fd: int, data: memoryview) -> int:
        writes.append(bytes(data))
        return write(fd, data)

    with EventLog(tmp_path / "e") as log:
        monkeypatch.setattr(os, "write", counting)
        log.emit(Notice("x" * 100_000))
    assert len(writes) == 1
    assert writes[0].endswith(b"}\n")


def test_a_record_that_cannot_be_written_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    shown: list[Event] = []
    with EventLog(tmp_path / "e") as log:
        emit = fan_out(log.emit, shown.append)
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", refuse)
            with pytest.raises(StorageError, match="disk full"):
                emit(Notice("lost"))
        emit(Notice("kept"))
    assert shown == events(tmp_path / "e") == [Notice("kept")]


def test_a_torn_last_line_is_left_out_and_later_lines_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "e"
    with EventLog(path) as log:
        log.emit(Notice("one"))
        log.emit(Notice("torn"))
    path.write_bytes(path.read_bytes()[:-9])
    assert events(path) == [Notice("one")]
    assert caplog.records == []
    with EventLog(path) as log:
        log.emit(Notice("two"))
    assert events(path) == [Notice("one"), Notice("two")]


def test_lines_that_are_no_events_are_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "e"
    with EventLog(path) as log:
        log.emit(Notice("one"))
    with path.open("a") as handle:
        handle.write('\n[]\n{"time": "yesterday", "type": "Notice", "message": "m"}\n')
        handle.write('{"time": "2026-01-01T00:00:00+00:00", "type": "NotYetInvented"}\n')
    assert events(path) == [Notice("one")]
    assert len(caplog.records) == 3
    assert all("skipped a line" in record.message for record in caplog.records)


def test_a_missing_log_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot read"):
        list(read_events(tmp_path / "none"))
    with pytest.raises(StorageError, match="cannot open"):
        EventLog(tmp_path)


def test_tail_follows_a_log_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "e"
    sent: list[Event] = [StageProgress("s", float(i)) for i in range(20)]

    def write() -> None:
        time.sleep(0.02)
        with EventLog(path) as log:
            for event in sent:
                log.emit(event)
                time.sleep(0.001)
            log.emit(RunFinished("r", "done", 1.0))

    thread = threading.Thread(target=write)
    thread.start()
    found = [event for _, event in tail(path, poll_seconds=0.005)]
    thread.join()
    assert found == [*sent, RunFinished("r", "done", 1.0)]


def test_tail_waits_for_the_rest_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "e"
    with EventLog(path) as log:
        log.emit(Notice("one"))
        log.emit(Notice("two"))
    data = path.read_bytes()
    path.write_bytes(data[:-9])
    looks: list[int] = []

    def should_stop() -> bool:
        looks.append(1)
        if len(looks) == 2:
            path.write_bytes(data)
        return len(looks) == 4

    found = [event for _, event in tail(path, should_stop=should_stop, poll_seconds=0)]
    assert found == [Notice("one"), Notice("two")]


def test_tail_goes_on_after_a_finish_that_was_resumed(tmp_path: Path) -> None:
    path = tmp_path / "e"
    with EventLog(path) as log:
        log.emit(RunFinished("r", "interrupted", 1.0))
        log.emit(Notice("again"))
        log.emit(RunFinished("r", "done", 1.0))
    assert len(list(tail(path))) == 3


def test_a_broken_display_is_logged_and_dropped(caplog: pytest.LogCaptureFixture) -> None:
    recorded: list[Event] = []
    shown: list[Event] = []
    calls: list[Event] = []

    def broken(event: Event) -> None:
        calls.append(event)
        raise ZeroDivisionError("no screen")

    emit = fan_out(recorded.append, broken, shown.append)
    with caplog.at_level(logging.ERROR):
        emit(Notice("one"))
        emit(Notice("two"))
    assert recorded == shown == [Notice("one"), Notice("two")]
    assert calls == [Notice("one")]
    assert len(caplog.records) == 1
    assert "no screen" in caplog.text


def test_an_interrupt_in_a_display_is_not_swallowed() -> None:
    def interrupted(event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fan_out(lambda event: None, interrupted)(Notice("one"))


def test_two_processes_can_write_to_one_log(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from aios.core.events import Notice; from aios.storage.event_log import EventLog\n"
        "with EventLog(Path(sys.argv[1])) as log:\n"
        "    for i in range(200): log.emit(Notice(sys.argv[2] * 2000))\n"
    )
    path = tmp_path / "e"
    processes = [subprocess.Popen([sys.executable, "-c", code, path, c]) for c in "ab"]
    assert [process.wait(30) for process in processes] == [0, 0]
    found = events(path)
    assert sorted(e.message for e in found if isinstance(e, Notice)) == (
        ["a" * 2000] * 200 + ["b" * 2000] * 200
    )


def test_a_kill_loses_at_most_the_event_being_written(tmp_path: Path) -> None:
    code = (
        "import itertools, sys; from pathlib import Path\n"
        "from aios.core.events import StageProgress; from aios.storage.event_log import EventLog\n"
        "log = EventLog(Path(sys.argv[1]))\n"
        "for i in itertools.count():\n"
        "    log.emit(StageProgress(sys.argv[2] + 'x' * 5000, i)); print('.', end='', flush=True)\n"
    )
    path = tmp_path / "e"
    for seed in range(3):
        command = [sys.executable, "-c", code, str(path), str(seed)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            told = len(process.stdout.read(1))
            time.sleep(random.Random(seed).uniform(0.0, 0.03))
            process.kill()
            told += len(process.stdout.read())
        found = [e for e in events(path) if isinstance(e, StageProgress)]
        done = [e.done for e in found if e.stage[0] == str(seed)]
        assert done == list(range(len(done)))
        assert told <= len(done) <= told + 1  # one may be written and not told
