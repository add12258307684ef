from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from aios.app.jobs.records import Job, JobRequest, JobState
from aios.app.runs import listing as run_listing
from aios.app.runs.listing import find_run, headline, list_runs, read_entry, search_runs
from aios.core.errors import UsageError
from aios.core.events import RunFinished, RunStarted
from aios.storage.runs import RunDirectory
from tests.test_app.restem_run_files import make_run, write_events

COMPARISON = {
    "metric": "validation_loss",
    "scale": "relative",
    "relative_change": -0.162,
    "change": -0.5,
    "ci95": [-0.177, -0.095],
    "verdict": "better",
    "n": 9,
}


def finish(run: Path, status: str = "done", summary: str = "", **document: Any) -> None:
    write_events(run, [(0, RunStarted("r", "k")), (9, RunFinished("r", status, 9, summary))])
    if document:
        (run / "metrics.json").write_text(json.dumps(document, indent=2), encoding="utf-8")


def job_of(run: Path, state: JobState, job_id: str = "job-1") -> Job:
    request = JobRequest("ab-test", "t", (), run, run, (), Path("/data/my passages.jsonl"))
    now = datetime.now(timezone.utc)
    return Job(job_id, run.parent, request, state, now, None, None, None, 1)


def entry(run: Path) -> run_listing.RunEntry:
    found = read_entry(run)
    assert found is not None
    return found


def test_without_artifacts_there_are_no_runs(tmp_path: Path) -> None:
    assert list_runs(tmp_path / "nowhere") == []


def test_runs_of_both_folders_are_listed_newest_first(tmp_path: Path) -> None:
    old, new = make_run(tmp_path / "runs", "old"), make_run(tmp_path / "seal_experiments", "new")
    info = json.loads((old / "run.json").read_text())
    (old / "run.json").write_text(json.dumps({**info, "created": "2020-01-01T00:00:00+00:00"}))
    (tmp_path / "runs" / "no-run").mkdir()
    (tmp_path / "runs" / ".hidden").mkdir()
    (tmp_path / "runs" / "file").write_text("")
    (tmp_path / "runs" / "link").symlink_to(new)
    assert [run.path for run in list_runs(tmp_path)] == [new, old]
    assert list_runs(tmp_path, kinds=("ab-test",)) == []


@pytest.mark.parametrize(
    ("status", "state"), [("done", "done"), ("failed", "failed"), ("interrupted", "interrupted")]
)
def test_a_run_that_ended_tells_how(tmp_path: Path, status: str, state: str) -> None:
    run = make_run(tmp_path / "runs", "a")
    finish(run, status, "the disk is full")
    assert (entry(run).state, entry(run).ended) == (state, "the disk is full")


def test_a_run_is_running_as_long_as_its_lock_is_held(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "a")
    finish(run, "interrupted")
    with RunDirectory.open(run):
        assert entry(run).state == "running"
        (run / "stop").write_text("")
        assert entry(run).state == "stopping"
    assert entry(run).state == "interrupted"
    write_events(run, [(20, RunStarted("r", "k", True))])
    assert (entry(run).state, "process is gone" in entry(run).ended) == ("interrupted", True)


def test_only_the_ends_of_large_numbers_are_read(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "a")
    finish(
        run,
        schema_version=1,
        verdict="Better: by much.",
        comparison=COMPARISON,
        arms={"x": "y" * 500_000, "text": '\n  "info": {"input": "wrong"}'},
        info={"input": "folder/my passages.jsonl"},
    )
    found = entry(run)
    assert (found.sentence, found.file, found.finished) == (
        "Better: by much.", "my passages.jsonl", True,
    )  # fmt: skip
    assert found.headline is not None
    assert found.headline.change == "−16.2\N{NO-BREAK SPACE}%"
    assert found.headline.interval == "−17.7 to −9.5\N{NO-BREAK SPACE}%"
    assert (found.headline.verdict, found.headline.tone) == ("better", "good")


def test_the_input_is_known_from_the_command_line_too(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "a")
    info = json.loads((run / "run.json").read_text())
    for argv in (["aios", "--dataset", "d/x.json"], ["aios", "--input=d\\x.json"]):
        (run / "run.json").write_text(json.dumps({**info, "argv": argv}))
        os.utime(run / "run.json", ns=(0, len(argv)))
        assert entry(run).file == "x.json"


