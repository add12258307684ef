"""ReST-EM runs seen from outside: their state, pace, candidates, and the request to stop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import pytest

from aios.app.restem.folders import (
    clear_stop,
    find_run,
    is_held,
    request_stop,
    running_runs,
    stop_requested,
)
from aios.app.restem.records import read_rewards
from aios.app.restem.status import RunFollower, RunStatus, run_status
from aios.app.runs.checked_values import fits
from aios.app.runs.growing_lines import MAX_LINE_BYTES, NewLines
from aios.core.config.schemas import Config, PathsConfig
from aios.core.errors import StorageError, UsageError
from aios.core.events import (
    CandidateTried,
    Dropped,
    Event,
    Heartbeat,
    Notice,
    RoundFinished,
    RunFinished,
    RunStarted,
    StageFinished,
    StageProgress,
    StageStarted,
    WorkFailed,
)
from aios.core.restem import RoundReport, TriedPassage
from aios.storage import runs
from aios.storage.runs import RunDirectory
from tests.test_app.restem_run_files import (
    T0,
    candidate,
    first_round,
    hold_new,
    line,
    make_run,
    passage_of,
    report,
    set_record,
    two_rounds,
    untrained,
    write_candidates,
    write_events,
    write_lines,
)

pytestmark = pytest.mark.usefixtures("quick_disk")

HOLDER = """
import fcntl, sys, time
handle = open(sys.argv[1], "w")
fcntl.flock(handle, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _nothing_is_asked_of_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "git_revision", lambda folder: None)
    monkeypatch.setattr(runs, "package_versions", dict)


@pytest.fixture
def held(tmp_path: Path) -> Iterator[RunDirectory]:
    """A run that is going on, in the middle of the trials of round 1."""
    with hold_new(tmp_path, "r1") as directory:
        write_events(directory.path, first_round())
        set_record(directory.path, [untrained()])
        yield directory


def status_at(path: Path, seconds: float) -> RunStatus:
    return RunFollower(path).status(T0 + seconds)


# ------------------------------------------------------------ status


def test_a_running_round_is_told_with_its_trials_rates_memory_and_improvements(
    held: RunDirectory,
) -> None:
    status = status_at(held.path, 121)
    assert (status.state, status.live, status.id) == ("running", True, "r1")
    assert (status.round, status.rounds, status.stage) == (1, 2, "try")
    assert (status.done, status.total, status.unit) == (2, 5, "passages")
    assert status.note == "37 trials"
    assert status.rate == pytest.approx(2.0)  # 2 passages in the minute since the stage began
    assert status.trial_rate == pytest.approx(10.0)
    assert (status.candidates, status.trials_done) == (6, 10)
    assert status.trials_left == 15 + 4  # 3 passages at 5 trials, 2 held out at 2
    assert status.eta_stage == pytest.approx(90.0)
    assert status.eta_run is None  # no round has told yet what one takes
    assert (status.rss_bytes, status.peak_rss_bytes) == (10**9, 2 * 10**9)
    assert status.improvements == (0.05, -0.02, 0.1, 0.0, 0.02)
    assert status.started is not None
    assert status.updated is not None
    assert (status.updated - status.started).total_seconds() == 121
    assert [one.number for one in status.record.rounds] == [0]


def test_time_that_passes_without_an_event_is_taken_off_the_time_left(held: RunDirectory) -> None:
    assert status_at(held.path, 131).eta_stage == pytest.approx(80.0)
    assert status_at(held.path, 5000).eta_stage == 0.0


def test_the_time_left_of_the_run_is_told_by_earlier_rounds(held: RunDirectory) -> None:
    set_record(held.path, [untrained(), report(1)])
    write_events(
        held.path,
        [
            (200, RoundFinished(1, "", asdict(report(1)))),
            (200, StageStarted("round 2: write", 10, "passages")),
            (220, StageProgress("round 2: write", 5)),
        ],
    )
    status = status_at(held.path, 220)
    assert (status.round, status.candidates, status.improvements) == (2, 0, ())
    assert status.eta_stage == pytest.approx(20.0)
    assert status.eta_run == pytest.approx(20 + 400 + 60 + 40)
    write_events(
        held.path,
        [
            (240, StageFinished("round 2: write", 40)),
            (240, StageStarted("round 2: try", 10, "passages")),
            (340, StageFinished("round 2: try", 100)),
            (340, StageStarted("round 2: fit", 1, "trainings")),
        ],
    )
    assert status_at(held.path, 350).eta_run == pytest.approx(60 - 10 + 40)
    write_events(
        held.path,
        [
            (390, StageFinished("round 2: fit", 50)),
        ],
    )
    assert status_at(held.path, 394).eta_run == pytest.approx(40)  # they are being written
    write_events(
        held.path,
        [
            (395, StageStarted("round 2: held-out", 2, "passages")),
            (405, StageProgress("round 2: held-out", 1)),
        ],
    )
    assert status_at(held.path, 405).eta_run == pytest.approx(10)


