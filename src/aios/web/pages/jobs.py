"""The jobs: what runs, what waits, what ended and how; stop, go on, remove."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from starlette.responses import Response
from starlette.routing import Route

from aios.app.jobs.charts import loss_chart
from aios.app.jobs.child import ENDED, LOG, STARTED, STOP
from aios.app.jobs.progress import ProgressReader
from aios.app.jobs.records import Job
from aios.app.jobs.results import KIND_NAMES, Results, trouble_of
from aios.app.kept import stamp_of
from aios.app.overview import look
from aios.web.pages.calls import Call, get, post
from aios.web.pages.live import live
from aios.web.pages.site import Note

PROGRESS = ProgressReader()  # of all jobs, for all pages
RESULTS = Results()
_A_PAGE = 50


def routes() -> list[Route]:
    """The routes."""
    return [
        get("/jobs", jobs_page),
        *live("/jobs-table", jobs_table, all_jobs_stamp),
        get("/jobs/{job_id}", job_page),
        *live("/jobs/{job_id}/panel", job_panel, job_stamp),
        post("/jobs/{job_id}/stop", stop_job),
        post("/jobs/{job_id}/kill", kill_job),
        post("/jobs/{job_id}/resume", resume_job),
        post("/jobs/{job_id}/delete", delete_job),
    ]


def jobs_page(call: Call) -> Response:
    """All jobs."""
    return call.page("jobs.html.j2", **_listed(call))


def jobs_table(call: Call) -> str:
    """The table of all jobs."""
    return call.fragment("jobs_table.html.j2", **_listed(call))


def all_jobs_stamp(call: Call) -> Hashable:
    """Changes when a job does."""
    return tuple((job.id, job.state) for job in call.site.jobs.list())


def job_page(call: Call) -> Response:
    """One job."""
    return call.page("job.html.j2", **_shown(call))


def job_panel(call: Call) -> str:
    """How one job stands."""
    return call.fragment("job_panel.html.j2", **_shown(call))


def job_stamp(call: Call) -> Hashable:
    """Changes when one job does, has said something, or gets further."""
    job = call.site.jobs.get(call.path("job_id"))
    files = [job.path / name for name in (ENDED, STARTED, STOP)]
    return job.state, stamp_of(*files), progress_stamp(job)


def progress_stamp(job: Job) -> Hashable:
    """Changes when a job has said something, or its run has recorded something."""
    events = PROGRESS.events_of(job)
    return stamp_of(job.path / LOG, *([events] if events else []))


def result_path(job: Job) -> str:
    """The page of what a job has made, or is making; empty where there is none yet."""
    kind, done = job.request.kind, job.state == "done"
    if kind == "ab-test":
        return f"/ab-tests/{job.id}" if job.started else ""
    if kind == "restem":
        return f"/restem/{job.id}" if job.started else ""
    if kind == "generate":
        return f"/edits/{job.id}" if done else ""
    if kind in ("train-expert", "forget"):
        return f"/experts/{job.request.title}" if done else ""
    return ""


def stop_job(call: Call) -> Response:
    """Asks a job to stop."""
    call.site.jobs.stop(call.path("job_id"))
    return call.back("The job was asked to stop. What it has finished is kept.", otherwise="/jobs")


def kill_job(call: Call) -> Response:
    """Ends a job that does not listen."""
    call.site.jobs.stop(call.path("job_id"), at_once=True)
    return call.back("The job was ended. It can be gone on with.", otherwise="/jobs")


def resume_job(call: Call) -> Response:
    """Goes on with a job."""
    job = call.site.jobs.resume(call.path("job_id"))
    return call.back("The job goes on.", otherwise=f"/jobs/{job.id}")


def delete_job(call: Call) -> Response:
    """Takes a job off the list; what it has written stays."""
    call.site.jobs.delete(call.path("job_id"))
    return call.go("/jobs", Note("The job was removed from the list. Its results are kept."))


def _listed(call: Call) -> dict[str, Any]:
    jobs = call.site.jobs.list()
    pages = max(1, -(-len(jobs) // _A_PAGE))
    page = call.number("page", 1, least=1, most=pages)
    return {
        "jobs": jobs[(page - 1) * _A_PAGE : page * _A_PAGE],
        "page": page,
        "pages": pages,
        "kinds": KIND_NAMES,
    }


def _shown(call: Call) -> dict[str, Any]:
    job: Job = call.site.jobs.get(call.path("job_id"))
    log = call.site.jobs.log_tail(job.id)
    progress = look(PROGRESS, job)
    return {
        "job": job,
        "log": log,
        "kind": KIND_NAMES.get(job.request.kind, job.request.kind),
        "progress": progress,
        "chart": loss_chart(progress.curves) if progress else None,
        "trouble": trouble_of(job, log),
        "result": RESULTS.line(job, log),
        "result_path": result_path(job),
    }
