"""The pages of ReST-EM on runs of the scripted model, and their buttons on real jobs."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aios.app.jobs.records import Job
from aios.app.machine.load import MachineLoad
from aios.app.restem.folders import is_held, request_stop
from aios.app.restem.job import optimize
from aios.app.restem.run_results import read_results
from aios.app.restem.run_rows import run_state
from aios.core.errors import RunInterrupted
from aios.core.events import Heartbeat, RunFinished, RunStarted, WorkFailed
from aios.core.types import Passage, Question
from aios.web.pages import restem
from tests.planted_world import PlantedModel
from tests.test_app.restem_run_files import (
    candidate,
    first_round,
    hold_new,
    make_run,
    passage_of,
    report,
    set_record,
    two_rounds,
    untrained,
    write_candidates,
    write_events,
)
from tests.test_app.scripted_jobs import stop_after
from tests.test_app.test_restem_job import config_of, write_data, write_planted
from tests.test_web.visitor import Visitor

SCRIPT = "<script>alert(1)</script>"
QUICK = (
    "restem.estimate=false",
    "restem.trial_tokens=60",
    "restem.arms=implications,rewrite",
    "restem.held_out_fraction=0.25",
    "restem.patience=0",
    "restem.threshold=-1000",  # all are learned from, so that no run ends early
    "seal.enable_quality_filter=false",
    "seal.min_length=0",
)


@pytest.fixture
def folder(visitor: Visitor) -> Path:
    """The folder of runs."""
    return visitor.artifacts / "runs"


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    place = tmp_path_factory.mktemp("whole")
    return scripted_run(place, place / "run")


def scripted_run(place: Path, path: Path, **more: Any) -> Path:
    data = place / "passages.jsonl"
    if not data.exists():
        write_planted(data)
    optimize(
        config_of(place, restem={"estimate": True}),
        data,
        None,
        run_dir=path,
        model=PlantedModel(),
        **more,
    )
    return path


@pytest.fixture
def done(folder: Path, whole_run: Path) -> str:
    """That run among the visitor's."""
    shutil.copytree(whole_run, folder / "planted")
    return "planted"


# ------------------------------------------------------------ looking


def test_without_runs_the_page_says_how_to_get_one(visitor: Visitor) -> None:
    shown = visitor.look("/restem")
    assert "There is no run yet" in shown
    assert "aios seal restem optimize" in shown


def test_runs_are_listed_with_state_rounds_and_gain(visitor: Visitor, done: str) -> None:
    shown = visitor.look("/restem")
    row = re.search(rf'<tr id="run-{done}">.*?</tr>', shown, re.DOTALL)
    assert row is not None
    assert f'href="/restem/{done}"' in row[0]
    assert "done" in row[0]
    assert "2 of 2" in row[0]
    assert "95 %" in row[0]
    assert "nats" in row[0]


def test_a_run_is_shown_from_its_directory_alone(
    visitor: Visitor, done: str, whole_run: Path
) -> None:
    (whole_run.parent / "passages.jsonl").rename(whole_run.parent / "gone.jsonl")
    try:
        shown = visitor.look(f"/restem/{done}")
        edits = visitor.look(f"/restem/{done}/edits")
    finally:
        (whole_run.parent / "gone.jsonl").rename(whole_run.parent / "passages.jsonl")
    for heading in ("Rewards by round", "Reliability of the reward", "Gain of the generator"):
        assert f"<h2>{heading}</h2>" in shown
    assert "<h2>Strategies</h2>" in shown
    assert "<h2>Diversity</h2>" in shown
    assert shown.count("<svg") >= 4
    assert "ICC" in shown
    assert "Resume</button>" not in shown
    assert "Best of round 2" in edits


def test_best_self_edits_come_with_passage_and_training_curve(visitor: Visitor, done: str) -> None:
    shown = visitor.look(f"/restem/{done}/edits")
    assert "Best of round 2" in shown
    assert "Worst of round 2" in shown
    assert "spells its keyword" in shown  # of a passage, from the file that is still there
    assert "Training loss in the course of its trials" in shown
    assert "were not recorded" not in shown


