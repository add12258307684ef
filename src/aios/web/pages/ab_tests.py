"""A/B tests: all of them, one while it runs, and what it found."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from starlette.responses import Response
from starlette.routing import Route

from aios.app.ab_tests.progress import EVENTS_FILE, ABStatus, Followers
from aios.app.ab_tests.report_charts import ARM_LABELS, learning_curves
from aios.app.ab_tests.results import METRICS_FILE, SORTS, ABResult, find_changes, read_result
from aios.app.jobs.records import Job
from aios.app.kept import stamp_of
from aios.app.runs.files import FILES, REPORT_FILE, read_shown
from aios.app.runs.listing import AB_TEST, RUN_FILE, RunEntry
from aios.core.errors import AIOSError
from aios.web.pages import runs
from aios.web.pages.calls import Call, get
from aios.web.pages.live import live
from aios.web.pages.paging import part_of

QUESTIONS_A_PAGE = 25
_KINDS = (AB_TEST,)
_followers = Followers()


def routes() -> list[Route]:
    """The routes."""
    return [
        get("/ab-tests", list_page),
        *live("/ab-tests-table", list_table, list_stamp),
        get("/ab-tests/{run_id}", test_page),
        *live("/ab-tests/{run_id}/panel", panel, panel_stamp),
        get("/ab-tests/{run_id}/questions", questions_page),
        get("/ab-tests/{run_id}/whole", whole_page),
        get("/ab-tests/{run_id}/report", report),
        get("/ab-tests/{run_id}/{name}", download),
    ]


# ------------------------------------------------------------ all of them


def list_page(call: Call) -> Response:
    """All A/B tests."""
    return call.page("ab_tests.html.j2", **runs.listed(call, _KINDS, "/ab-tests"))


def list_table(call: Call) -> str:
    """The table of A/B tests."""
    return call.fragment("runs_table.html.j2", **runs.listed(call, _KINDS, "/ab-tests"))


def list_stamp(call: Call) -> Hashable:
    """Changes when an A/B test does."""
    return runs.listing_stamp(call, _KINDS)


# ------------------------------------------------------------ one


@dataclass(frozen=True, slots=True)
class Shown:
    """An A/B test as its pages show it.

    Attributes:
        run: In the list.
        job: That runs it; None where it was started otherwise.
        result: What it found; None before its end.
        problem: Why what it found cannot be shown.
        status: How it stands; None where it has ended with a result.
        curves: The learning curves so far.
    """

    run: RunEntry
    job: Job | None
    result: ABResult | None = None
    problem: AIOSError | None = None
    status: ABStatus | None = None
    curves: Markup | None = None


def test_page(call: Call) -> Response:
    """One A/B test: its verdict first, or how it stands."""
    return call.page("ab_test.html.j2", **_values(call))


def panel(call: Call) -> str:
    """How one A/B test stands, or what it found."""
    return call.fragment("ab_test_panel.html.j2", **_values(call))


def panel_stamp(call: Call) -> Hashable:
    """Changes when an A/B test has done something."""
    run = runs.found_run(call, _KINDS)
    files = [run.path / name for name in (RUN_FILE, METRICS_FILE, EVENTS_FILE)]
    return run.state, stamp_of(*files)


def questions_page(call: Call) -> Response:
    """The questions of an A/B test, with what each arm wrote."""
    run = runs.found_run(call, _KINDS)
    result = read_result(run.path)
    text = call.query("q").strip()[:200]
    sort = call.query("sort") if call.query("sort") in SORTS else SORTS[0]
    found = find_changes(result.changes, text, sort)
    page = part_of(found, call.number("page", 1, least=1), QUESTIONS_A_PAGE)
    return call.page(
        "ab_test_questions.html.j2",
        shown=Shown(run, _job(call, run), result),
        page=page,
        links=page.links(f"/ab-tests/{run.id}/questions", {"q": text, "sort": sort}),
        q=text,
        sort=sort,
        tab="questions",
    )


def whole_page(call: Call) -> Response:
    """The whole report of an A/B test, in a frame of its own."""
    run = runs.found_run(call, _KINDS)
    there = read_shown(run.path).there
    return call.page(
        "ab_test_whole.html.j2",
        shown=Shown(run, _job(call, run)),
        has_report=REPORT_FILE in there,
        there=there,
        tab="whole",
    )


def report(call: Call) -> Response:
    """The report itself."""
    return runs.report_answer(runs.found_run(call, _KINDS))


def download(call: Call) -> Response:
    """A file of an A/B test."""
    return runs.file_answer(runs.found_run(call, _KINDS), call.path("name"))


def _values(call: Call) -> dict[str, Any]:
    run = runs.found_run(call, _KINDS)
    return {
        "shown": _shown(call, run),
        "meanings": ARM_LABELS,
        "files": [name for name in FILES if (run.path / name).is_file()],
        "tab": "result",
    }


def _shown(call: Call, run: RunEntry) -> Shown:
    job = _job(call, run)
    problem: AIOSError | None = None
    if run.finished and not run.live:
        try:
            return Shown(run, job, read_result(run.path))
        except AIOSError as error:
            problem = error
    if not run.begun:
        return Shown(run, job)
    status = _followers.of(run.path).status(live=run.live)
    return Shown(run, job, None, problem, status, learning_curves(status.curves))


def _job(call: Call, run: RunEntry) -> Job | None:
    return call.site.jobs.get(run.job) if run.job else None