def test_a_round_ahead_counts_as_a_whole(held: RunDirectory) -> None:
    (held.path / "config.yaml").write_text("seal: {restem_iterations: 4}\n")
    set_record(held.path, [untrained(), report(1), report(2, seconds={"try": 200.0})])
    write_events(held.path, [(200, RoundFinished(2, "", {}))])
    status = status_at(held.path, 200)
    assert status.rounds == 4
    assert status.eta_run == pytest.approx(2 * (50 + 300 + 30 + 20))
    set_record(held.path, [untrained(), report(1)], stopped="the held-out passages gained nothing")
    assert status_at(held.path, 200).eta_run is None


def test_a_training_shows_its_own_progress(held: RunDirectory) -> None:
    write_events(
        held.path,
        [
            (200, StageFinished("round 1: try", 140)),
            (200, StageStarted("round 1: fit", 1, "trainings")),
            (201, StageStarted("train generator", 50, "steps")),
            (211, StageProgress("train generator", 10)),
        ],
    )
    status = status_at(held.path, 211)
    assert (status.stage, status.detail) == ("fit", "train generator")
    assert (status.done, status.total, status.unit) == (10, 50, "steps")
    assert status.eta_stage == pytest.approx(40.0)
    assert status.trials_left == 4
    assert status.trial_rate is None


def test_what_a_resumed_stage_had_before_is_no_speed(held: RunDirectory) -> None:
    write_events(
        held.path,
        [
            (500, RunStarted("r1", "restem", resumed=True)),
            (600, StageStarted("round 1: try", 5, "passages")),
            (600.1, CandidateTried(1, False, "p1", "rewrite", 0, 2, 0.05)),
            (600.2, StageProgress("round 1: try", 3)),
            (660, CandidateTried(1, False, "p4", "rewrite", 0, 3, 0.2)),
            (660.2, StageProgress("round 1: try", 4)),
        ],
    )
    status = status_at(held.path, 660.2)
    assert status.rate == pytest.approx(1.0)
    assert (status.candidates, status.trials_done) == (7, 13)  # p1's is not counted twice
    assert status.rss_bytes is None  # that was another process


def test_a_rate_is_over_recent_events(held: RunDirectory) -> None:
    write_events(held.path, [(1000, StageStarted("round 1: try", 10_000, "passages"))])
    slow = [(1000 + 10.0 * n, StageProgress("round 1: try", n)) for n in range(1, 500)]
    fast = [(6000 + 1.0 * n, StageProgress("round 1: try", 500 + n)) for n in range(1, 500)]
    write_events(held.path, [*slow, *fast])
    assert status_at(held.path, 6499).rate == pytest.approx(60.0)


def test_a_burst_of_events_does_not_hide_the_rate(held: RunDirectory) -> None:
    write_events(held.path, [(1000, StageStarted("round 1: try", 900, "passages"))])
    for batch in range(2):
        at = 1100.0 + 100 * batch
        write_events(
            held.path,
            [
                *(
                    (at - 50, StageProgress("round 1: try", 300 * batch, f"{n}"))
                    for n in range(400)
                ),
                *(
                    (at + n / 1000, CandidateTried(1, False, f"{batch} {n}", "s", 0, 2, 0.1))
                    for n in range(300)
                ),
                *(
                    (at + n / 1000, StageProgress("round 1: try", 300 * batch + n + 1))
                    for n in range(300)
                ),
            ],
        )
    status = status_at(held.path, 1201)
    assert status.rate == pytest.approx(180, rel=0.02)
    assert status.trial_rate == pytest.approx(360, rel=0.02)


