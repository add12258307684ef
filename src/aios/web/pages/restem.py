"""ReST-EM: its runs, a run while it goes on and after, and where one is started.

All that is shown of a run is told from its directory, so a run of the command line, or of a server
that was restarted, shows as any other does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from aios.app.data.preview import Previews
from aios.app.edits.strategies import list_strategies
from aios.app.jobs.child import ENDED, LOG, STARTED, STOP
from aios.app.jobs.records import Job
from aios.app.jobs.starts import OPTIONS, default_of
from aios.app.kept import stamp_of
from aios.app.machine.load import MachineLoad
from aios.app.machine.load_charts import load_charts, memory_chart
from aios.app.restem import run_jobs
from aios.app.restem.charts import round_so_far
from aios.app.restem.folders import STOP_FILE
from aios.app.restem.quick_estimate import Forecasts, Foreseen
from aios.app.restem.records import STATE_FILE
from aios.app.restem.run_jobs import AnyState, Choices, RunOrJob
from aios.app.restem.run_results import (
    MANY_BYTES,
    REPORT_FILE,
    SOME_BYTES,
    RunResults,
    results_stamp,
)
from aios.app.restem.run_rows import RunFacts
from aios.app.restem.status import EVENTS_FILE, RunStatus
from aios.app.restem.watching import RunWatch
from aios.core.errors import AIOSError, UsageError
from aios.core.files import confined, read_bytes
from aios.web.pages.calls import Call, get, post
from aios.web.pages.files import files_of
from aios.web.pages.guarding import REPORT_POLICY
from aios.web.pages.live import live
from aios.web.pages.site import Note

ROWS = 12
STAGES = {
    "write": "Writing self-edits",
    "try": "Trying them",
    "fit": "Training the generator",
    "held-out": "Examining on held-out passages",
}
_MOST_REPORT_BYTES = 64 * 2**20
_WATCH = RunWatch()
_LOAD = MachineLoad()
_FORECASTS = Forecasts()
_PREVIEWS = Previews()


def routes() -> list[Route]:
    """The routes."""
    return [
        get("/restem", restem_page),
        post("/restem", start_run),
        *live("/restem-runs", runs_table, runs_stamp),
        get("/restem/{run}", run_page),
        *live("/restem/{run}/panel", run_panel, run_stamp),
        get("/restem/{run}/results", results_part),
        get("/restem/{run}/edits", edits_page),
        get("/restem/{run}/machine", machine_page),
        *live("/restem/{run}/machine/panel", machine_panel, machine_stamp),
        get("/restem/{run}/report", report_page),
        get("/restem/{run}/report.html", report_itself),
        post("/restem/{run}/pause", pause_run),
        post("/restem/{run}/stop", stop_run),
        post("/restem/{run}/end", end_run),
        post("/restem/{run}/resume", resume_run),
    ]


# ------------------------------------------------------------ all runs


@dataclass(frozen=True, slots=True)
class Row:
    """A run in the list: what is known of it, or why it is not; a job where it has not begun."""

    id: str
    state: AnyState
    facts: RunFacts | None
    job: Job | None
    problem: str = ""


def restem_page(call: Call) -> Response:
    """The runs, and where one is started."""
    config = call.site.config
    options = [(option, default_of(config, option)) for option in OPTIONS["restem"]]
    given = {option.name: call.query(option.name, default) for option, default in options}
    arms = call.queries("arms")
    return call.page(
        "restem.html.j2",
        files=files_of(call).list(),
        chosen=call.query("file"),
        options=options,
        given=given,
        arms=arms,
        strategies=[one for one in list_strategies(config) if not one.problem],
        model=config.model.name,
        **_forecast(call, Choices(**given, arms=arms)),
        **_rows(call),
    )


def runs_table(call: Call) -> str:
    """The table of runs."""
    return call.fragment("restem_runs.html.j2", **_rows(call))


def runs_stamp(call: Call) -> Hashable:
    """Changes when a run of the page does."""
    return tuple((row.id, row.state, row.facts) for row in _rows(call)["rows"])


def _rows(call: Call) -> dict[str, Any]:
    """A page of the list: jobs that are about to begin, then runs, the newest first."""
    jobs = call.site.jobs
    waiting = run_jobs.waiting_jobs(jobs)
    runs = _WATCH.runs(jobs.artifacts / "runs")
    pages = max(1, -(-(len(waiting) + len(runs)) // ROWS))
    page = call.number("page", 1, least=1, most=pages)
    begins = [job for job in waiting if job.live]  # those that never began come last
    every: list[Job | Path] = [*begins, *runs, *(job for job in waiting if not job.live)]
    rows = []
    for one in every[(page - 1) * ROWS : page * ROWS]:
        if isinstance(one, Job):
            rows.append(Row(one.id, one.state, None, one))
            continue
        try:
            found = run_jobs.find(jobs, one.name)
            rows.append(Row(one.name, found.state, _WATCH.facts(one), found.job))
        except AIOSError as error:
            rows.append(Row(one.name, "failed", None, None, error.message))
    links = (f"/restem?page={page - 1}", f"/restem?page={page + 1}")
    return {"rows": rows, "page": page, "pages": pages, "links": links, "total": len(every)}


# ------------------------------------------------------------ a new run


def start_run(call: Call) -> Response:
    """Starts a run."""
    file = files_of(call).get(call.field("file"))
    choices = Choices(
        call.field("rounds"), call.field("passages"), call.field("candidates"), call.fields("arms")
    )
    preview = _PREVIEWS.of(file.path)
    job = run_jobs.start(call.site.jobs, call.site.settings, file.path, preview, choices)
    return call.go(f"/restem/{job.id}", "The run was started. It goes on when this page is closed.")


def _forecast(call: Call, choices: Choices) -> dict[str, Any]:
    """What a run as it is chosen would take, or why it cannot be started."""
    foreseen: Foreseen | None = None
    problem: AIOSError | None = None
    if call.query("file"):
        try:
            file = files_of(call).get(call.query("file"))
            config = call.site.settings.loaded_with(choices.settings())
            runs = _WATCH.runs(call.site.artifacts / "runs")
            foreseen = _FORECASTS.of(config, file.path, runs)
        except AIOSError as error:
            problem = error
    return {"foreseen": foreseen, "problem": problem}


# ------------------------------------------------------------ one run


def run_page(call: Call) -> Response:
    """How a run stands, and what it has come to."""
    shown = _shown(call)
    return call.page("restem_run.html.j2", **shown, **_results(shown["run"]))


def run_panel(call: Call) -> str:
    """How a run stands."""
    return call.fragment("restem_panel.html.j2", **_shown(call))


def results_part(call: Call) -> Response:
    """What a run has come to, for the script of its page."""
    found = _find(call)
    return HTMLResponse(call.fragment("restem_results.html.j2", run=found, **_results(found)))


def run_stamp(call: Call) -> Hashable:
    """Changes when a run or its job does."""
    found = _find(call)
    files = [found.path / name for name in (EVENTS_FILE, STATE_FILE, STOP_FILE)]
    if found.job is not None:
        files += [found.job.path / name for name in (ENDED, LOG, STARTED, STOP)]
    return found.state, stamp_of(*files)


def edits_page(call: Call) -> Response:
    """Single self-edits of a run, and what failed."""
    found = _find(call)
    most = None if call.query("all") == "yes" else MANY_BYTES
    return call.page("restem_edits.html.j2", run=found, **_results(found, most))


def report_page(call: Call) -> Response:
    """The run's own report, in a frame in which nothing is run."""
    found = _find(call)
    there = (found.path / REPORT_FILE).is_file()
    return call.page("restem_report_page.html.j2", run=found, has_report=there)


