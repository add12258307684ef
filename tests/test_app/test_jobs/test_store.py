from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from aios.app.jobs import store as store_module
from aios.app.jobs.store import JobStore
from aios.core.config.schemas import Config
from aios.core.errors import StorageError, UsageError
from aios.core.files import atomic_write_json
from tests.test_app.test_jobs.job_requests import failing, quick, slot_taken, until
from tests.test_web.running import wait_until


def test_without_a_folder_there_are_no_jobs(tmp_path: Path) -> None:
    assert JobStore(tmp_path / "nowhere").list() == []


def test_a_job_runs_to_its_end_and_every_store_sees_the_same(
    store: JobStore, config: Config
) -> None:
    begun = store.start(quick(store.artifacts), config)
    assert begun.live

    job = store.wait(begun.id, 20)

    assert (job.state, job.exit_code, job.attempts) == ("done", 0, 1)
    assert job.started is not None
    assert job.ended is not None
    assert job.created <= job.started <= job.ended
    assert "scripted" in store.log_tail(job.id)  # the settings that it was started with
    other = JobStore(store.artifacts)
    assert other.list() == [job]
    assert other.get(job.id) == job


def test_a_job_that_fails_says_why_and_can_be_gone_on_with(store: JobStore, config: Config) -> None:
    job = store.wait(store.start(failing(store.artifacts), config).id, 20)

    assert (job.state, job.exit_code) == ("failed", 2)
    assert job.can_resume
    assert "missing.jsonl" in store.log_tail(job.id)

    again = store.wait(store.resume(job.id).id, 20)

    assert (again.state, again.attempts) == ("failed", 2)


@pytest.mark.slow
def test_jobs_take_turns_and_one_that_waits_can_be_stopped(store: JobStore, config: Config) -> None:
    with slot_taken(store):
        first = store.start(quick(store.artifacts), config, job_id="first")
        second = store.start(quick(store.artifacts), config, job_id="second")
        not_waiting = store.start(quick(store.artifacts), config, job_id="third", wait=False)

        assert store.wait(not_waiting.id, 20).state == "done"
        assert {store.get(job.id).state for job in (first, second)} == {"waiting"}
        store.stop(second.id)
        stopped = store.wait(second.id, 20)
        assert (stopped.state, stopped.started) == ("stopped", None)
        assert store.get(first.id).state == "waiting"

    assert store.wait(first.id, 20).state == "done"
    assert store.wait(store.resume(second.id).id, 20).state == "done"


def test_a_waiting_job_that_is_killed_is_told_as_stopped(store: JobStore, config: Config) -> None:
    with slot_taken(store):
        job = store.start(quick(store.artifacts), config)
        store.stop(job.id, at_once=True)
        assert until(store, job.id, "stopped").exit_code is None


def test_what_does_not_fit_a_jobs_state_is_refused(store: JobStore, config: Config) -> None:
    with slot_taken(store):
        job = store.start(quick(store.artifacts), config, job_id="one")
        with pytest.raises(UsageError, match="goes on"):
            store.delete(job.id)
        with pytest.raises(UsageError, match="goes on already"):
            store.resume(job.id)
        with pytest.raises(UsageError, match="already"):
            store.start(quick(store.artifacts), config, job_id="one")
        assert store.get("one").state == "waiting"  # whose folder the refused start left alone
        store.stop(job.id)
        store.wait(job.id, 20)
    with pytest.raises(UsageError, match="has ended"):
        store.stop(job.id)


def test_a_job_that_is_removed_leaves_what_it_has_written(store: JobStore, config: Config) -> None:
    output = store.artifacts / "made.jsonl"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("x")
    with slot_taken(store):
        job = store.start(replace(quick(store.artifacts), output=output), config)
        store.stop(job.id)
        store.wait(job.id, 20)
    store.delete(job.id)
    assert store.list() == []
    assert not job.path.exists()
    assert output.read_text() == "x"