def test_failures_are_counted_and_the_last_is_shown(held: RunDirectory) -> None:
    write_events(
        held.path,
        [(130, WorkFailed("train", f"p{n}", "loss is not finite")) for n in range(3)],
    )
    status = status_at(held.path, 130)
    assert status.failures == 3
    assert status.last_failure == "train p2: loss is not finite"


def test_before_its_first_event_a_run_is_running_with_nothing_known(tmp_path: Path) -> None:
    with hold_new(tmp_path, "r1") as directory:
        status = run_status(directory.path)
    assert (status.state, status.round, status.started) == ("running", None, None)
    assert (status.done, status.trials_left, status.record.rounds) == (0, None, ())


def test_an_ended_run_tells_how_it_ended(held: RunDirectory) -> None:
    for said, shown in (("done", "done"), ("interrupted", "interrupted"), ("failed", "failed")):
        write_events(held.path, [(time.time() - T0, RunFinished("r1", said, 5.0, "two rounds"))])
        status = run_status(held.path)
        assert (status.state, status.summary, status.live) == (shown, "two rounds", False)
        assert status.rate is None
        assert status.eta_stage is None


def test_an_ended_run_that_is_taken_up_again_is_running(held: RunDirectory) -> None:
    write_events(held.path, [(130, RunFinished("r1", "interrupted", 130.0))])
    held.close()
    assert run_status(held.path).state == "interrupted"
    with RunDirectory.open(held.path):  # it has not written an event yet
        assert run_status(held.path).state == "running"


def test_a_killed_run_is_stale(held: RunDirectory) -> None:
    held.close()
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(held.path / ".lock")], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert run_status(held.path).state == "running"
    finally:
        process.kill()
        process.communicate()
    status = run_status(held.path)
    assert (status.state, status.live, status.rate, status.eta_run) == ("stale", False, None, None)
    assert status.trials_left == 19  # what a resume has to do


def test_looking_at_a_run_neither_takes_its_lock_nor_writes(held: RunDirectory) -> None:
    held.close()
    before = {p: p.stat().st_mtime_ns for p in held.path.rglob("*")}
    follower = RunFollower(held.path)
    follower.status()
    with RunDirectory.open(held.path):
        follower.status()
    (held.path / ".lock").touch()
    after = {p: p.stat().st_mtime_ns for p in held.path.rglob("*") if p.name != ".lock"}
    assert after.items() <= before.items()


def test_the_line_to_go_on_with_is_the_one_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "seal restem optimize --dataset".split()
    monkeypatch.setattr(
        sys, "argv", ["x/aios", *line, "my file.json", "--run-dir", "x", "--resume=y", "--json"]
    )
    path = make_run(tmp_path, "r1")
    assert run_status(path).resume == (
        f"aios seal restem optimize --dataset 'my file.json' --json --resume {path}"
    )
    monkeypatch.setattr(sys, "argv", ["pytest"])
    path = make_run(tmp_path, "r2")
    start = "aios seal restem optimize --dataset"
    assert run_status(path).resume == f"{start} FILE --resume {path}"
    set_record(path, [untrained()])
    assert run_status(path).resume == f"{start} 'my data.json' --resume {path}"


# ------------------------------------------------------------ the record


def test_a_last_line_that_is_cut_off_waits_for_its_end(held: RunDirectory) -> None:
    follower = RunFollower(held.path)
    whole = line(125, StageProgress("round 1: try", 3))
    with open(held.path / "events.jsonl", "ab") as handle:
        handle.write(whole[:40])
    assert follower.status().done == 2
    with open(held.path / "events.jsonl", "ab") as handle:
        handle.write(whole[40:])
    status = follower.status()
    assert (status.done, status.broken_lines) == (3, 0)


def test_a_line_torn_by_a_kill_costs_only_itself(held: RunDirectory) -> None:
    with open(held.path / "events.jsonl", "ab") as handle:
        handle.write(line(125, StageProgress("round 1: try", 3))[:90])
    held.emit(StageProgress("round 1: try", 4))
    status = run_status(held.path)
    assert (status.done, status.broken_lines) == (4, 1)