@pytest.mark.parametrize(
    "content", [b"", b"[", b'{"verdict": 3, "comparison": [1]}', b'{"verdict"', b"\xff\x00", b"{}"]
)
def test_numbers_that_are_none_break_nothing(tmp_path: Path, content: bytes) -> None:
    run = make_run(tmp_path / "runs", "a")
    (run / "metrics.json").write_bytes(content)
    (run / "events.jsonl").write_bytes(b'{"type":"RunFinished"\n"RunStarted"\n[]\n' + content)
    assert (entry(run).sentence, entry(run).headline) == ("", None)


@pytest.mark.parametrize(
    "broken",
    [None, [], {"verdict": None}, {"verdict": "better", "ci95": ["a", "b"], "change": "x"}],
)
def test_a_comparison_of_another_form_has_no_numbers(broken: object) -> None:
    found = headline(broken)
    assert found is None or (found.change, found.interval) == ("", "")


def test_changes_of_rewards_are_in_their_unit() -> None:
    gain = {**COMPARISON, "metric": "improvement", "scale": "absolute", "change": 0.25}
    found = headline({**gain, "ci95": None}, "loss")
    assert found is not None
    assert (found.change, found.interval) == ("+0.250\N{NO-BREAK SPACE}nats", "")


def test_a_damaged_run_is_listed_with_what_is_wrong(tmp_path: Path) -> None:
    run = make_run(tmp_path / "seal_experiments", "a")
    (run / "run.json").write_text("{")
    (found,) = list_runs(tmp_path)
    assert (found.kind, found.state) == ("ab-test", "failed")
    assert "corrupt" in found.problem


def test_what_stands_in_the_way_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "a")
    os.mkfifo(run / "metrics.json")
    (run / "events.jsonl").mkdir()
    assert entry(run).sentence == ""


@pytest.mark.parametrize(
    ("job_state", "state"),
    [("waiting", "waiting"), ("running", "running"), ("failed", "failed"), ("killed",) * 2],
)
def test_a_job_whose_run_has_not_begun_is_listed(
    tmp_path: Path, job_state: JobState, state: str
) -> None:
    job = job_of(tmp_path / "elsewhere" / "job-1", job_state)
    (found,) = list_runs(tmp_path, [job])
    expected = "interrupted" if state == "killed" else state
    assert (found.state, found.begun, found.job) == (expected, False, "job-1")
    assert found.file == "my passages.jsonl"


def test_a_run_of_a_job_is_found_wherever_it_is(tmp_path: Path) -> None:
    run = make_run(tmp_path / "elsewhere", "mine")
    job = job_of(run, "done")
    assert find_run(tmp_path, "mine", [job]).path == run
    assert find_run(tmp_path, "job-1", [job]).job == "job-1"
    assert [one.path for one in list_runs(tmp_path, [job])] == [run]


def test_a_run_that_is_not_there_is_told(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", "a")
    with pytest.raises(UsageError, match="there is no run b"):
        find_run(tmp_path, "b")
    with pytest.raises(UsageError, match="there is no run a"):
        find_run(tmp_path, "a", kinds=("ab-test",))
    with pytest.raises(UsageError, match="not a valid run id"):
        find_run(tmp_path, "../a")


def test_runs_are_searched_and_sorted_with_unknown_values_last(tmp_path: Path) -> None:
    for name, change in (("a", -0.1), ("b", None), ("c", -0.3)):
        run = make_run(tmp_path / "runs", name)
        if change is not None:
            finish(run, verdict="V", comparison={**COMPARISON, "relative_change": change})
    runs = list_runs(tmp_path)
    assert [run.id for run in search_runs(runs, sort="change", down=False)] == ["c", "a", "b"]
    assert [run.id for run in search_runs(runs, sort="change")] == ["a", "c", "b"]
    assert {run.id for run in search_runs(runs, "BETTER")} == {"a", "c"}
    assert search_runs(runs, "nothing") == []


def test_files_are_read_again_only_when_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "runs", "a")
    finish(run)
    read: list[Path] = []
    real = run_listing._read

    def noted(path: Path) -> run_listing.RunEntry:
        read.append(path)
        return real(path)

    monkeypatch.setattr(run_listing, "_read", noted)
    for _ in range(3):
        entry(run)
    assert len(read) == 1
    finish(run, verdict="New.", comparison=None)
    assert entry(run).sentence == "New."
    assert len(read) == 2