def test_a_run_of_before_losses_were_kept_says_so(visitor: Visitor, folder: Path) -> None:
    path = make_run(folder, "old")
    set_record(path, [untrained(), report()])
    two_rounds(path)
    for file in path.rglob("candidates.jsonl"):
        records = [json.loads(line) for line in file.read_text().splitlines()]
        for record in records:
            for one in record["candidates"]:
                del one["losses"]
        file.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    assert "were not recorded" in visitor.look("/restem/old/edits")


def test_failures_are_grouped(visitor: Visitor, folder: Path) -> None:
    path = make_run(folder, "failing")
    set_record(path, [untrained(), report()])
    lost = [passage_of(f"p{n}", candidate(f"p{n}", 0, ())) for n in range(3)]
    write_candidates(path, 1, lost)
    shown = visitor.look("/restem/failing/edits")
    row = re.search(r'<th scope="row">round 1</th>.*?</tr>', shown, re.DOTALL)
    assert row is not None
    assert '<td class="n">3</td>' in row[0]
    assert "out of memory" in row[0]


def test_a_running_run_shows_round_stage_trials_rate_and_what_is_left(
    visitor: Visitor, folder: Path
) -> None:
    with hold_new(folder, "going") as directory:
        write_events(directory.path, first_round())
        set_record(directory.path, [untrained()])
        shown = visitor.look("/restem/going")
        assert "Trying them (round 1)" in shown
        assert "2 of 5" in shown
        assert "37 trials" in shown
        assert "Trials left in this round" in shown
        assert "6.0/min" in re.sub(r"\s", " ", shown) or "/min" in shown
        assert "This round so far" in shown
        assert '/restem/going/pause"' in shown
        assert '/restem/going/stop"' not in shown  # it is no job: nobody but its owner may kill it
        assert "Resume</button>" not in shown


def test_hostile_texts_are_escaped(visitor: Visitor, folder: Path, tmp_path: Path) -> None:
    data = write_data(
        tmp_path / f"p{SCRIPT.replace('/', '')}.jsonl",
        [
            Passage.make(f"Text {n} {SCRIPT}", id=f"p{n}", title=SCRIPT, questions=_questions())
            for n in range(3)
        ],
    )
    path = make_run(folder, "hostile")
    two_rounds(path)
    hostile = candidate("p1", 0, (0.5, 0.6), kept=True)
    object.__setattr__(hostile.edit, "items", (SCRIPT, "<img src=x onerror=alert(1)>"))
    object.__setattr__(hostile.edit, "strategy", SCRIPT)
    write_candidates(path, 1, [passage_of("p1", hostile)])
    set_record(path, [untrained(), report(reliability=SCRIPT)], stopped=SCRIPT)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "dataset": str(data)}))
    write_events(
        path,
        [
            (0, RunStarted("hostile", "restem")),
            (1, WorkFailed("train", SCRIPT, SCRIPT, retryable=False)),
            (2, RunFinished(run="hostile", status="failed", seconds=1.0, summary=SCRIPT)),
        ],
    )
    for page in ("", "/edits", "/machine", "/report", "/results", "/panel"):
        shown = visitor.look(f"/restem/hostile{page}")
        assert SCRIPT not in shown
        assert "<img src=x" not in shown
    assert "&lt;script&gt;" in visitor.look("/restem/hostile/edits")
    assert SCRIPT not in visitor.look("/restem")


def _questions() -> tuple[Question, ...]:
    return (Question("Who?", ("Ana",)),)


@pytest.mark.parametrize("name", ["nothing", "%2e%2e%2fjobs", "a%00b", "x" * 200])
def test_a_run_that_is_not_there_is_told(visitor: Visitor, name: str) -> None:
    answer = visitor.client.get(f"/restem/{name}")
    assert answer.status_code in (400, 404)
    assert "Traceback" not in answer.text


