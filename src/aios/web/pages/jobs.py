"""The jobs: what runs, what waits, what ended and how; stop, go on, remove."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from starlette.responses import Response
from starlette.routing import Route

from aios.app.jobs.child import ENDED, LOG, STARTED, STOP
from aios.app.jobs.records import Job
from aios.web.pages.calls import Call, get, post
from aios.web.pages.live import file_stamp, live
from aios.web.pages.site import Note


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
    return call.page("jobs.html.j2", jobs=call.site.jobs.list())


def jobs_table(call: Call) -> str:
    """The table of all jobs."""
    return call.fragment("jobs_table.html.j2", jobs=call.site.jobs.list())


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
    """Changes when one job does, or has said something."""
    job = call.site.jobs.get(call.path("job_id"))
    files = [job.path / name for name in (ENDED, LOG, STARTED, STOP)]
    return job.state, file_stamp(*files)


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


def _shown(call: Call) -> dict[str, Any]:
    job: Job = call.site.jobs.get(call.path("job_id"))
    return {"job": job, "log": call.site.jobs.log_tail(job.id)}
