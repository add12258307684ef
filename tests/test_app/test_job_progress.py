from __future__ import annotations

import json
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from aios.app.jobs import progress as job_progress
from aios.app.jobs.charts import loss_chart
from aios.app.jobs.progress import EVENTS, Progress, ProgressReader, Record
from aios.app.jobs.records import Job, JobRequest, JobState
from aios.app.jobs.results import result_line, trouble_of
from aios.core.events import (
    Dropped,
    Evaluated,
    Event,
    Heartbeat,
    Notice,
    RunFinished,
    RunStarted,
    StageFinished,
    StageProgress,
    StageStarted,
    WorkFailed,
    encode,
)
from aios.core.files import encode_json

START = datetime(2026, 1, 1, tzinfo=timezone.utc)


def line(event: Event, seconds: float = 0) -> bytes:
    at = (START + timedelta(seconds=seconds)).isoformat(timespec="milliseconds")
    return encode_json({"time": at, **encode(event)}) + b"\n"


def job_of(folder: Path, state: JobState = "running", **changes: Any) -> Job:
    run = folder / "run"
    request = JobRequest("ab-test", "a.jsonl", (), run, run, ("again",))
    facts: dict[str, Any] = {"started": START, "ended": None, "exit_code": None, "attempts": 1}
    return Job("one", folder / "jobs" / "one", request, state, START, **{**facts, **changes})


def write(folder: Path, *lines: bytes) -> Path:
    path = folder / "run" / EVENTS
    path.parent.mkdir(exist_ok=True)
    with open(path, "ab") as out:
        out.writelines(lines)
    return path


def seen(folder: Path, reader: ProgressReader, at: float = 10) -> Progress:
    found = reader.look(job_of(folder), now=START.timestamp() + at)
    assert found is not None
    return found


def test_without_a_record_there_is_no_progress(tmp_path: Path) -> None:
    assert ProgressReader().look(job_of(tmp_path)) is None


def test_stages_tell_pace_and_time_left(tmp_path: Path) -> None:
    reader = ProgressReader()
    write(
        tmp_path,
        line(RunStarted("run", "ab-test")),
        line(StageStarted("arms", 10, "arms")),
        line(StageProgress("arms", 2, "passage, seed 0"), 4),
        line(StageStarted("train", 100, "tokens"), 5),
        line(StageProgress("train", 50), 10),
    )
    found = seen(tmp_path, reader)
    arms, train = found.stages
    assert (arms.name, arms.done, arms.total, arms.note) == ("arms", 2, 10, "passage, seed 0")
    assert arms.rate == pytest.approx(0.5)
    assert arms.seconds_left == pytest.approx(16 - 6)
    assert train.seconds_left == pytest.approx(5)
    assert found.seconds_left == arms.seconds_left

    write(tmp_path, line(StageFinished("train", 6.0, "good"), 11))
    found = seen(tmp_path, reader, 11)
    assert [stage.name for stage in found.stages] == ["arms"]
    assert (found.finished[-1].name, found.finished[-1].seconds) == ("train", 6.0)

    write(tmp_path, line(RunFinished("run", "done", 11)))
    assert seen(tmp_path, reader).stages == ()


def test_notices_failures_memory_and_losses_are_told(tmp_path: Path) -> None:
    write(
        tmp_path,
        line(Notice("<b>be careful</b>", "warning")),
        line(WorkFailed("trial", "p1", "out of memory")),
        line(Heartbeat("x", 1, 0.0, 2**30, 2**30)),
        *(line(Evaluated("passage.0", n, 0, 100 * n, 2.0, 3.0 - n, 0.1), n) for n in range(3)),
    )
    found = seen(tmp_path, ProgressReader())
    assert found.said[0].warning
    assert found.failures == 1
    assert "out of memory" in found.last_failures[0]
    assert found.memory_bytes == 2**30
    assert [p.validation_loss for p in found.curves["passage.0"]] == [3.0, 2.0, 1.0]
    chart = loss_chart(found.curves)
    assert chart is not None
    assert "passage.0" in chart


def test_a_chart_escapes_names_and_needs_two_points() -> None:
    record = Record()
    record.lines.add(line(Evaluated("<script>", 0, 0, 0, None, 3.0, 0.1)))
    assert loss_chart(record.curves) is None
    record.lines.add(line(Evaluated("<script>", 1, 0, 9, None, 2.0, 0.1)))
    chart = loss_chart(record.curves)
    assert chart is not None
    assert "<script>" not in chart


def test_memory_is_bounded_however_long_the_record() -> None:
    record = Record()
    for n in range(5_000):
        record.lines.add(line(Evaluated(f"t{n % 40}", n, 0, n, 1.0, 1.0, 0.1)))
        record.lines.add(line(StageStarted(f"s{n}", 1, "x")))
        record.lines.add(line(Notice(f"n{n}")))
        record.lines.add(line(Evaluated("one", n, 0, n, 1.0, 1.0, 0.1)))
    assert len(record.curves) <= job_progress.MOST_TRAININGS
    assert all(len(points) <= job_progress.MOST_POINTS for points in record.curves.values())
    assert len(record.open) <= job_progress.MOST_OPEN
    assert len(record.said) == job_progress.MOST_SAID
    assert record.curves["one"][-1].tokens == 4_999