@pytest.mark.parametrize(
    "bad",
    [
        b"\xff\xfe\n",
        b"[1, 2]\n",
        b'"text"\n',
        b"[" * 100_000 + b"\n",
        b'{"time":"yesterday","type":"RunStarted","run":"r","kind":"restem"}\n',
        b'{"time":"0001-01-01T00:00:00+14:00","type":"RunFinished","status":"done","summary":""}\n',
        b'{"time":"2025-10-09T08:53:20+00:00","type":"StageProgress","stage":[],"done":1}\n',
        b'{"time":"2025-10-09T08:53:20+00:00","type":"StageProgress","stage":"round 1: try",'
        b'"done":NaN}\n',
        b'{"time":"2025-10-09T08:53:20+00:00","type":"Heartbeat","rss_bytes":"x"}\n',
        b'{"time":"2025-10-09T08:53:20+00:00","type":"CandidateTried","round":true,"held_out":0,'
        b'"passage_id":"p","strategy":"s","index":0,"trials":1,"improvement":1}\n',
        b'{"time":"2025-10-09T08:53:20+00:00","type":"StageStarted","stage":"x","unit":"",'
        b'"total":' + b"9" * 400 + b"}\n",
    ],
    ids=range(11),
)
def test_a_line_that_is_no_event_is_counted_and_left_out(held: RunDirectory, bad: bytes) -> None:
    with open(held.path / "events.jsonl", "ab") as handle:
        handle.write(bad)
    write_events(held.path, [(125, StageProgress("round 1: try", 3))])
    status = run_status(held.path)
    assert (status.state, status.done, status.broken_lines) == ("running", 3, 1)


def test_a_line_that_never_ends_is_passed_over_with_bounded_memory(held: RunDirectory) -> None:
    follower = RunFollower(held.path)
    with open(held.path / "events.jsonl", "ab") as handle:
        handle.write(b"x" * (3 * MAX_LINE_BYTES))
    assert follower.status().broken_lines == 1
    with open(held.path / "events.jsonl", "ab") as handle:
        handle.write(b"x" * MAX_LINE_BYTES + b"\n")
    write_events(held.path, [(125, StageProgress("round 1: try", 3))])
    status = follower.status()
    assert (status.done, status.broken_lines) == (3, 1)


def test_a_record_that_is_replaced_is_read_anew(held: RunDirectory) -> None:
    follower = RunFollower(held.path)
    assert follower.status().candidates == 6
    (held.path / "events.jsonl").unlink()
    write_events(held.path, [(0, RunStarted("r1", "restem"))])
    assert follower.status().candidates == 0


def test_each_line_is_given_once_while_another_thread_writes(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    count, chunk = 2000, 7

    def write() -> None:
        data = b"".join(b"%06d\n" % n for n in range(count))
        with open(file, "ab", buffering=0) as handle:
            for start in range(0, len(data), chunk * 13):
                handle.write(data[start : start + chunk * 13 - 1])
                handle.write(data[start + chunk * 13 - 1 : start + chunk * 13])

    writer = threading.Thread(target=write)
    lines, seen = NewLines(file), []
    writer.start()
    while writer.is_alive():
        seen += list(lines)
    writer.join()
    seen += list(lines)
    assert seen == [b"%06d" % n for n in range(count)]


@pytest.mark.slow
def test_a_long_record_is_read_in_bounded_memory(held: RunDirectory) -> None:
    kinds: list[Event] = [
        StageProgress("round 1: try", 2.0, "loss 2.91"),
        Dropped("p1", "rewrite", 1, "too_short", "4 tokens < 20"),
        Heartbeat("try", 3, 1.5, 10**9, 2 * 10**9),
        StageProgress("train", 10.0, "loss 2.91"),
        Notice("hello"),
    ]
    block = b"".join(line(130 + n, event) for n, event in enumerate(kinds))
    with open(held.path / "events.jsonl", "ab") as handle:
        handle.write(block * 20_000)
    size = (held.path / "events.jsonl").stat().st_size
    tracemalloc.start()
    status = run_status(held.path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < size / 2
    assert (status.done, status.rss_bytes, status.broken_lines) == (2, 10**9, 0)


def test_a_follower_reads_only_what_is_new(held: RunDirectory) -> None:
    follower = RunFollower(held.path)
    follower.status()
    write_events(held.path, [(125, StageProgress("round 1: try", 4))])
    size = (held.path / "events.jsonl").stat().st_size
    with open(held.path / "events.jsonl", "r+b") as handle:
        handle.write(b"#" * 100)  # what was read before is not looked at again
    assert (held.path / "events.jsonl").stat().st_size == size
    status = follower.status()
    assert (status.done, status.broken_lines) == (4, 0)


def test_the_state_is_read_again_when_it_changes(held: RunDirectory) -> None:
    follower = RunFollower(held.path)
    assert len(follower.status().record.rounds) == 1
    set_record(held.path, [untrained(), report(1)], best=1)
    assert follower.status().record.best == 1


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "[]",
        "{}",
        '{"rounds": [1], "shares": {}, "best": 0, "stopped": ""}',
        '{"rounds": [], "shares": {"a": "b"}, "best": 0, "stopped": ""}',
    ],
)
def test_a_corrupt_state_is_an_error_that_names_the_file(held: RunDirectory, text: str) -> None:
    (held.path / "state.json").write_text(text)
    with pytest.raises(StorageError, match=r"state\.json"):
        run_status(held.path)


