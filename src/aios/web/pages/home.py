"""Home: what runs, what finished, what needs attention, and where the main job begins."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from starlette.responses import Response
from starlette.routing import Route

from aios.app.data.files import ENDINGS
from aios.app.jobs.results import KIND_NAMES
from aios.app.overview import MachineChecks, overview
from aios.web.pages.calls import Call, get
from aios.web.pages.files import files_of
from aios.web.pages.jobs import PROGRESS, RESULTS, progress_stamp, result_path
from aios.web.pages.live import live

_SHOWN_FILES = 12
_CHECKS = MachineChecks()


def routes() -> list[Route]:
    """The routes."""
    return [get("/", home_page), *live("/home-panel", home_panel, home_stamp)]


def home_page(call: Call) -> Response:
    """Home."""
    files = files_of(call).list()
    return call.page(
        "home.html.j2",
        files=files[:_SHOWN_FILES],
        more_files=max(0, len(files) - _SHOWN_FILES),
        endings=",".join(ENDINGS),
        **_shown(call),
    )


def home_panel(call: Call) -> str:
    """What runs, what finished, what needs attention."""
    return call.fragment("home_panel.html.j2", **_shown(call))


def home_stamp(call: Call) -> Hashable:
    """Changes when a job does, or one that runs gets further."""
    jobs = call.site.jobs.list()
    return tuple(
        (job.id, job.state, progress_stamp(job) if job.live else None) for job in jobs[:200]
    )


def _shown(call: Call) -> dict[str, Any]:
    jobs, store = call.site.jobs.list(), call.site.jobs
    found = overview(store, jobs, PROGRESS, RESULTS, _CHECKS.problems(call.site.config))
    return {"overview": found, "kinds": KIND_NAMES, "result_path": result_path}