@pytest.mark.parametrize(
    "bad",
    [
        b"not json\n",
        b'{"time":"2026-01-01T00:00:00+00:00","type":"StageProgress","stage":["x"],"done":1}\n',
        b'{"time":"2026-01-01T00:00:00+00:00","type":"StageStarted","stage":"x","total":NaN}\n',
        b'{"time":"never","type":"StageStarted","stage":"x","total":1,"unit":""}\n',
        b'{"time":"2026-01-01T00:00:00+00:00","type":"Evaluated","training":"x","tokens":1e999}\n',
        b"[" * 100_000 + b"\n",
        b"\xff\xfe\n",
        b'{"type":null,"time":"x"}\n',
    ],
)
def test_a_line_that_is_no_event_is_counted_and_left_out(bad: bytes) -> None:
    record = Record()
    record.lines.add(line(StageStarted("good", 5, "x")))
    record.lines.add(bad)
    assert record.lines.broken == 1
    assert list(record.open) == ["good"]


@pytest.mark.slow
def test_a_hundred_thousand_events_are_read_once_and_fast(tmp_path: Path) -> None:
    many = [line(StageStarted("write", 100_000, "passages"))]
    for n in range(50_000):
        many.append(line(Dropped(f"p{n}", "rewrite", 0, "near_duplicate", "x" * 80), n))
        many.append(line(StageProgress("write", n), n))
    path = write(tmp_path, *many)
    reader = ProgressReader()
    began = time.perf_counter()
    first = seen(tmp_path, reader)
    took = time.perf_counter() - began
    assert first.stages[0].done == 49_999
    assert took < 15  # about one second where nothing else runs

    data = path.read_bytes()
    path.write_bytes(b"\0" * len(data))  # what was read is not read again: it may be anything
    write(tmp_path, line(StageProgress("write", 50_000), 60_000))
    began = time.perf_counter()
    second = seen(tmp_path, reader)
    assert time.perf_counter() - began < took / 5
    assert second.stages[0].done == 50_000
    assert second.broken == 0


def test_a_look_is_bounded_and_the_next_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_progress, "LINES_A_LOOK", 10)
    events = [line(StageStarted("write", 30, "x"))]
    write(tmp_path, *events, *(line(StageProgress("write", n), n) for n in range(1, 25)))
    reader = ProgressReader()
    assert seen(tmp_path, reader).behind
    assert seen(tmp_path, reader).behind
    last = seen(tmp_path, reader)
    assert not last.behind
    assert last.stages[0].done == 24


def test_a_record_that_is_replaced_is_read_anew(tmp_path: Path) -> None:
    path = write(tmp_path, line(StageStarted("old", 5, "x")))
    reader = ProgressReader()
    seen(tmp_path, reader)
    path.rename(path.with_name("old"))
    write(tmp_path, line(StageStarted("new", 5, "x")))
    assert [stage.name for stage in seen(tmp_path, reader).stages] == ["new"]


def test_the_run_of_a_generation_is_found_by_its_command_line(tmp_path: Path) -> None:
    job_path = tmp_path / "jobs" / "one"
    request = JobRequest("generate", "a", (), tmp_path / "out", None, ())
    job = Job("one", job_path, request, "running", START, START, None, None, 1)
    reader = ProgressReader()
    assert reader.look(job) is None
    for name, owner in (
        ("generate-20260101-000002-aaaa", "other"),
        ("generate-20260101-000001-bbbb", "one"),
        ("generate-20251231-000000-cccc", "one"),
    ):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        config = str(tmp_path / "jobs" / owner / "config.yaml")
        (run / "run.json").write_text(json.dumps({"argv": ["aios", "--config", config]}))
        (run / EVENTS).write_bytes(line(StageStarted(name, 5, "x")))
    found = reader.look(job)
    assert found is not None
    assert found.stages[0].name.endswith("bbbb")


def test_results_and_troubles_are_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.json").write_text('{"verdict": "Better: much."}')
    done = job_of(tmp_path, "done", exit_code=0, ended=START)
    assert result_line(done, "") == "Better: much."
    assert trouble_of(done, "") is None
    (tmp_path / "run" / "metrics.json").write_text("[")
    assert result_line(done, "") == ""

    failed = job_of(tmp_path, "failed", exit_code=2, ended=START)
    log = "note: x\nerror: the disk\n  is full\n  → free some\n  → and go on\nmore\n"
    trouble = trouble_of(failed, log)
    assert trouble is not None
    assert (trouble.what, trouble.remedy) == ("the disk is full", "free some and go on")
    silent = trouble_of(failed, "Traceback …")
    assert silent is not None
    assert "exit code 2" in silent.what
    stopped = trouble_of(job_of(tmp_path, "stopped", exit_code=1, ended=START), log)
    assert stopped is not None
    assert stopped.what == "It was asked to stop, and failed: the disk is full"
    told = trouble_of(job_of(tmp_path, "stopped", exit_code=130, ended=START), log)
    assert told is not None
    assert "what it has finished is kept" in told.what
    killed = trouble_of(job_of(tmp_path, "killed"), "")
    assert killed is not None
    assert "Resume" in killed.remedy