def report_itself(call: Call) -> Response:
    """The report for that frame."""
    found = _find(call)
    file = confined(found.path, REPORT_FILE)
    if not file.is_file():
        raise UsageError("there is no report yet", "It is written when the run ends.")
    return HTMLResponse(
        read_bytes(file, _MOST_REPORT_BYTES), headers={"Content-Security-Policy": REPORT_POLICY}
    )


def _find(call: Call) -> RunOrJob:
    return run_jobs.find(call.site.jobs, call.path("run"))


def _shown(call: Call) -> dict[str, Any]:
    found = _find(call)
    status: RunStatus | None = _WATCH.follow(found.path).status if found.exists else None
    log = ""
    if found.job is not None and (found.job.state in ("failed", "killed") or status is None):
        log = call.site.jobs.log_tail(found.job.id, 8192)
    facts = _WATCH.facts(found.path) if found.exists else None
    so_far = None
    if status is not None and status.improvements and facts is not None:
        so_far = round_so_far(status.improvements, status.threshold, facts.unit)
    return {
        "run": found,
        "now": status,
        "facts": facts,
        "log": log,
        "so_far": so_far,
        "stages": STAGES,
        "own_command": run_jobs.own_command(found.path) if found.exists else True,
        "mark": _mark(found),
        "title": _title(found, facts),
    }


