"""Jobs whose processes are killed, and those whose starter dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from aios.app.jobs.commands import generate_job, restem_job
from aios.app.jobs.finished import has_finished
from aios.app.jobs.results import trouble_of
from aios.app.jobs.store import JobStore, _held
from aios.core.config.loader import dump
from aios.core.config.schemas import Config
from aios.core.errors import UsageError
from tests.test_app.test_jobs.job_requests import (
    command_of,
    long,
    passages,
    quick,
    until,
    wrapper_of,
)


def test_a_command_that_is_killed_is_told_with_its_signal(store: JobStore, config: Config) -> None:
    job = until(store, store.start(long(store.artifacts), config).id, "running")
    command_of(job).kill()
    ended = store.wait(job.id, 10)
    assert (ended.state, ended.exit_code) == ("failed", 137)
    assert ended.can_resume
    trouble = trouble_of(ended, store.log_tail(job.id))
    assert trouble is not None
    assert "memory" in trouble.what


@pytest.mark.slow
def test_a_command_outlives_its_wrapper_and_the_job_is_held_until_both_are_gone(
    store: JobStore, config: Config
) -> None:
    job = until(store, store.start(long(store.artifacts), config).id, "running")
    command = command_of(job)
    wrapper_of(job).kill()
    store.list()  # takes note of the wrapper's end
    assert store.get(job.id).state == "running"
    store.stop(job.id, at_once=True)
    command.wait(10)
    assert until(store, job.id, "stopped", seconds=5).exit_code is None


@pytest.mark.slow
def test_a_command_that_ends_well_without_its_wrapper_is_done(
    store: JobStore, config: Config, tmp_path: Path
) -> None:
    request = generate_job(store.artifacts, "orphan", passages(tmp_path / "some.jsonl", 5))
    job = until(store, store.start(request, config).id, "running")
    command = command_of(job)
    wrapper_of(job).kill()
    command.wait(20)
    done = until(store, job.id, "done", seconds=5)
    assert (done.exit_code, done.ended, done.can_resume) == (None, None, False)
    request.output.unlink()
    assert store.get(job.id).state == "killed"


NOW = datetime.now(timezone.utc)


def event(kind: str, *, minutes: float, **more: str) -> str:
    """A line of a run's record, so many minutes after the command began."""
    time = (NOW + timedelta(minutes=minutes)).isoformat(timespec="milliseconds")
    return json.dumps({"time": time, "type": kind, "run": "r", **more}) + "\n"


@pytest.mark.parametrize(
    ("lines", "finished"),
    [
        ([event("RunStarted", minutes=1), event("RunFinished", minutes=2, status="done")], True),
        ([event("RunFinished", minutes=2, status="done"), event("Notice", minutes=3)], True),
        ([event("RunFinished", minutes=-1, status="done")], False),  # of the training before
        ([event("RunFinished", minutes=2, status="failed")], False),
        ([event("RunFinished", minutes=2, status="interrupted")], False),
        ([event("RunFinished", minutes=1, status="done"), event("RunStarted", minutes=2)], False),
        ([event("RunStarted", minutes=1), '{"type": "RunFinished", "status": "do'], False),
        (['{"time": 7, "type": "RunFinished", "status": "done"}\n', '["RunFinished"]\n'], False),
        ([], False),
    ],
)
def test_a_run_tells_itself_whether_it_has_finished(
    tmp_path: Path, lines: list[str], finished: bool
) -> None:
    request = restem_job(tmp_path, "r", tmp_path / "in.jsonl")
    assert not has_finished(request, NOW)
    assert request.run is not None
    request.run.mkdir(parents=True)
    (request.run / "events.jsonl").write_text("".join(lines))
    assert has_finished(request, NOW) is finished


def test_a_job_all_of_whose_processes_are_killed_is_told_as_killed(
    store: JobStore, config: Config
) -> None:
    job = until(store, store.start(long(store.artifacts), config).id, "running")
    command_of(job)
    os.killpg(wrapper_of(job).pid, signal.SIGKILL)
    killed = until(store, job.id, "killed", seconds=5)
    assert killed.can_resume
    resumed = until(store, store.resume(job.id).id, "running")
    assert resumed.attempts == 2
    assert resumed.ended is None


@pytest.mark.slow
def test_the_starter_dies_and_the_job_goes_on(
    store: JobStore, config: Config, tmp_path: Path
) -> None:
    file = tmp_path / "given.yaml"
    file.write_text(dump(config))
    text = (
        "import os, sys; from pathlib import Path; from aios.app.jobs.store import JobStore; "
        "from aios.core.config.loader import load_config; "
        "from tests.test_app.test_jobs.job_requests import quick; "
        "config = load_config(config_file=Path(sys.argv[2]), env={}).config; "
        "root = Path(sys.argv[1]); JobStore(root).start(quick(root), config, job_id='orphan'); "
        "os.kill(os.getpid(), 9)"
    )
    root = Path(__file__).parents[3]
    env = {**os.environ, "PYTHONPATH": f"{root}:{root / 'src'}"}
    command = [sys.executable, "-c", text, str(store.artifacts), str(file)]
    assert subprocess.run(command, env=env, cwd=root).returncode == -signal.SIGKILL
    assert store.get("orphan").live
    assert store.wait("orphan", 20).state == "done"


def test_a_stop_before_the_command_has_begun_to_listen_ends_it(
    store: JobStore, config: Config
) -> None:
    job = until(store, store.start(long(store.artifacts), config).id, "running")
    store.stop(job.id)
    assert store.get(job.id).state in ("stopping", "stopped")
    assert store.wait(job.id, 10).state == "stopped"


@pytest.mark.slow
def test_a_job_that_was_stopped_goes_on_where_it_was(
    store: JobStore, config: Config, tmp_path: Path
) -> None:
    count = 150
    file = passages(tmp_path / "some.jsonl", count)
    request = generate_job(store.artifacts, "some", file)
    job = until(store, store.start(request, config).id, "running")
    journal = request.output.with_name(".edits.jsonl.journal")
    while not (journal.is_file() and journal.stat().st_size > 3_000):
        assert store.get(job.id).live, store.log_tail(job.id)
    store.stop(job.id)
    stopped = store.wait(job.id, 20)
    assert (stopped.state, stopped.exit_code) == ("stopped", 130)
    assert not request.output.exists()

    done = store.wait(store.resume(job.id).id, 60)

    assert done.state == "done", store.log_tail(job.id)
    log = store.log_tail(job.id)
    assert "from an earlier run" in log
    assert f"passages             {count}" in log
    assert request.output.exists()
    assert not journal.exists()


def test_a_process_that_has_the_number_of_a_dead_jobs_is_left_alone(
    store: JobStore, config: Config
) -> None:
    job = store.wait(store.start(quick(store.artifacts), config).id, 20)
    while _held(job.path):  # it has said how it ended, and is about to be gone
        time.sleep(0.01)
    (job.path / "ended.json").unlink()
    bystander = subprocess.Popen(["sleep", "30"], start_new_session=True)
    try:
        (job.path / "process.json").write_text(f'{{"pid": {bystander.pid}}}')
        assert store.get(job.id).state == "killed"
        with pytest.raises(UsageError, match="has ended"):
            store.stop(job.id, at_once=True)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