def test_a_run_of_another_kind_is_refused(visitor: Visitor, folder: Path) -> None:
    with hold_new(folder, "other", kind="ab-test"):
        pass
    assert "is no ReST-EM run" in visitor.look("/restem/other", status=400)
    assert "run-other" not in visitor.look("/restem")


def test_the_report_is_shown_in_a_frame_that_runs_nothing(visitor: Visitor, done: str) -> None:
    shown = visitor.look(f"/restem/{done}/report")
    assert f'<iframe sandbox src="/restem/{done}/report.html"' in shown
    answer = visitor.client.get(f"/restem/{done}/report.html")
    assert "sandbox" in answer.headers["content-security-policy"]
    assert "script-src" not in answer.headers["content-security-policy"]
    assert "ReST-EM" in answer.text


def test_without_a_report_the_page_says_when_there_is_one(visitor: Visitor, folder: Path) -> None:
    make_run(folder, "young")
    assert "There is no report yet" in visitor.look("/restem/young/report")
    assert "there is no report" in visitor.look("/restem/young/report.html", status=404)


def test_machine_and_memory_are_charts(
    visitor: Visitor, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aios.web.pages.restem._LOAD", MachineLoad(every=0.05, linger=0.5))
    path = make_run(folder, "hungry")
    beats = [
        (60.0 * n, Heartbeat("try", n, 0.1, (n + 1) * 2**30, (n + 1) * 2**30)) for n in range(5)
    ]
    write_events(path, [(0, RunStarted("hungry", "restem")), *beats])
    shown = visitor.look("/restem/hungry/machine")
    assert "Memory of the run" in shown
    assert "5.00 GiB" in shown
    until(lambda: "Processors" in visitor.look("/restem/hungry/machine/panel"), 10)


def test_many_runs_are_shown_by_the_page(visitor: Visitor, folder: Path) -> None:
    for number in range(30):
        make_run(folder, f"run-{number:02d}")
    shown = visitor.look("/restem?page=2")
    assert "page 2 of 3" in shown
    assert shown.count('<tr id="run-') == 12
    assert "page 3 of 3" in visitor.look("/restem?page=999")


def test_of_a_long_record_only_what_is_new_is_read(visitor: Visitor, folder: Path) -> None:
    path = make_run(folder, "long")
    start = [(0.0, RunStarted("long", "restem"))]
    write_events(path, start)
    with open(path / "events.jsonl", "ab") as out:
        line = b'{"time":"2025-10-09T08:53:20.000+00:00","type":"Dropped","passage_id":"p"}\n'
        out.write(line * 100_000)
    visitor.look("/restem/long")
    begun = time.perf_counter()
    for _ in range(3):
        visitor.look("/restem/long")
    assert time.perf_counter() - begun < 1.5
    write_events(path, [(9, WorkFailed("train", "p1", "the new one", retryable=False))])
    assert "the new one" in visitor.look("/restem/long")


def test_candidates_are_read_unasked_only_while_they_are_few(
    visitor: Visitor, done: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restem, "MANY_BYTES", 10)
    shown = visitor.look(f"/restem/{done}/edits")
    assert "read only when you ask" in shown
    few = read_results(visitor.artifacts / "runs" / done, 10)
    assert not few.whole
    assert few.parts["charts"]["rewards"] is not None  # from the rounds' own record
    assert "Best of round 2" in visitor.look(f"/restem/{done}/edits?all=yes")


# ------------------------------------------------------------ starting


@pytest.fixture
def quick(tmp_path: Path) -> Iterator[Visitor]:
    """A visitor whose runs have short trials, and a file to choose."""
    write_planted(tmp_path / "data" / "mills.jsonl", 40)
    cache = f"seal.cache_dir={tmp_path / 'cache'}"
    found = Visitor(tmp_path, *QUICK, cache, data=(tmp_path / "data",))
    yield found
    found.close()


def file_id(visitor: Visitor, name: str = "mills.jsonl") -> str:
    found = re.search(rf'<option value="([^"]+)"[^>]*>{name}', visitor.look("/restem"))
    assert found is not None
    return found[1]


def press_start(visitor: Visitor, given: dict[str, Any]) -> str:
    return visitor.press("/restem", back="/restem", **given)


def test_a_choice_shows_counts_and_says_why_it_knows_no_time(quick: Visitor) -> None:
    query = f"file={file_id(quick)}&rounds=3&passages=10&candidates=4"
    shown = quick.look(f"/restem?{query}")
    assert "30 to optimise on, 10 held out" in shown
    assert "10 passages, 4 self-edits of each" in shown
    assert "3 at most" in shown
    assert "measuring now would load the model" in shown
    assert "Start this run</button>" in shown


def test_a_time_is_told_at_the_speeds_that_an_earlier_run_measured(
    quick: Visitor, whole_run: Path
) -> None:
    shutil.copytree(whole_run, quick.artifacts / "runs" / "earlier")
    shown = quick.look(f"/restem?file={file_id(quick)}")
    assert "at the speeds that run" in shown
    assert 'href="/restem/earlier"' in shown


@pytest.mark.parametrize(
    ("choice", "problem"),
    [
        ("rounds=0", "restem_iterations"),
        ("rounds=<b>", "restem_iterations"),
        ("arms=nonsense", "nonsense"),
        ("file=nothing", "no such file"),
    ],
)
def test_a_wrong_choice_is_told_and_cannot_be_started(
    quick: Visitor, choice: str, problem: str
) -> None:
    given = {"file": file_id(quick), **dict([choice.split("=")])}
    shown = quick.look("/restem?" + "&".join(f"{k}={v}" for k, v in given.items()))
    assert problem in shown
    assert "Start this run" not in shown
    assert problem in press_start(quick, given)
    assert quick.site.jobs.list() == []


def test_a_file_without_questions_cannot_be_started(quick: Visitor, tmp_path: Path) -> None:
    write_planted(tmp_path / "data" / "bare.jsonl", 4, questions=False)
    given = {"file": file_id(quick, "bare.jsonl")}
    assert "has questions" in quick.look(f"/restem?file={given['file']}")
    assert "No passage of this file has questions" in press_start(quick, given)
    assert quick.site.jobs.list() == []


# ------------------------------------------------------------ buttons on real jobs


def until(true: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


def only_job(visitor: Visitor) -> Job:
    (job,) = visitor.site.jobs.list()
    return job


@pytest.mark.slow
def test_a_run_is_started_paused_resumed_and_stopped(quick: Visitor) -> None:
    shown = quick.press(
        "/restem",
        file=file_id(quick),
        rounds="60",
        passages="30",
        candidates="4",
        arms=["implications", "rewrite"],
    )
    job = only_job(quick)
    path = quick.artifacts / "runs" / job.id
    assert "The run was started" in shown
    config = (job.path / "config.yaml").read_text()
    assert "restem_iterations: 60" in config
    assert "restem_batch_size: 30" in config

    page = f"/restem/{job.id}"
    until(lambda: (path / "state.json").exists())
    assert "Pause</button>" in quick.look(page)
    assert "pauses after the work in hand" in quick.press(f"{page}/pause")
    until(lambda: not quick.site.jobs.get(job.id).live)
    assert quick.site.jobs.get(job.id).state == "stopped"
    assert run_state(path) == "interrupted"
    before = _rounds(path)
    assert "Resume</button>" in quick.look(page)

    assert "The run goes on" in quick.press(f"{page}/resume")
    until(lambda: is_held(path))
    assert quick.site.jobs.get(job.id).attempts == 2
    until(lambda: _rounds(path) > before)
    assert "told to stop" in quick.press(f"{page}/stop")
    until(lambda: not quick.site.jobs.get(job.id).live)
    assert run_state(path) == "interrupted"
    assert _rounds(path) >= before

    assert "Resume</button>" in quick.look(page)
    assert "is not running" in quick.press(f"{page}/pause", back=page)


def _rounds(path: Path) -> int:
    return len(json.loads((path / "state.json").read_text())["rounds"])


@pytest.mark.slow
def test_a_run_of_the_command_line_goes_on_as_a_job(quick: Visitor, tmp_path: Path) -> None:
    path = quick.artifacts / "runs" / "mine"
    with pytest.raises(RunInterrupted):
        scripted_run(tmp_path, path, should_stop=stop_after(12))
    shown = quick.look("/restem/mine")
    assert "It was started on the command line" in shown
    assert "--resume" in shown
    assert "was started on the command line" in quick.press("/restem/mine/stop", back="/restem")
    assert "is not running" in quick.press("/restem/mine/pause", back="/restem")

    quick.press("/restem/mine/resume")
    job = only_job(quick)
    assert job.id == "mine"
    assert "--resume" in job.request.arguments
    until(lambda: not quick.site.jobs.get("mine").live)
    # It goes on with the settings of the run, whatever the server's are.
    assert "learning_rate" in (job.path / "config.yaml").read_text()
    log = quick.site.jobs.log_tail("mine")
    assert quick.site.jobs.get("mine").state in ("done", "failed"), log


def test_a_run_whose_passages_are_gone_cannot_go_on(quick: Visitor) -> None:
    path = make_run(quick.artifacts / "runs", "lost")
    set_record(path, [untrained()])
    shown = quick.press("/restem/lost/resume", back="/restem/lost")
    assert "its file of passages, is not there" in shown
    assert quick.site.jobs.list() == []


def test_a_run_of_the_command_line_can_be_paused(visitor: Visitor, folder: Path) -> None:
    with hold_new(folder, "theirs") as directory:
        assert "pauses after the work in hand" in visitor.press("/restem/theirs/pause")
        assert (directory.path / "stop").exists()
        assert request_stop(directory.path)
        assert "It stops after the work in hand" in visitor.look("/restem/theirs")


@pytest.mark.slow
def test_a_job_that_waits_is_listed_and_can_be_stopped_and_resumed(
    quick: Visitor,
) -> None:
    quick.site.jobs.root.mkdir(parents=True)
    with open(quick.site.jobs.root / ".slot", "wb") as slot:
        fcntl.flock(slot, fcntl.LOCK_EX)
        quick.press("/restem", file=file_id(quick), rounds="1", passages="2", candidates="2")
        job = only_job(quick)
        until(lambda: quick.site.jobs.get(job.id).state == "waiting")
        assert f"run-{job.id}" in quick.look("/restem")
        assert "It waits for its turn" in quick.look(f"/restem/{job.id}")
        quick.press(f"/restem/{job.id}/stop")
        until(lambda: not quick.site.jobs.get(job.id).live)
    assert "Resume</button>" in quick.look(f"/restem/{job.id}")
    quick.press(f"/restem/{job.id}/resume")
    until(lambda: not quick.site.jobs.get(job.id).live)
    assert quick.site.jobs.get(job.id).state == "done", quick.site.jobs.log_tail(job.id)
    shown = quick.look(f"/restem/{job.id}")
    assert "Resume</button>" not in shown
    assert "Gain of the generator" in shown
    assert "is done" in quick.press(f"/restem/{job.id}/resume", back=f"/restem/{job.id}")


@pytest.mark.slow
def test_a_job_that_does_not_listen_can_be_ended(quick: Visitor) -> None:
    quick.press("/restem", file=file_id(quick), rounds="90", passages="30", candidates="4")
    job = only_job(quick)
    path = quick.artifacts / "runs" / job.id
    until(lambda: (path / "state.json").exists())
    holder = int((path / ".lock").read_text())
    os.kill(holder, signal.SIGSTOP)
    quick.press(f"/restem/{job.id}/stop")
    assert "End it at once</button>" in quick.look(f"/restem/{job.id}")
    assert "was ended" in quick.press(f"/restem/{job.id}/end")
    until(lambda: not quick.site.jobs.get(job.id).live)
    assert run_state(path) == "stale"
    assert "Resume</button>" in quick.look(f"/restem/{job.id}")