def _title(found: RunOrJob, facts: RunFacts | None) -> str:
    if facts is not None and facts.dataset:
        return facts.dataset
    return found.id if found.job is None else found.job.request.title


def _results(found: RunOrJob, most_bytes: int | None = SOME_BYTES) -> dict[str, Any]:
    results: RunResults | None = None
    problem = ""
    if found.exists:
        try:
            results = _WATCH.results(found.path, most_bytes)
        except AIOSError as error:  # the rest of the page can be shown without
            problem = error.message
    return {"results": results, "results_problem": problem}


def _mark(found: RunOrJob) -> str:
    """A short text that changes with what the run has come to."""
    stamp = repr((results_stamp(found.path), (found.path / REPORT_FILE).exists()))
    return hashlib.sha256(stamp.encode()).hexdigest()[:16]


# ------------------------------------------------------------ the machine


def machine_page(call: Call) -> Response:
    """How busy the machine is, and the run's memory."""
    return call.page("restem_machine.html.j2", **_machine(call))


def machine_panel(call: Call) -> str:
    """The charts."""
    return call.fragment("restem_machine_panel.html.j2", **_machine(call))


def machine_stamp(call: Call) -> Hashable:
    """Changes with each sample."""
    samples = _LOAD.look()
    return samples[-1].time if samples else None


def _machine(call: Call) -> dict[str, Any]:
    found = _find(call)
    followed = _WATCH.follow(found.path) if found.exists else None
    samples = _LOAD.look()
    return {
        "run": found,
        "now": followed.status if followed is not None else None,
        "memory": memory_chart(followed.memory) if followed is not None else None,
        "loads": load_charts(samples),
        "has_gpu": any(sample.gpus for sample in samples),
    }


# ------------------------------------------------------------ buttons


def pause_run(call: Call) -> Response:
    """Asks a run to stop after the work in hand."""
    run_jobs.pause(call.site.jobs, call.path("run"))
    return _done(call, "The run pauses after the work in hand. It can be resumed.")


def stop_run(call: Call) -> Response:
    """Tells a run's process to stop."""
    run_jobs.stop(call.site.jobs, call.path("run"))
    return _done(call, "The run was told to stop. What is finished is kept; it can be resumed.")


def end_run(call: Call) -> Response:
    """Ends a process that does not listen."""
    run_jobs.stop(call.site.jobs, call.path("run"), at_once=True)
    return _done(call, "The run's process was ended. What was finished is kept.")


def resume_run(call: Call) -> Response:
    """Goes on with a run."""
    run_jobs.resume(call.site.jobs, call.path("run"))
    return _done(call, "The run goes on.")


def _done(call: Call, text: str) -> Response:
    return call.go(f"/restem/{call.path('run')}", Note(text))