@pytest.mark.parametrize("job_id", ["", "..", "../x", "a/b", "a\\b", ".lock", "a\0b", "x" * 200])
def test_hostile_ids_lead_nowhere(store: JobStore, job_id: str) -> None:
    for ask in (store.get, store.stop, store.resume, store.delete, store.log_tail):
        with pytest.raises(UsageError):
            ask(job_id)


def test_a_link_out_of_the_folder_is_no_job(store: JobStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "job.json").write_text(json.dumps(_document()))
    store.root.mkdir(parents=True)
    (store.root / "linked").symlink_to(outside)
    assert store.list() == []
    with pytest.raises(UsageError, match="leads out"):
        store.delete("linked")
    assert (outside / "job.json").exists()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"version": 99}',
        json.dumps({"version": 1, "kind": "generate"}),
        "\0" * 50,
    ],
)
def test_a_corrupt_record_hides_no_other_job(store: JobStore, config: Config, content: str) -> None:
    bad = store.root / "bad"
    bad.mkdir(parents=True)
    (bad / "job.json").write_text(content)
    good = store.root / "good"
    good.mkdir()
    (good / "job.json").write_text(json.dumps(_document()))
    assert [job.id for job in store.list()] == ["good"]
    with pytest.raises((StorageError, UsageError)):
        store.get("bad")


def test_corrupt_marks_of_a_process_are_as_good_as_none(store: JobStore) -> None:
    folder = store.root / "one"
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps(_document()))
    for name in ("started.json", "ended.json", "attempts.json", "process.json"):
        (folder / name).write_text('{"pid": "1", "started": 7, "exit_code": "0", "attempts": []}')
    job = store.get("one")
    assert (job.state, job.attempts, job.started, job.exit_code) == ("killed", 1, None, None)


def test_the_end_of_a_long_log_begins_with_a_whole_line(store: JobStore) -> None:
    folder = store.root / "one"
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps(_document()))
    (folder / "log.txt").write_bytes(b"".join(b"line %d\n" % n for n in range(10_000)) + b"\xff\n")
    tail = store.log_tail("one", 1000)
    assert tail.startswith("line ")
    assert tail.endswith("line 9999\n\N{REPLACEMENT CHARACTER}\n")
    assert len(tail.encode()) <= 1002


def test_ids_tell_kind_and_title_and_are_never_the_same(store: JobStore) -> None:
    ids = {store.new_id("ab-test", "../Größe & <b>.jsonl") for _ in range(20)}
    assert len(ids) > 15
    assert all(found.startswith("ab-test-") for found in ids)
    for found in ids:
        with pytest.raises(UsageError, match="there is no job"):
            store.get(found)


def test_a_job_whose_process_cannot_be_started_leaves_nothing(
    store: JobStore, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(StorageError, match="cannot start"):
        store.start(quick(store.artifacts), config, job_id="one")
    assert not (store.root / "one").exists()
    shutil.rmtree(store.root)


def _document() -> dict[str, object]:
    return {
        "version": 1,
        "kind": "generate",
        "title": "file.jsonl",
        "created": "2026-01-01T00:00:00.000+00:00",
        "arguments": ["config", "show"],
        "resume": ["config", "show"],
        "output": "nothing",
        "run": None,
        "input": None,
    }


def test_a_job_that_could_not_be_stopped_is_not_begun(
    store: JobStore, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []

    def full(path: Path, value: dict[str, int]) -> None:
        if path.name == "process.json":
            begun.append(value["pid"])
            raise StorageError(f"cannot write {path}: no space left", "free some")
        atomic_write_json(path, value)

    monkeypatch.setattr(store_module, "atomic_write_json", full)
    with pytest.raises(StorageError, match="no space"):
        store.start(quick(store.artifacts), config)
    (pid,) = begun
    wait_until(lambda: store.list() == [] and not psutil.pid_exists(pid), 20)
