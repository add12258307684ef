"""Runs of any kind: all of them, one from its directory alone, and two beside each other."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from typing import Any

from starlette.responses import FileResponse, Response
from starlette.routing import Route

from aios.app.runs.beside import RunComparison
from aios.app.runs.comparison import COMPARABLE, compare_runs
from aios.app.runs.files import FILES, REPORT_FILE, read_report, read_shown, run_file
from aios.app.runs.listing import (
    AB_TEST,
    RESTEM,
    SORTS,
    RunEntry,
    find_run,
    list_runs,
    search_runs,
)
from aios.core.errors import AIOSError, UsageError
from aios.web.pages.calls import Call, get
from aios.web.pages.guarding import REPORT_POLICY
from aios.web.pages.live import live
from aios.web.pages.paging import part_of

PAGE_SIZE = 50
_MOST_CHOICES = 300
_PLACES = {AB_TEST: "/ab-tests", RESTEM: "/restem"}


def routes() -> list[Route]:
    """The routes."""
    return [
        get("/runs", runs_page),
        *live("/runs-table", runs_table, runs_stamp),
        get("/runs/compare", compare_page),
        get("/runs/{run_id}", run_page),
        get("/runs/{run_id}/report", report),
        get("/runs/{run_id}/{name}", download),
    ]


# ------------------------------------------------------------ lists


def runs_page(call: Call) -> Response:
    """All runs."""
    return call.page("runs.html.j2", **listed(call))


def runs_table(call: Call) -> str:
    """The table of all runs."""
    return call.fragment("runs_table.html.j2", **listed(call))


def runs_stamp(call: Call) -> Hashable:
    """Changes when a run does."""
    return listing_stamp(call)


def listing_stamp(call: Call, kinds: Collection[str] = ()) -> Hashable:
    """Changes when a run of these kinds does."""
    runs = list_runs(call.site.artifacts, call.site.jobs.list(), kinds=kinds)
    return tuple((run.id, run.state, run.sentence, run.problem) for run in runs)


def listed(call: Call, kinds: Collection[str] = (), place: str = "/runs") -> dict[str, Any]:
    """What a table of runs shows: a page of those that were searched for, in order."""
    sort = call.query("sort") if call.query("sort") in SORTS else "created"
    down = call.query("down", "1") != "0"
    everything = list_runs(call.site.artifacts, call.site.jobs.list(), kinds=kinds)
    text = call.query("q").strip()[:200]
    found = search_runs(everything, text, sort, down=down)
    page = part_of(found, call.number("page", 1, least=1), PAGE_SIZE)
    query = {"q": text, "sort": sort, "down": "1" if down else "0"}
    return {
        "place": place,
        "runs": page.items,
        "page": page,
        "links": page.links(place, query),
        "here_query": page.query(query),
        "heads": {
            key: page.address(
                place, {**query, "sort": key, "down": "0" if key == sort and down else "1"}, 1
            )
            for key in SORTS
        },
        "total": len(everything),
        "q": text,
        "sort": sort,
        "down": down,
        "with_kind": not kinds,
    }


# ------------------------------------------------------------ one run


def run_page(call: Call) -> Response:
    """One run: the page of its kind, or of its job, or what its directory holds."""
    run = found_run(call)
    if run.kind in _PLACES:
        return call.go(f"{_PLACES[run.kind]}/{run.id}")
    if run.job and not call.query("plain"):
        return call.go(f"/jobs/{run.job}")
    return call.page("run.html.j2", run=run, shown=read_shown(run.path), files=FILES)


def report(call: Call) -> Response:
    """The report of a run: our own page, in which nothing can run."""
    return report_answer(found_run(call))


def download(call: Call) -> Response:
    """A file of a run."""
    return file_answer(found_run(call), call.path("name"))


def found_run(call: Call, kinds: Collection[str] = ()) -> RunEntry:
    """The run of the address.

    Raises:
        UsageError: There is none.
    """
    jobs = call.site.jobs.list()
    return find_run(call.site.artifacts, call.path("run_id"), jobs, kinds=kinds)


def report_answer(run: RunEntry) -> Response:
    """The report as it stands, without scripts, without the rights of this site."""
    headers = {"Content-Security-Policy": REPORT_POLICY}
    return Response(read_report(run.path), media_type="text/html", headers=headers)


def file_answer(run: RunEntry, name: str) -> Response:
    """A file of a run, to be kept."""
    kind = "text/html" if name == REPORT_FILE else FILES.get(name, "text/plain")
    # A browser that shows it all the same shows it without the rights of this site.
    headers = {"Content-Security-Policy": REPORT_POLICY}
    return FileResponse(
        run_file(run.path, name), media_type=kind, filename=f"{run.id}-{name}", headers=headers
    )


# ------------------------------------------------------------ two runs


def compare_page(call: Call) -> Response:
    """Two runs beside each other, or which to choose."""
    jobs = call.site.jobs.list()
    choices = [
        run
        for run in list_runs(call.site.artifacts, jobs, kinds=COMPARABLE)
        if run.finished and not run.live
    ]
    a, b = call.query("a"), call.query("b")
    found: RunComparison | None = None
    problem: AIOSError | None = None
    if a and b:
        try:
            first, second = (find_run(call.site.artifacts, one, jobs) for one in (a, b))
            found = compare_runs(first, second)
        except AIOSError as error:
            problem = error
    status = 200 if problem is None else 404 if isinstance(problem, UsageError) else 500
    return call.page(
        "runs_compare.html.j2",
        status=status,
        groups={
            "A/B tests": [run for run in choices if run.kind == AB_TEST][:_MOST_CHOICES],
            "ReST-EM": [run for run in choices if run.kind == RESTEM][:_MOST_CHOICES],
        },
        enough=len(choices) > 1,
        a=a,
        b=b,
        found=found,
        problem=problem,
    )
