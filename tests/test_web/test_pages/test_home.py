from __future__ import annotations

import json
from pathlib import Path

import pytest

from aios.core.events import Notice, StageProgress, StageStarted
from aios.storage.event_log import EventLog
from tests.test_app.test_jobs.job_requests import failing, quick, slot_taken
from tests.test_web.visitor import Visitor

SCRIPT = "<script>alert(1)</script>"


def put_job(visitor: Visitor, job_id: str, **marks: object) -> Path:
    """A job as its processes leave it, without any."""
    folder = visitor.site.jobs.root / job_id
    folder.mkdir(parents=True)
    run = visitor.artifacts / "seal_experiments" / job_id
    document = {
        "version": 1,
        "kind": "ab-test",
        "title": f"{SCRIPT}.jsonl",
        "created": "2026-01-01T00:00:00.000+00:00",
        "arguments": ["seal", "ab-test", SCRIPT],
        "resume": ["seal", "ab-test", "--resume"],
        "output": str(run),
        "run": str(run),
        "input": None,
    }
    (folder / "job.json").write_text(json.dumps(document))
    (folder / "started.json").write_text('{"started": "2026-01-01T00:00:01.000+00:00"}')
    if "exit_code" in marks:
        ended = {"exit_code": marks["exit_code"], "ended": "2026-01-01T00:01:01.000+00:00"}
        (folder / "ended.json").write_text(json.dumps(ended))
    (folder / "log.txt").write_text(str(marks.get("log", "")))
    run.mkdir(parents=True)
    return run


def test_an_empty_home_says_where_to_begin(visitor: Visitor) -> None:
    page = visitor.look("/")
    assert "Nothing is running" in page
    assert "No job has finished yet" in page
    assert 'action="/files/upload"' in page
    assert 'data-live="/home-panel/live"' in page


def test_what_finished_is_told_with_its_verdict(visitor: Visitor) -> None:
    run = put_job(visitor, "good", exit_code=0)
    (run / "metrics.json").write_text(json.dumps({"verdict": f"Better: {SCRIPT}"}))
    page = visitor.look("/")
    assert "Better: &lt;script&gt;" in page
    assert SCRIPT not in page
    assert 'href="/ab-tests/good"' in page


def test_what_failed_needs_attention_until_it_is_removed(visitor: Visitor) -> None:
    put_job(visitor, "bad", exit_code=1, log=f"error: {SCRIPT} is wrong\n  → mend it\n")
    for path in ("/", "/home-panel", "/jobs/bad"):
        page = visitor.look(path)
        assert "&lt;script&gt;alert(1)&lt;/script&gt; is wrong" in page
        assert "mend it" in page
        assert SCRIPT not in page
    assert "Needs attention" in visitor.look("/")
    visitor.press("/jobs/bad/delete", back="/")
    assert "Needs attention" not in visitor.look("/")
    assert visitor.site.jobs.list() == []


def test_a_job_whose_process_is_gone_needs_attention(visitor: Visitor) -> None:
    put_job(visitor, "gone")
    page = visitor.look("/")
    assert "killed" in page
    assert "Resume goes on" in page


def test_a_missing_model_and_a_full_disk_need_attention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aios.app.machine.doctor.shutil.disk_usage", lambda _: _Full())
    visitor = Visitor(tmp_path, "model.name=smollm2-135m-instruct", "model.offline=true")
    try:
        page = visitor.look("/")
        assert "Needs attention" in page
        assert "is not on this machine" in page
        assert "Disk for artifacts" in page
    finally:
        visitor.close()


class _Full:
    free = 1000


def test_a_running_job_is_shown_with_its_progress(visitor: Visitor) -> None:
    store = visitor.site.jobs
    with slot_taken(store):
        job = store.start(quick(store.artifacts), visitor.site.config)
        assert "waiting" in visitor.look("/")
        page = visitor.look(f"/jobs/{job.id}")
        assert "It begins when the job before it has ended" in page
        assert ">Stop</button>" in page
        visitor.press(f"/jobs/{job.id}/stop", back="/")
        assert store.wait(job.id, 20).state == "stopped"
    page = visitor.look(f"/jobs/{job.id}")
    assert ">Resume</button>" in page
    assert "Resume goes on from there" in page
    assert "The job goes on" in visitor.press(f"/jobs/{job.id}/resume", back=f"/jobs/{job.id}")
    assert store.wait(job.id, 20).state == "done"
    visitor.press(f"/jobs/{job.id}/delete")
    assert store.list() == []


def test_a_job_that_does_not_listen_is_ended_at_once(visitor: Visitor) -> None:
    store = visitor.site.jobs
    with slot_taken(store):
        job = store.start(quick(store.artifacts), visitor.site.config)
        visitor.press(f"/jobs/{job.id}/kill", back="/jobs")
        assert store.wait(job.id, 5).state == "stopped"


def test_a_failed_job_says_what_to_do(visitor: Visitor) -> None:
    store = visitor.site.jobs
    job = store.wait(store.start(failing(store.artifacts), visitor.site.config).id, 20)
    page = visitor.look(f"/jobs/{job.id}")
    assert "missing.jsonl" in page
    assert "Why it ended" in page


def test_the_panel_of_a_job_shows_stages_notes_and_hostile_texts_escaped(
    visitor: Visitor,
) -> None:
    run = put_job(visitor, "one", exit_code=130, log=SCRIPT)
    with EventLog(run / "events.jsonl") as log:
        log.emit(StageStarted("arms", 10, "arms"))
        log.emit(StageProgress("arms", 4, SCRIPT))
        log.emit(Notice(SCRIPT, "warning"))
    page = visitor.look("/jobs/one")
    assert SCRIPT not in page
    assert page.count("&lt;script&gt;") >= 3
    assert "Warning:" in page
    assert 'href="/ab-tests/one"' in page


def test_many_jobs_come_in_pages(visitor: Visitor) -> None:
    for n in range(60):
        put_job(visitor, f"job-{n:02d}", exit_code=0)
    first, second = visitor.look("/jobs"), visitor.look("/jobs?page=2")
    assert first.count("<tr id=") == 50
    assert second.count("<tr id=") == 10
    assert "page 1 of 2" in first
    assert visitor.look("/jobs?page=99").count("<tr id=") == 10