def test_a_report_with_a_value_of_a_wrong_type_is_refused(held: RunDirectory) -> None:
    set_record(held.path, [untrained(), report(1, improvement="0.03")])
    with pytest.raises(StorageError, match="wrong type"):
        run_status(held.path)


def test_types_are_checked_all_through() -> None:
    good = report(1)
    assert fits(good, RoundReport)
    for changes in (
        {"number": True},
        {"kept": 1.5},
        {"improvement": float("nan")},
        {"improvements": (0.1, "0.2")},
        {"seconds": {"try": None}},
        {"arms": {"rewrite": 3}},
        {"trials": 10**400},
    ):
        assert not fits(replace(good, **cast("dict[str, Any]", changes)), RoundReport), changes
    passage = passage_of("p1", candidate("p1", 0, (0.1,)), candidate("p1", 1, ()))
    assert fits(passage, TriedPassage)
    assert not fits(replace(passage, candidates=cast("Any", (object(),))), TriedPassage)


# ------------------------------------------------------------ finding runs


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(paths=PathsConfig(artifacts=tmp_path))


def test_without_a_name_the_newest_restem_run_is_found(config: Config, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    for name in ("b", "a", "c"):
        path = make_run(root, name)
        info = json.loads((path / "run.json").read_text())
        info["created"] = f"2025-01-0{'bca'.index(name) + 1}T00:00:00+00:00"
        (path / "run.json").write_text(json.dumps(info))
    with hold_new(root, "z", kind="generate"):
        pass
    (root / "broken").mkdir()
    (root / "broken" / "run.json").write_text("{")
    assert find_run(config, None).name == "a"


def test_a_run_is_found_by_its_id_and_by_its_path(config: Config, tmp_path: Path) -> None:
    inside = make_run(tmp_path / "runs", "r1")
    outside = make_run(tmp_path / "elsewhere", "r2")
    assert find_run(config, "r1") == inside
    assert find_run(config, str(outside)) == outside


def test_an_unknown_run_is_refused_with_those_there_are(config: Config, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no ReST-EM run in"):
        find_run(config, None)
    with pytest.raises(UsageError, match="There is no ReST-EM run"):
        find_run(config, "r9")
    for n in range(7):
        make_run(tmp_path / "runs", f"r{n}")
    with pytest.raises(UsageError, match=r"no run 'r9'") as caught:
        find_run(config, "r9")
    assert caught.value.remedy.count("r") > 5
    assert caught.value.remedy.endswith(", …")
    for text in ("../runs/x", "~nobody/x", "a\0b", "a\nb", "x" * 5000):
        with pytest.raises(UsageError):
            find_run(config, text)


def test_a_run_of_another_kind_is_refused(config: Config, tmp_path: Path) -> None:
    make_run(tmp_path / "runs", "good")
    with hold_new(tmp_path / "runs", "other", kind="generate"):
        pass
    with pytest.raises(UsageError, match="its kind is generate") as caught:
        find_run(config, "other")
    assert "good" in caught.value.remedy
    with pytest.raises(UsageError, match="its kind is generate"):
        run_status(tmp_path / "runs" / "other")


def test_a_folder_that_is_no_run_is_refused(config: Config, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no run at"):
        find_run(config, str(tmp_path / "empty"))


def test_running_runs_are_those_that_a_process_works_on(config: Config, tmp_path: Path) -> None:
    make_run(tmp_path / "runs", "r1")
    assert running_runs(config) == []
    with hold_new(tmp_path / "runs", "r2") as directory:
        assert running_runs(config) == [directory.path]


# ------------------------------------------------------------ stopping


def test_a_running_run_is_asked_to_stop_once_and_the_request_can_be_cleared(
    held: RunDirectory,
) -> None:
    assert not stop_requested(held.path)
    assert request_stop(held.path)
    assert request_stop(held.path)
    assert stop_requested(held.path)
    assert run_status(held.path).state == "stopping"
    clear_stop(held.path)
    clear_stop(held.path)
    assert not stop_requested(held.path)
    assert run_status(held.path).state == "running"
    assert not [p for p in os.listdir(held.path) if p.endswith(".tmp")]


def test_a_run_that_nobody_works_on_cannot_be_asked(held: RunDirectory) -> None:
    held.close()
    assert not is_held(held.path)
    assert not request_stop(held.path)
    assert not (held.path / "stop").exists()


# ------------------------------------------------------------ candidates


def test_candidates_are_read_by_round(tmp_path: Path) -> None:
    path = make_run(tmp_path, "r1")
    two_rounds(path)
    zero, one = read_rewards(path)
    assert (zero.number, zero.tried, len(zero.held_out)) == (0, (), 1)
    assert [p.passage_id for p in one.tried] == ["p1", "p2"]
    assert [len(p.candidates) for p in one.tried] == [2, 2]
    first, failed = one.tried[0].candidates
    assert first.improvement == pytest.approx(0.2)
    assert (first.kept, first.rewarded, failed.reward) == (True, True, None)
    assert one.held_out[0].candidates[0].edit.items == ("Edit 0 of h1.", "More.")


def test_rounds_that_are_empty_or_not_there_yet_are_no_error(tmp_path: Path) -> None:
    path = make_run(tmp_path, "r1")
    assert read_rewards(path) == ()
    (path / "rounds" / "1").mkdir(parents=True)
    (path / "rounds" / "x").mkdir()
    (path / "rounds" / "007").mkdir()
    assert read_rewards(path) == ()
    write_candidates(path, 1, [])
    (only,) = read_rewards(path)
    assert (only.number, only.tried, only.held_out, only.broken) == (1, (), (), 0)


def test_lines_that_are_no_candidates_are_counted_and_left_out(tmp_path: Path) -> None:
    path = make_run(tmp_path, "r1")
    good = passage_of("p1", candidate("p1", 0, (0.1,)))
    file = write_candidates(path, 1, [good])
    record = json.loads(file.read_text())
    bad = [
        {},
        {**record, "trials": "7"},
        {**record, "candidates": 3},
        {**record, "candidates": [{**record["candidates"][0], "improvements": ["0.1"]}]},
        {**record, "candidates": [{**record["candidates"][0], "edit": None}]},
        {**record, "more": 1},
    ]
    write_lines(file, [*bad, record])
    with open(file, "ab") as handle:
        handle.write(b'{"passage_id": "p2", "cand')
    (found,) = read_rewards(path)
    assert (found.tried, found.broken) == ((good,), len(bad) + 1)


def test_a_passage_that_stands_twice_counts_as_it_stood_last(tmp_path: Path) -> None:
    path = make_run(tmp_path, "r1")
    old = passage_of("p1", candidate("p1", 0, (0.1,)))
    new = passage_of("p1", candidate("p1", 0, (0.3,)))
    write_candidates(path, 1, [old, new])
    assert read_rewards(path)[0].tried == (new,)


def test_files_that_lead_out_are_too_large_or_not_regular_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_run(tmp_path, "r1")
    two_rounds(path)
    monkeypatch.setattr("aios.app.restem.records.MAX_BYTES", 100)
    with pytest.raises(StorageError, match="larger than"):
        read_rewards(path)
    monkeypatch.undo()
    file = path / "rounds" / "1" / "candidates.jsonl"
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(StorageError, match="not a regular file"):
        read_rewards(path)
    file.unlink()
    file.symlink_to(tmp_path / "secret")
    with pytest.raises(UsageError, match="leads out"):
        read_rewards(path)


def test_a_record_that_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    path = make_run(tmp_path, "r1")
    os.mkfifo(path / "events.jsonl")
    with pytest.raises(StorageError, match="not a regular file"):
        run_status(path)
