"""Self-edits: what was written from which passage, what was kept, and what was dropped and why."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response
from starlette.routing import Route

from aios.app.edits.inspect_html import score_card, share_bar
from aios.app.edits.inspection import Selection
from aios.app.edits.shelf import EditShelf
from aios.app.edits.sources import JOURNAL, EditSource, find_source, list_sources
from aios.app.edits.totals import LENGTHS, EditTotals
from aios.app.jobs.records import Job
from aios.app.kept import stamp_of
from aios.core.errors import UsageError
from aios.web.pages import edit_previews
from aios.web.pages.calls import Call, get
from aios.web.pages.live import live

FILES_A_PAGE = 25
PASSAGES_A_PAGE = (10, 25, 50)
_LONGEST_QUERY = 200
_ORIGINS = {
    "generate": "generation",
    "train-expert": "expert training",
    "restem": "ReST-EM",
    "ab-test": "A/B test",
}
_shelf = EditShelf()


def routes() -> list[Route]:
    """The routes."""
    return [
        get("/edits", edits_page),
        *live("/edits-list", edits_list, list_stamp),
        *edit_previews.routes(),
        get("/edits/{edits_id}", passages_page),
        get("/edits/{edits_id}/strategies", strategies_page),
        *live("/edits/{edits_id}/passages", passages, source_stamp),
        *live("/edits/{edits_id}/comparison", comparison, source_stamp),
    ]


# ------------------------------------------------------------ all files


def edits_page(call: Call) -> Response:
    """All files of self-edits."""
    return call.page("edits.html.j2", **_listed(call))


def edits_list(call: Call) -> str:
    """The table of all files."""
    return call.fragment("edits_list.html.j2", **_listed(call))


def list_stamp(call: Call) -> Hashable:
    """Changes when a job does, or what one is writing."""
    return tuple(
        (job.id, job.state, stamp_of(job.request.output.parent / JOURNAL) if job.live else None)
        for job in call.site.jobs.list()
    )


def _listed(call: Call) -> dict[str, Any]:
    sources = list_sources(call.site.artifacts, call.site.jobs.list())
    pages = max(1, -(-len(sources) // FILES_A_PAGE))
    page = call.number("page", 1, least=1, most=pages)
    some = sources[(page - 1) * FILES_A_PAGE : page * FILES_A_PAGE]
    return {
        "rows": [(source, _shelf.glance(source), state_of(source)) for source in some],
        "origins": _ORIGINS,
        "files": len(sources),
        "page_number": page,
        "pages": pages,
        "links": [f"/edits?page={page - 1}", f"/edits?page={page + 1}"],
        "live_path": f"/edits-list/live?page={page}",
    }


def state_of(source: EditSource) -> str:
    """How a source stands, as jobs name it."""
    if source.job is not None and not (source.complete and not source.being_written):
        return source.job.state
    return "done" if source.complete else "interrupted"


# ------------------------------------------------------------ one file


def passages_page(call: Call) -> Response:
    """The passages of a file, each beside its self-edits."""
    return call.page("edits_file.html.j2", **_passages(call))


def passages(call: Call) -> str:
    """What a file comes to, and the passages that were asked for."""
    return call.fragment("edits_passages.html.j2", **_passages(call))


def _passages(call: Call) -> dict[str, Any]:
    shown = _summed(call)
    totals: EditTotals = shown["totals"]
    strategies = [one.strategy for one in totals.strategies]
    reasons = [one.reason for one in totals.all.reasons]
    asked: dict[str, Any] = {
        "text": call.query("text").strip()[:_LONGEST_QUERY],
        "strategy": _among(call.query("strategy"), strategies),
        "reason": _among(call.query("reason"), reasons),
        "show": _among(call.query("show"), ["kept", "dropped"]),
        "per": call.number("per", PASSAGES_A_PAGE[0], least=1, most=PASSAGES_A_PAGE[-1]),
    }
    selection = Selection(
        strategies=(asked["strategy"],) if asked["strategy"] else (),
        reasons=(asked["reason"],) if asked["reason"] else (),
        kept=asked["show"] != "dropped",
        dropped=asked["show"] != "kept",
        limit=asked["per"],
    )
    found = _shelf.page(shown["source"], selection, asked["text"], call.number("page", 1, least=1))
    here = _path(shown["source"], asked, found.page)
    return {
        **shown,
        "found": found,
        "asked": asked,
        "strategies": strategies,
        "reasons": reasons,
        "sizes": PASSAGES_A_PAGE,
        "links": [_path(shown["source"], asked, found.page + step) for step in (-1, 1)],
        "live_path": here.replace("?", "/passages/live?"),
    }


def strategies_page(call: Call) -> Response:
    """How the strategies of a file compare."""
    return call.page("edits_strategies.html.j2", **_compared(call))


def comparison(call: Call) -> str:
    """How its strategies compare, and how its scores are spread."""
    return call.fragment("edits_comparison.html.j2", **_compared(call))


def source_stamp(call: Call) -> Hashable:
    """Changes when the file does, or the job that writes it."""
    source = source_of(call)
    return source.files, source.stamp, state_of(source)


def source_of(call: Call) -> EditSource:
    """The file that the address names.

    Raises:
        UsageError: There is none.
    """
    edits_id = call.path("edits_id")
    return find_source(call.site.artifacts, edits_id, _jobs_for(call, edits_id))


def _jobs_for(call: Call, edits_id: str) -> list[Job]:
    if "~" in edits_id:  # of a run, which any job may have made
        return call.site.jobs.list()
    try:
        return [call.site.jobs.get(edits_id)]
    except UsageError:
        return []


def _summed(call: Call) -> dict[str, Any]:
    source = source_of(call)
    return {
        "source": source,
        "state": state_of(source),
        "origin": _ORIGINS[source.origin],
        "totals": _shelf.totals(source),
    }


def _compared(call: Call) -> dict[str, Any]:
    shown = _summed(call)
    totals: EditTotals = shown["totals"]
    drops = sum(one.edits + one.items for one in totals.all.reasons) or 1
    most = max((one.edits + one.items for one in totals.all.reasons), default=1)
    names = [score.name for score in totals.scores]
    return {
        **shown,
        "reasons": [
            (one, (one.edits + one.items) / drops, share_bar((one.edits + one.items) / most))
            for one in totals.all.reasons
        ],
        "rows": [(one, share_bar(one.share_kept or 0.0)) for one in totals.strategies],
        "lengths": [name for name in names if name in LENGTHS],
        "qualities": [name for name in names if name not in LENGTHS],
        "cards": [score_card(score) for score in totals.scores],
        "worse": {score.name: score.worse for score in totals.scores},
    }


def _among(asked: str, known: list[str]) -> str:
    return asked if asked in known else ""


def _path(source: EditSource, asked: dict[str, Any], page: int) -> str:
    query = {name: value for name, value in asked.items() if value}
    return f"/edits/{source.id}?{urlencode({**query, 'page': page})}"
